"""What the report shows of single samples, of what went wrong, of held-out samples and of seeds; and how it prints."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compared_runs import right, write_points
from PIL import Image
from streams import TASKS, picture, sample, stream_samples, test_sets
from synthetic_run import write_run
from test_report import Page, in_chromium

from streamcvit.comparison import compare_runs
from streamcvit.data.sample import Picture
from streamcvit.data.shards.write import write_stream
from streamcvit.learning.durable import write_json
from streamcvit.monitoring.alertlog import FIRING, RESOLVED, AlertLog
from streamcvit.monitoring.alerts import Alert
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report import flips as flipping
from streamcvit.monitoring.report.charts import Series
from streamcvit.monitoring.report.flips import flips
from streamcvit.monitoring.report.heldout import held_out, right_before
from streamcvit.monitoring.report.page import render_report
from streamcvit.monitoring.report.recoveries import alerts, recoveries
from streamcvit.monitoring.verdict import Verdict


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run beside its stream: of ten samples a task, `colour` went from nine right to two, `shape` stayed."""
    run = tmp_path_factory.mktemp("pictured")
    big = Picture(picture(7, size=300))
    tests = {task: [sample(1000 + k, task, pictures=(big,) if k == 2 else (Picture(picture(k)),)) for k in range(10)]
             for task in TASKS}  # fmt: skip
    tests["colour"][3] = replace(tests["colour"][3], pictures=(Picture(picture(3)), Picture(picture(4))))
    index = write_stream(run / "stream", stream_samples(), TASKS, tests, 0)
    points = right({"colour": [0.9, 0.5, 0.2], "shape": [None, 0.5, 0.5]}, n=10)
    write_points(run / "lora", points, digest=index.digest, ids="{task}-100")
    return run


def loaded(run: Path, method: str = "lora") -> RunRecord:
    return RunRecord.load(run / method)


def test_samples_that_went_from_right_to_wrong_are_shown_with_their_pictures(pictured: Path) -> None:
    ((_, label, found),), notes = flips([("lora", loaded(pictured))])
    assert label == "lora" and notes == []
    assert [(flip.task, flip.sample) for flip in found] == [("colour", f"colour-100{k}") for k in (2, 3, 4)]
    large, two, small = found
    assert (large.best, large.last, large.reference, large.before) == (1, 3, "b", "a")
    assert large.question == "Größe 1002?" and large.size == (176, 176) and small.size == (8, 8) and two.more == 1
    shown = Image.open(io.BytesIO(base64.b64decode(small.picture.removeprefix("data:image/jpeg;base64,"))))
    original = Image.open(io.BytesIO(picture(4)))
    off = np.abs(np.asarray(shown, float) - np.asarray(original.convert("RGB"), float)).mean()
    other = np.abs(np.asarray(shown, float) - np.asarray(Image.open(io.BytesIO(picture(5))), float)).mean()
    assert off < 25 < other  # it is that sample's, but for what a JPEG of noise loses
    parsed = Page(render_report([loaded(pictured)]).replace("<img", "<input"))  # void, as the checker knows them
    pictures = [attrs["src"] for tag, attrs in parsed.tags if tag == "input"]
    assert pictures == [flip.picture for flip in found]
    assert "Größe 1004?" in parsed.text and "and 1 more picture" in parsed.text


def test_a_run_without_its_stream_says_so_and_shows_the_answers(pictured: Path, tmp_path: Path) -> None:
    shutil.copytree(pictured / "lora", tmp_path / "lora")
    ((_, _, found),), notes = flips([("lora", loaded(tmp_path))])
    assert len(found) == 3 and not any(flip.picture or flip.question for flip in found)
    assert notes == ["Pictures are missing: the stream is no longer beside the run."]
    assert notes[0] in Page(render_report([loaded(tmp_path)])).text
    write_stream(tmp_path / "stream", stream_samples(20), TASKS, test_sets(), 0)
    assert flips([("lora", loaded(tmp_path))])[1] == ["Pictures are missing: the stream beside the run is another one."]
    shutil.rmtree(tmp_path / "stream")
    shutil.copytree(pictured / "stream", tmp_path / "stream")
    for shard in (tmp_path / "stream").rglob("*.tar"):
        shard.unlink()
    ((_, _, found),), notes = flips([("lora", loaded(tmp_path))])
    assert len(found) == 3 and notes == ["Pictures are missing: some samples cannot be read any more."]


