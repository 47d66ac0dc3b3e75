"""The report: complete, self-contained, safe to open whatever the data holds, and light."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from synthetic_run import TASKS, write_run, write_runs

from streamcvit.comparison import compare_runs
from streamcvit.errors import UserError
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.charts import nice_ticks, number, shorten
from streamcvit.monitoring.report.figures import forgetting_by_chunk, same_plan
from streamcvit.monitoring.report.page import render_report, write_report
from streamcvit.monitoring.report.plandrawing import plan_svg
from streamcvit.monitoring.report.tables import (
    csv_table,
    differing_settings,
    final_scores,
    findings,
    forgotten_answers,
    headline,
    latex_table,
)
from streamcvit.monitoring.runs import compared
from streamcvit.monitoring.verdict import Gap, Verdict

HOSTILE = (
    """</title></style></script><script>document.title='pwned'</script><img src="http://evil.example/x" """
    """onerror="document.title='pwned'">\t'"&\u202e{{ 7*7 }}"""
)
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "circle", "rect", "line", "polygon"}


class Page(HTMLParser):
    """Tags and text of a page; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_runs(tmp_path_factory.mktemp("runs"), ("smolora", "joint", "lora", "zero-shot"))


@pytest.fixture(scope="module")
def records(runs: list[Path]) -> list[tuple[str, RunRecord]]:
    return compared([RunRecord.load(folder) for folder in runs])


@pytest.fixture(scope="module")
def verdict(runs: list[Path]) -> Verdict:
    return compare_runs([RunRecord.load(folder) for folder in runs]).verdict({"digit": (10.0, 12.5)})


@pytest.fixture(scope="module")
def page(records: list[tuple[str, RunRecord]], verdict: Verdict) -> str:
    return render_report([record for _, record in records], "A title", verdict=verdict)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_run(
        tmp_path_factory.mktemp("hostile") / "run",
        "smolora",
        tasks=(HOSTILE, "b</svg><script>document.title='pwned'</script>", "c"),
        prediction=HOSTILE,
        chunks=4,
    )
    for name in ("run.json", "config.yaml"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"smolora"', json.dumps(HOSTILE)).replace("embedded", "<script>x"))
    event = {"event": "quarantine", "position": HOSTILE, "sample_id": HOSTILE, "reason": HOSTILE, "detail": HOSTILE}
    other = {"event": HOSTILE, "time": HOSTILE, "actor": HOSTILE}
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n" + json.dumps(other) + "\n")
    return render_report([RunRecord.load(folder)], HOSTILE)


def in_chromium(page: str, tmp_path: Path, *flags: str) -> subprocess.CompletedProcess:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to render the page with")
    (tmp_path / "page.html").write_text(page)
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        *flags,
        (tmp_path / "page.html").as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_every_section_is_there_and_tags_nest(page: str) -> None:
    parsed = Page(page)
    sections = [attrs["id"] for tag, attrs in parsed.tags if tag == "section"]
    assert sections == [
        *("results", "stream", "forgetting", "matrix", "prequential", "following"),
        *("routing", "timing", "scorers", "flips", "answers", "recoveries", "events", "setup", "glossary"),
    ]
    links = {attrs["href"] for tag, attrs in parsed.tags if tag == "a"}
    assert links <= {f"#{name}" for name in sections}
    for task in TASKS:
        assert task in parsed.text


def test_ids_are_unique_and_what_is_controlled_exists(page: str) -> None:
    tags = Page(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for key in ("aria-controls", "aria-labelledby"):
        assert {attrs[key] for _, attrs in tags if key in attrs} <= set(ids)


@pytest.mark.parametrize("which", ["page", "hostile_page"])
def test_the_page_asks_the_network_for_nothing(which: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(which)
    for tag, attrs in Page(text).tags:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "form", "use"), tag
        assert "src" not in attrs and "srcset" not in attrs and "xlink:href" not in attrs
        assert not any(name.startswith("on") for name in attrs)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize("which", ["page", "hostile_page"])
def test_only_the_pages_own_script_may_run(which: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(which)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    policy = next(
        attrs["content"] for _, attrs in Page(text).tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_hostile_strings_are_shown_as_they_are(hostile_page: str) -> None:
    parsed = Page(hostile_page)
    assert " ".join(HOSTILE.split()) in parsed.text
    assert "evil.example" in html.unescape(hostile_page)
    assert "49" not in next(word for word in parsed.words if "{{" in word)
    assert [tag for tag, _ in parsed.tags].count("script") == 1


def test_hostile_strings_do_nothing_in_a_browser(hostile_page: str, tmp_path: Path) -> None:
    done = in_chromium(hostile_page, tmp_path, "--dump-dom")
    assert "<title>pwned" not in done.stdout
    assert '<html lang="en" class="js">' in done.stdout


def test_the_page_renders_in_a_browser_without_complaint(page: str, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    done = in_chromium(page, tmp_path, f"--screenshot={shot}", "--window-size=1200,3000")
    assert "CONSOLE" not in done.stderr
    # A blank page of this size is a few kB.
    assert shot.stat().st_size > 100_000


def test_the_page_is_light_and_the_same_for_the_same_runs(page: str, records: list, verdict: Verdict) -> None:
    assert len(page.encode()) < 600_000
    assert render_report([record for _, record in records], "A title", verdict=verdict) == page


def test_headline_shows_the_summary_and_marks_the_best(records: list, verdict: Verdict) -> None:
    rows = {row["label"]: row for row in headline(records, verdict)}
    assert list(rows) == ["zero-shot", "smolora", "lora", "joint"]
    for label, record in records:
        for cell, name in zip(
            rows[label]["cells"], ("ap", "map", "bwt_first", "bwt_last", "maf_best", "mif"), strict=True
        ):
            value, low, high = record.metric(name)
            assert cell.text == number(value)
            assert cell.interval == f"{number(low)} to {number(high)}"
            assert 0 <= cell.left <= cell.middle <= cell.right <= 100
    # All answers of these runs keep to their form, so MIF is not to be told apart.
    assert [cell.best for cell in rows["smolora"]["cells"]] == [True, True, True, True, True, False]
    assert rows["lora"]["cells"][0].second
    assert not any(cell.best for label in ("zero-shot", "lora", "joint") for cell in rows[label]["cells"])
    assert "upper bound" in rows["joint"]["note"]
    assert not any(cell.best or cell.second for row in headline(records) for cell in row["cells"])


def test_the_final_scores_stand_beside_what_answers_without_a_look_would_get(records: list, verdict: Verdict) -> None:
    rows = {row["task"]: row for row in final_scores(records, verdict)}
    assert list(rows) == list(TASKS)
    assert rows["digit"]["bases"] == ["10.0", "12.5"] and rows["shape"]["bases"] == ["–", "–"]
    assert [cell.text for cell in rows["shape"]["cells"]] == [number(r.matrix()[-1, 0]) for _, r in records]
    assert final_scores(records) == []


def test_findings_say_what_the_paired_difference_says(records: list, verdict: Verdict) -> None:
    assert "above lora (paired difference +" in findings(records, verdict)[0]
    assert "above" not in findings(records)[0]
    close = [
        (name, RunRecord(Path(name), run={"method": name, "finished": "x"}, summary={"metrics": {"ap": ap}}))
        for name, ap in (("a", {"value": 50, "low": 45, "high": 55}), ("b", {"value": 49, "low": 44, "high": 54}))
    ]
    gaps = {("ap", 0, 1): Gap(1.0, -0.5, 2.5, decided=False)}
    said = findings(close, Verdict(gaps=gaps))[0]
    assert said.endswith("not to be told from b (paired difference +1.0, 95 % interval −0.5 to +2.5).")


def test_runs_at_different_places_of_the_stream_are_not_ranked(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "lora", "lora"), write_run(tmp_path / "smolora", "smolora", done=4)]
    runs = [(folder.name, RunRecord.load(folder)) for folder in folders]
    assert "above" not in " ".join(findings(runs))
    assert not any(cell.best for row in headline(runs) for cell in row["cells"])


def test_forgetting_by_chunk_is_the_best_before_less_now() -> None:
    record = RunRecord(Path("x"), tasks=["a", "b"], plan=np.array([[1, 0], [0, 1], [0, 1]]))
    record.scores = [
        {"kind": "boundary", "family": "strict", "task": task, "chunk": chunk, "score": score}
        for task, chunk, score in [("a", 0, 80.0), ("a", 1, 50.0), ("a", 2, 90.0), ("b", 1, 60.0), ("b", 2, 40.0)]
    ]
    np.testing.assert_array_equal(forgetting_by_chunk(record), [np.nan, 30.0, (-10.0 + 20.0) / 2])


def test_an_answer_once_right_and_now_wrong_is_shown(records: list) -> None:
    rows = forgotten_answers(dict(records)["lora"])
    lost = [row for row in rows if row["task"] == "digit"]
    assert lost
    for row in lost:
        assert row["before"] == row["reference"] and row["now"] != row["reference"]


@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_run_in_progress_has_a_report(tmp_path: Path, done: int) -> None:
    folder = write_run(tmp_path / "smolora", "smolora", done=done)
    text = Page(render_report([RunRecord.load(folder)])).text
    assert "in progress" in text and f"chunk {done} of 15" in text


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"method": "lora"}')
    assert "No scores yet" in Page(render_report([RunRecord.load(tmp_path)])).text


def test_runs_of_different_streams_are_said_not_to_compare(tmp_path: Path, records: list) -> None:
    other = RunRecord.load(write_run(tmp_path / "other", "lora", per_chunk=32))
    assert same_plan(records)
    assert not same_plan([*records, ("other", other)])
    text = Page(render_report([*(record for _, record in records), other])).text
    assert "did not learn the same stream" in text


def test_settings_that_differ_are_listed_each_runs_own_and_no_others(records: list) -> None:
    rows = dict(differing_settings(records))
    assert set(rows) == {"method.adapter", "method.lr", "method.order", "method.options.router"}
    assert rows["method.lr"] == ["–", "0.002", "0.0003", "0.002"]


def test_runs_scored_once_have_a_report_beside_the_others(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "zero-shot", "zero-shot", once=True),
        write_run(tmp_path / "joint", "joint", once=True),
        write_run(tmp_path / "lora", "lora"),
    ]
    text = Page(render_report([RunRecord.load(folder) for folder in folders])).text
    assert "15 chunks, 11 tasks, 960 samples" in text
    assert "did not learn the same stream" not in text
    assert "in progress" not in text


def test_latex_and_csv_hold_the_table_and_escape_names(records: list) -> None:
    record = records[1][1]
    verdict = Verdict(best={"ap": frozenset({2})}, second={"ap": frozenset({0})})
    lines = latex_table([("a_b & 5%", record), *records], verdict).splitlines()
    assert lines[4].startswith(r"a\_b \& 5\% & \underline{")
    assert rf"\textbf{{{record.metric('ap')[0]:.1f}}}" in lines[6]
    assert csv_table([("=cmd()", record)]).splitlines()[1].startswith("'=cmd(),ap,")


def test_write_report_writes_one_file(runs: list[Path], tmp_path: Path) -> None:
    out = write_report([RunRecord.load(run) for run in runs], tmp_path / "report.html", "T & U")
    assert "<title>T &amp; U</title>" in out.read_text()
    assert list(tmp_path.iterdir()) == [out]


def test_a_report_that_cannot_be_written_is_a_users_mistake(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_report([RunRecord.load(runs[0])], tmp_path / "missing" / "report.html")
    with pytest.raises(UserError, match="no run"):
        render_report([])


@pytest.mark.parametrize(
    ("low", "high", "n", "ticks"),
    [(0, 100, 5, [0, 50, 100]), (0, 63, 5, [0, 20, 40, 60, 80]), (-3, 7, 5, [-5, 0, 5, 10]), (0, 0, 3, [0, 0.5, 1])],
)
def test_ticks_are_round_and_cover_the_data(low: float, high: float, n: int, ticks: list[float]) -> None:
    assert nice_ticks(low, high, n) == ticks


def test_the_plan_is_drawn_as_a_file_that_any_svg_reader_takes() -> None:
    root = ElementTree.fromstring(plan_svg(["a<b>&", "c"], np.array([[10, 0], [3, 7]])))
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words[1:] == ["1", "2", "a<b>&", "10", "3", "13", "c", "7", "7"]


def test_numbers_are_for_people() -> None:
    assert [number(v) for v in (1.25, -3.04, -0.01, None, float("nan"))] == ["1.2", "−3.0", "0.0", "–", "–"]
    assert shorten("abcdefgh", 5) == "abcd…"
