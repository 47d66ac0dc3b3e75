"""docs/extending.md, done: a format, scorer, metric and strategy of one's own in a run killed, moved and resumed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from running import ROOT, boundaries
from streams import picture

from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.learning import OnlineLearner
from streamcvit.learning.durable import write_json
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.page import write_report
from streamcvit.pipeline import load_config
from streamcvit.preflight import check_settings
from streamcvit.run import own
from streamcvit.trained import learners

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = {name: code for _, name, code in re.findall(r"```(python|yaml)\n# ([a-z]+\.(?:py|yaml))(.*?)```", PAGE, re.S)}


class Killed(BaseException):
    """kill -9, as far as files are concerned."""


def laid_out(folder: Path) -> Path:
    """The page's files and data for them; the pipeline's path."""
    (folder / "data").mkdir(parents=True)
    for name, code in FILES.items():
        (folder / name).write_text(f"# {name}{code}")
    for part, count in (("train", 24), ("test", 6)):
        rows = []
        for number in range(count):
            file = f"{part}-{number}.png"
            (folder / "data" / file).write_bytes(picture(number + (part == "test") * 100))
            rows.append({"key": number, "file": file, "ask": f"Which colour is it, {number}?", "say": ["red"]})
            rows[-1]["near"] = ["pink"]
        if part == "train":
            rows[3].pop("say")  # 1 of 24: less than 5 %
        (folder / "data" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "mine.yaml"


def config(folder: Path, out: Path):
    return load_config(folder / "mine.yaml", [f"stream.data={folder / 'data'}", "evaluation.draws=50"], out=str(out))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the page."""
    folder = tmp_path_factory.mktemp("whole")
    laid_out(folder / "place")
    execute(config(folder / "place", folder / "runs"), local=True)
    return folder / "runs" / "mine"


def test_the_page_holds_a_file_of_each_kind() -> None:
    assert FILES.keys() == {"rows.py", "near.py", "worst.py", "slow.py", "mine.yaml"}


def test_rows_scores_weights_and_summary_come_from_the_pages_files(whole: Path) -> None:
    scores = pq.read_table(whole / "slow" / "scores.parquet").to_pylist()
    assert {row["metric"] for row in scores} == {"near.py:near"} and len(scores) == 2
    summary = json.loads((whole / "slow" / "summary.json").read_text())
    own, ap = summary["metrics"]["worst_task"], summary["metrics"]["ap"]  # of one task, whose Wilson interval AP has
    assert own["value"] == ap["value"] and ap["low"] <= own["low"] <= own["high"] <= ap["high"]
    lost = (whole / "stream.quarantined.jsonl").read_text()
    assert "'say' is missing or empty" in lost and lost.count("\n") == 1
    page = (whole / "report.html").read_text()
    assert re.search(r"<th class=\"n\">worst_task</th></tr></thead><tbody>\s<tr><td>slow</td><td class=\"n\">\d", page)
    numbers = MetricStore()
    numbers.load(RunRecord.load(whole / "slow"))
    value = summary["metrics"]["worst_task"]["value"]
    (gauge,) = [family for family in numbers.collect() if family.name.endswith("own_metric_points")]
    assert [(one.labels["metric"], one.value) for one in gauge.samples] == [("worst_task", value)]


def test_a_run_keeps_the_files_and_their_digests_and_reading_it_runs_none(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_modules", {})
    saved = load_config(whole / "config.yaml")
    write_report([RunRecord.load(whole / "slow")], tmp_path / "page.html")
    assert learners(whole) == ["slow"] and own._modules == {}
    assert set(saved.own_code) == {"rows.py", "near.py", "worst.py", "slow.py"}
    for name in saved.own_code:
        assert own.copy_of(saved, name).read_text() == f"# {name}{FILES[name]}"


def test_a_killed_run_that_was_moved_goes_on_to_the_bit_with_its_own_copies(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    laid_out(place)
    learn, left = OnlineLearner.learn, [4]

    def killed(self, batch):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return learn(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineLearner, "learn", killed)
        with pytest.raises(Killed):
            execute(config(place, tmp_path / "runs"), local=True)
    for name in FILES:
        (place / name).unlink()
    moved = tmp_path / "elsewhere" / "other"
    shutil.move(tmp_path / "runs" / "mine", moved)
    monkeypatch.setattr(own, "_sources", {})  # as in another process
    monkeypatch.setattr(own, "_modules", {})
    execute(load_config(moved / "config.yaml"), local=True, resume=True)
    assert boundaries(moved / "slow") == boundaries(whole / "slow") and len(boundaries(moved / "slow")) == 2
    ours, theirs = (json.loads((run / "slow" / "summary.json").read_text()) for run in (moved, whole))
    assert ours == theirs


def test_a_file_that_was_changed_is_named_on_resume_and_taken_where_that_is_allowed(
    whole: Path, tmp_path: Path
) -> None:
    laid_out(tmp_path / "place")
    shutil.copytree(whole, tmp_path / "runs" / "mine", symlinks=True)
    (tmp_path / "place" / "near.py").write_text("def near(predictions, samples):\n    return [0.0 for _ in samples]\n")
    record = tmp_path / "runs" / "mine" / "slow" / "run.json"
    write_json(record, json.loads(record.read_text()) | {"finished": None})
    with pytest.raises(UserError, match=r"own_code.near.py: [0-9a-f\"]{20}.* -> .*--allow-change own_code.near.py"):
        execute(config(tmp_path / "place", tmp_path / "runs"), local=True, resume=True)
    changed = config(tmp_path / "place", tmp_path / "runs")
    execute(changed, local=True, resume=True, allow=["own_code", "stream.data"])
    assert load_config(tmp_path / "runs" / "mine" / "config.yaml").own_code == changed.own_code
    assert own.copy_of(changed, "near.py").read_text().startswith("def near(predictions")
    assert '"key": "own_code.near.py"' in (record.parent / "events.jsonl").read_text()


def test_pre_flight_says_what_code_it_runs(tmp_path: Path) -> None:
    laid_out(tmp_path)
    told = check_settings(config(tmp_path, tmp_path), local=True)
    assert re.fullmatch(r"own code: slow.py \(SHA-256 \w{12}\): methods.slow.strategy is slow.py:SlowWeights", told[2])
