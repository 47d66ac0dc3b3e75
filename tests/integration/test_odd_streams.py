"""Chunks in which nothing can be learned, and test samples that cannot be used: a run goes on with the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import boundaries

from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.write import write_stream
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.learning import commit, read_ledger
from streamcvit.monitoring import RunRecord
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.report.tables import happenings
from streamcvit.pipeline import builtin, load_config
from streamcvit.run import workers

TASKS = dict(list(embedded.TASKS.items())[:2])
CHUNKS = (1, 3, 4, 5)  # 0 and 2 are empty
LOST = 4


def write(folder: Path) -> StreamIndex:
    """Six chunks: two without samples, one (`LOST`) whose samples are all damaged."""
    of = {task: iter(embedded.train_samples(task, 8 * len(CHUNKS), seed=1)) for task in TASKS}
    rows = [(chunk, next(of[task])) for chunk in CHUNKS for task in TASKS for _ in range(8)]
    index = write_stream(folder, rows, TASKS, {task: embedded.test_samples(task, 4) for task in TASKS}, 0)
    with open(index.shards[0], "r+b") as shard:
        for position in range(*index.chunk_bounds(LOST)):
            shard.seek(int(index.column("json_offset")[position]) + 5)
            shard.write(b"\xff")
    return index


def config(out: Path, stream: Path, method: str) -> RunConfig:
    settings = ["stream.source=shards", f"stream.data={stream}", "evaluation.draws=20", "learner.batch_size=8"]
    settings += ["evaluation.zero_shot=true", "stream.bad_share=1"]  # one chunk is lost as a whole
    made = load_config(builtin("embedded"), settings, name="r", out=str(out))
    return made.model_copy(update={"methods": {method: made.methods[method]}})


@pytest.mark.parametrize("method", ["smolora", "replay"])
def test_a_stream_with_chunks_that_hold_nothing_finishes_and_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    index = write(tmp_path / "data")
    whole = config(tmp_path / "whole", tmp_path / "data", method)
    execute(whole, local=True)
    folder = whole.folder(method)
    digests = boundaries(folder)
    assert sorted(digests) == list(range(6))
    assert digests[2] == digests[1] != digests[0] and digests[4] == digests[3] != digests[5]
    versions = [commit.read_state(path)["version"] for path in commit.list_commits(folder / "commits")]
    assert versions == [1, 3, 4, 6, 8, 10]

    record = RunRecord.load(folder)
    assert record.finished and record.chunks_done == 6
    matrix = record.matrix()
    assert np.isnan(matrix[0]).all() and not np.isnan(matrix[1:]).any()
    assert (matrix[2] == matrix[1]).all() and (matrix[4] == matrix[3]).all()
    assert record.summary["seen"] == [[]] + [list(TASKS)] * 5
    assert record.summary["ap_by_chunk"][0] is None and record.summary["metrics"]["map"]["value"] is not None
    MetricStore().load(record)
    lost = {event["position"] for event in record.events_of("quarantine")}
    assert lost == set(range(*index.chunk_bounds(LOST)))
    assert sorted([*read_ledger(folder / "ledger")["position"].to_pylist(), *lost]) == list(range(len(index)))

    # Stopped behind each boundary, and resumed from it.
    parted, learn = config(tmp_path / "parted", tmp_path / "data", method), workers.LearnerWorker.learn_chunk
    for chunk in range(1, 6):

        def stopped(
            self: workers.LearnerWorker, method: str, asked: int, *orders: Any, last: int = chunk
        ) -> workers.ChunkReport:
            if asked == last:
                raise UserError("stopped here")
            return learn(self, method, asked, *orders)

        monkeypatch.setattr(workers.LearnerWorker, "learn_chunk", stopped)
        with pytest.raises(UserError, match="stopped here"):
            execute(parted, local=True, resume=chunk > 1)
    monkeypatch.undo()
    execute(parted, local=True, resume=True)
    assert boundaries(parted.folder(method)) == digests
    again = json.loads((parted.folder(method) / "summary.json").read_text())
    assert again == record.summary


def test_a_stream_without_any_sample_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    tests = {task: embedded.test_samples(task, 4) for task in TASKS}
    write_stream(tmp_path / "data", [], TASKS, tests, 0)
    with pytest.raises(UserError, match="no samples to learn"):
        execute(config(tmp_path, tmp_path / "data", "lora"), local=True)
    assert not (tmp_path / "r" / "config.yaml").exists()
    zero = config(tmp_path, tmp_path / "data", "zero-shot")
    execute(zero, local=True)
    assert RunRecord.load(zero.folder("zero-shot")).finished


def test_test_samples_that_cannot_be_used_are_left_out_named_once_and_the_rest_is_scored(tmp_path: Path) -> None:
    first, second = TASKS
    tests = {task: embedded.test_samples(task, 4) for task in TASKS}
    long = tests[first][2] = replace(tests[first][2], question="word " * 250_000)
    rows = [(number // 8, one) for number, one in enumerate(embedded.train_samples(first, 16, seed=1))]
    rows += [(2, one) for one in embedded.train_samples(second, 8, seed=1)]
    index = write_stream(tmp_path / "data", rows, TASKS, tests, 0).eval_index()
    damaged = int(np.flatnonzero(index.task_of == first)[0])
    with open(index.shards[0], "r+b") as shard:
        shard.seek(int(index.column("json_offset")[damaged]) + 5)
        shard.write(b"\xff")
    run = config(tmp_path, tmp_path / "data", "lora")
    execute(run, local=True)
    record = RunRecord.load(run.folder("lora"))
    assert record.finished and not np.isnan(record.matrix()[2]).any()
    assert {(row["task"], row["n"]) for row in record.scores if row["family"] == "strict"} == {(first, 2), (second, 4)}
    (event,) = record.events_of("test_unreadable")
    assert event["task"] == first and set(event["left_out"]) == {long.sample_id, tests[first][0].sample_id}
    assert event["left_out"][long.sample_id].startswith("length: ")
    assert event["left_out"][tests[first][0].sample_id].startswith("checksum: ")
    (shown,) = [line for line in happenings(record)["lines"] if line["event"] == "test_unreadable"]
    assert f"{long.sample_id}: length: " in shown["detail"]
    assert long.sample_id in (tmp_path / "r" / "report.html").read_text()


def test_a_test_set_of_which_nothing_can_be_read_is_said_before_anything_is_learned(tmp_path: Path) -> None:
    index = write(tmp_path / "data").eval_index()
    shard = Path(index.shards[0])
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match=f"not one of 4 test samples of task '{next(iter(TASKS))}' can be read"):
        execute(config(tmp_path, tmp_path / "data", "lora"), local=True)
    assert not (tmp_path / "r" / "config.yaml").exists()


def test_shards_whose_test_samples_lack_what_a_scorer_needs_are_refused_before_anything_is_learned(
    tmp_path: Path,
) -> None:
    task, spec = next(iter(TASKS.items()))
    rows = [(0, one) for one in embedded.train_samples(task, 8, seed=1)]
    tests = {task: [replace(one, meta={"choices": 5}) for one in embedded.test_samples(task, 4)]}
    write_stream(tmp_path / "data", rows, {task: replace(spec, scorer="choice")}, tests, 0)
    with pytest.raises(UserError, match='meta "choices" is 5.*a list of texts'):
        execute(config(tmp_path, tmp_path / "data", "lora"), local=True)
    assert not (tmp_path / "r" / "config.yaml").exists()


def test_what_an_import_leaves_out_stands_in_the_report_once_also_after_a_resumed_run(tmp_path: Path) -> None:
    rows = [{"question_id": k, "question": f"{k} more than 2?", "answer": str(k + 2)} for k in range(24)]
    rows[5]["image"] = "nowhere.png"
    for name, part in (("train", rows), ("test", rows[:4])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    settings = [f"stream.data={tmp_path}", "stream.source=files", "evaluation.draws=20", "stream.bad_share=0.1"]
    settings += ["stream.tasks.sums={train: train.jsonl, test: test.jsonl, format: qa}", "stream.scenario.chunks=2"]
    settings += [
        "stream.scenario.preset=generate",
        "stream.scenario.tasks_per_chunk=1",
        "stream.scenario.recurrence_gap=0",
    ]
    made = load_config(builtin("embedded"), settings, name="r", out=str(tmp_path / "out"))
    made = made.model_copy(update={"methods": {"lora": made.methods["lora"]}})
    page = execute(made, local=True)
    notes = [event["what"] for event in RunRecord.load(made.folder("lora")).events_of("stream")]
    assert any("nowhere.png" in note for note in notes), notes
    assert "the picture &#39;nowhere.png&#39; cannot be opened" in page.read_text()
    execute(made, local=True, resume=True)
    assert len(RunRecord.load(made.folder("lora")).events_of("stream")) == len(notes)