def test_pictures_of_a_report_are_bounded(pictured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flipping, "ALL_PICTURES", 2_000)
    ((_, _, found),), notes = flips([("lora", loaded(pictured))])
    assert [bool(flip.picture) for flip in found] == [False, True, True]  # that of 176 x 176 noise takes more
    assert notes == ["Pictures are missing: the report would be too large."]
    monkeypatch.setattr(flipping, "A_PICTURE", 20_000)
    data, _ = flipping.thumbnail(sample(1, pictures=(Picture(picture(1, size=900)),)))
    assert 0 < len(data) <= 20_000


def test_failures_and_what_followed_are_told_in_sentences(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r" / "smolora", "smolora", chunks=3, done=1)
    at = "2026-01-01T10:0{}:00+00:00"
    told = [
        {"event": "restart", "actor": "learner", "cause": "died", "detail": "exit 137"},
        {"event": "quarantine", "chunk": 1, "sample_id": "s70", "reason": "image", "detail": "cut short"},
        {"event": "quarantine", "chunk": 1, "sample_id": "s71", "reason": "image", "detail": "cut short"},
        {"event": "skipped", "chunk": 1, "reason": "loss", "position": 80, "positions": [80]},
        {"event": "damaged", "what": "00000005: damaged commit"},
        {"event": "guard", "action": "rollback", "task": "ocr", "points": 31.24, "low": 12.0, "chunk": 1},
        {"event": "stopped"},
        {"event": "started"},
        {"event": "failed", "what": "the disk is full"},
        {"event": "of_a_later_release", "why": "x"},
    ]  # fmt: skip
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps({"time": at.format(k), **event}) + "\n" for k, event in enumerate(told))
    found = recoveries(RunRecord.load(folder))
    assert [(time[11:], kind, text) for time, kind, text in found["lines"]] == [
        ("10:00:00", "good", "learner was replaced: its process was gone (exit 137). The work went on with a new one."),
        ("10:01:00", "bad", "2 samples of chunk 2 could not be learned (image), the first: s70: cut short. "
         "The stream went on without."),
        ("10:03:00", "bad", "1 step of chunk 2 not taken: the loss was not finite. Weights stayed as they were."),
        ("10:04:00", "bad", "Damaged: 00000005: damaged commit. It is made again from what is whole."),
        ("10:06:00", "plain", "It was stopped in good order; what was learned is committed."),
        ("10:07:00", "good", "It went on from what was committed."),
        ("10:08:00", "bad", "It ended before its end: the disk is full"),
        ("10:09:00", "plain", "of_a_later_release: why x"),
    ]  # fmt: skip
    assert found["summary"] == "1 restart, 1 stop, 1 failure" and found["end"] == ""
    quiet = write_run(tmp_path / "q" / "lora", "lora", chunks=3)
    assert recoveries(RunRecord.load(quiet))["lines"] == []
    text = Page(render_report([RunRecord.load(folder)])).text
    assert "Failures and recoveries" in text and "its process was gone (exit 137)" in text


def test_alerts_that_fired_are_listed_with_their_time(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "lora", "lora", chunks=3)
    kept = AlertLog(tmp_path)
    for second, status, method, task in (
        (0, FIRING, "lora", "ocr"), (60, FIRING, "lora", "land"), (120, RESOLVED, "lora", "ocr"),
        (180, FIRING, "smolora", "ocr"),
    ):  # fmt: skip
        labels = {"run": "r", "method": method, "task": task}
        kept.write(Alert("StreamcvitTaskForgotten", "warning", labels, f"{method} lost {task}"), status, second)
    runs = [("lora", RunRecord.load(folder))]
    assert [(row["since"][11:], row["until"][11:], row["summary"]) for row in alerts(runs)] == [
        ("00:00:00", "00:02:00", "lora lost ocr"),
        ("00:01:00", "", "lora lost land"),
    ]
    text = Page(render_report([runs[0][1]])).text
    assert "Alerts that fired" in text and "the end warning StreamcvitTaskForgotten lora lost land" in text
    (tmp_path / "alerts.jsonl").unlink()
    assert "Alerts that fired" not in render_report([runs[0][1]])


def test_held_out_scores_are_those_of_the_chunks_tasks_in_the_shares_that_it_trained() -> None:
    record = RunRecord(Path("x"), tasks=["a", "b"], plan=np.array([[10, 0], [3, 1], [0, 0], [0, 5]]))
    record.scores = [
        {"kind": "boundary", "family": "strict", "task": task, "chunk": chunk, "score": score}
        for task, chunk, score in [("a", 0, 80.0), ("a", 1, 40.0), ("b", 1, 100.0), ("a", 3, 10.0)]
    ]
    np.testing.assert_array_equal(held_out(record), [80.0, 55.0, np.nan, np.nan])
    chunk, correct = np.array([0, 0, 1, 1, 1, 1]), np.array([True, False, True, True, True, False])
    record.ledger = replace(record.ledger, chunk=chunk, correct=correct, position=np.arange(6))
    np.testing.assert_array_equal(right_before(record), [50.0, 75.0, np.nan, np.nan])


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunRecord], Verdict]:
    """Three seeds of one method and one run of another."""
    root = tmp_path_factory.mktemp("seeds")
    shares = {0: [0.5, 0.9], 1: [0.6, 0.7], 2: [0.7, 0.5]}
    folders = [
        write_points(root / f"s{seed}" / "lora", right({"a": rows, "b": [None, 0.5]}), seed=seed)
        for seed, rows in shares.items()
    ]
    folders.append(write_points(root / "other" / "smolora", right({"a": [0.9, 0.9], "b": [None, 0.8]})))
    records = [RunRecord.load(folder) for folder in folders]
    return records, compare_runs(records, draws=100).verdict()


def test_seeds_of_one_method_are_a_line_with_its_interval_over_seeds(
    seeds: tuple[list[RunRecord], Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    records, verdict = seeds
    drawn: list[tuple[str, list[Series]]] = []
    from streamcvit.monitoring.report import figures

    draw = figures.line_chart
    monkeypatch.setattr(figures, "line_chart", lambda s, **k: (drawn.append((k["title"], list(s))), draw(s, **k))[1])
    page = render_report(records, verdict=verdict)
    lines = dict(drawn)["a"]
    assert [(line.run, line.name, line.band is None) for line in lines] == [(0, "lora", False), (3, "smolora", True)]
    half = 4.3027 * 10.0 / np.sqrt(3)  # of 50, 60, 70, and of 90, 70, 50 twice that: over the top of the scale
    np.testing.assert_allclose(lines[0].y, [60.0, 70.0])
    np.testing.assert_allclose(lines[0].band, [[60.0 - half, 70.0 - 2 * half], [60.0 + half, 100.0]], atol=1e-3)
    ap = dict(drawn)["AP over the seen tasks"]
    np.testing.assert_allclose(ap[0].y, [60.0, 60.0])
    parsed = Page(page)
    assert [attrs["data-run"] for _, attrs in parsed.tags if "data-run" in attrs] == ["0", "3"]
    assert "lora (3 seeds)" in parsed.text and 'class="spread"' in page
    assert len(set(re.findall(r"\.run([012]) \{ --c: (var\(--hue\d\));", page))) == 3
    assert len({hue for run, hue in re.findall(r"\.run(\d) \{ --c: var\((--hue\d)\);", page) if run != "3"}) == 1
    assert "spread" not in render_report(records[2:]).split("</style>")[1]  # one seed has no band


def test_compare_has_the_same_band(seeds: tuple[list[RunRecord], Verdict]) -> None:
    found = compare_runs(seeds[0], draws=100)
    value, low, high = found.curves[0]
    half = 4.3027 * np.std([50.0, 60.0, 70.0], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose([value[0], low[0], high[0]], [60.0, 60.0 - half, 60.0 + half], atol=1e-3)


@pytest.fixture(scope="module")
def largest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of four runs of 25 chunks and ten tasks, with much that went wrong and large pictures."""
    root = tmp_path_factory.mktemp("largest")
    tasks = tuple(f"task-{k}" for k in range(10))
    noise = [Picture(picture(k, size=200)) for k in range(20)]
    tests = {
        name: [sample(k, name, sample_id=f"{name}-{k}", pictures=(noise[k],)) for k in range(20)] for name in tasks
    }
    specs = {name: replace(TASKS["colour"], name=name) for name in tasks}
    index = write_stream(root / "stream", [(0, sample(1, tasks[0]))], specs, tests, 0)
    records = []
    for place, method in enumerate(("lora", "moelora", "smolora", "replay")):
        folder = write_run(root / f"{method}{place}", method, chunks=25, tasks=tasks, seed=place)
        run = json.loads((folder / "run.json").read_text())
        write_json(folder / "run.json", {**run, "index_digest": index.digest})
        with (folder / "events.jsonl").open("a") as file:
            for k in range(120):
                event = {"event": "quarantine", "chunk": k, "position": k, "sample_id": f"s{k}", "reason": "image"}
                file.write(json.dumps({**event, "detail": "x" * 300}) + "\n")
        records.append(RunRecord.load(folder))
    return render_report(records, "The largest")


def test_the_largest_report_stays_under_five_megabytes(largest: str) -> None:
    pictures = re.findall(r'src="(data:image/jpeg[^"]*)"', largest)
    assert len(pictures) > 40 and sum(map(len, pictures)) <= 4 / 3 * flipping.ALL_PICTURES + 100 * len(pictures)
    assert len(largest.encode()) < 5_000_000


MEASURE = """
addEventListener("load", () => {
  const cut = [], main = document.querySelector("main"), width = innerWidth - 80;
  const page = (box) => Math.floor((box.left + 1) / (width + 40));
  const inside = (box, what) => {
    const left = page(box) * (width + 40);
    if (box.left < left - 1 || box.right > left + width + 1) cut.push("wide: " + what);
  };
  for (const one of main.querySelectorAll("svg.chart, tr, figure, .story li")) {
    const boxes = [...one.getClientRects()].filter((box) => box.width && box.height);
    if (new Set(boxes.map(page)).size > 1) cut.push("over a page: " + one.tagName + " " + one.textContent.slice(0, 40));
  }
  for (const one of main.querySelectorAll("svg.chart, table, figure, .story li, pre, .card")) {
    for (const box of one.getClientRects()) inside(box, one.tagName + " " + one.textContent.slice(0, 60));
  }
  for (const head of main.querySelectorAll("h2, h3")) {
    let next = head.nextElementSibling;
    while (next && !next.getClientRects().length) next = next.nextElementSibling;
    if (!next || !head.getClientRects().length) continue;
    const first = next.matches("div") ? next.querySelector("svg, tr, li, figure, p, h3, dt") || next : next;
    if (page(head.getClientRects()[0]) !== page(first.getClientRects()[0])) cut.push("alone: " + head.textContent);
  }
  for (const details of main.querySelectorAll("details:not(.to-copy)")) {
    if (!details.lastElementChild.checkVisibility()) cut.push("closed: " + details.textContent.slice(0, 40));
  }
  const pages = 1 + Math.max(...[...main.querySelectorAll("tr, svg")].map((one) => page(one.getBoundingClientRect())));
  document.title = "measured " + JSON.stringify({ pages, cut: cut.slice(0, 20), many: cut.length });
});
"""


def test_on_paper_nothing_is_cut_no_heading_stands_alone_and_all_is_open(largest: str, tmp_path: Path) -> None:
    """The printed layout with columns for pages: a browser breaks both alike, and columns can be measured."""
    paper = "width: 702px; height: 1010px; columns: 702px; column-gap: 40px; column-fill: auto; margin: 0 !important;"
    page = largest.replace("@media print", "@media all").replace("@media screen and", "@media not all and")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page)
    page = page.replace("</style>", f"main {{ {paper} }} body {{ width: 702px; }}</style>", 1)
    page = page.replace("</body>", f"<script>{MEASURE}</script></body>")
    done = in_chromium(page, tmp_path, "--dump-dom", "--window-size=782,1100", "--virtual-time-budget=20000")
    found = re.search(r"<title>measured (.*?)</title>", done.stdout)
    assert found, done.stderr[-500:]
    measured = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert measured["pages"] > 10 and measured["cut"] == [], measured


def test_it_prints_to_a_pdf(pictured: Path, tmp_path: Path) -> None:
    in_chromium(render_report([loaded(pictured)]), tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Subtype /Image") >= 3  # its pictures are on it
