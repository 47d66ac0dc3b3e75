"""A run folder over restarts: what is still to be scored, one answer a question, and no torn lines."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from streams import TASKS, stream_samples, test_sets

from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError
from streamcvit.evaluation import Disagreement
from streamcvit.learning import commit
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.extras import audited
from streamcvit.run import audits
from streamcvit.run.boundaries import boundary_report, boundary_reports
from streamcvit.run.folder import RunFolder
from streamcvit.run.messages import ChunkReport, Job, TaskScores
from streamcvit.run.predictions import read_predictions
from streamcvit.run.scores import ZERO

NAMES = {task: [one.sample_id for one in samples] for task, samples in test_sets().items()}
COUNTS = np.array([[10, 0], [10, 0], [5, 5], [5, 5]])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> StreamIndex:
    return write_stream(tmp_path_factory.mktemp("stream") / "stream", stream_samples(), TASKS, test_sets(), 0)


def opened(root: Path, index: StreamIndex, counts: np.ndarray = COUNTS, **evaluation: Any) -> RunFolder:
    """The folder as a start, or a restart, of the run opens it."""
    config = RunConfig.model_validate({"name": "r", "out": str(root), "evaluation": evaluation})
    return RunFolder(config, "lora", index, counts, "base")


def report(chunk: int, digest: str = "") -> ChunkReport:
    return ChunkReport("lora", chunk, f"commits/{chunk}", 5 * (chunk + 1), digest or f"digest-{chunk}", {"samples": 10})


def answer(job: Job, text: str = "red", digest: str | None = None) -> TaskScores:
    points = np.array([100.0, 0.0, 100.0])
    return TaskScores(
        job, job.digest if digest is None else digest, NAMES[job.task], [text] * 3, ["red"] * 3, points, None,
        np.ones(3, bool), 0.5,
    )  # fmt: skip


def test_a_boundary_not_yet_scored_is_scored_after_a_restart_and_only_the_rest_of_it(
    tmp_path: Path, index: StreamIndex
) -> None:
    folder = opened(tmp_path, index)
    folder.chunk_done(report(2))
    jobs = folder.missing(report(2))
    assert [job.task for job in jobs] == ["colour", "shape"]
    folder.add(answer(jobs[0]))
    again = opened(tmp_path, index)
    assert again.missing(report(2)) == jobs[1:]
    again.add(answer(jobs[1]))
    assert opened(tmp_path, index).missing(report(2)) == []


def test_an_answer_given_twice_is_kept_once_and_the_first_stands(tmp_path: Path, index: StreamIndex) -> None:
    folder = opened(tmp_path, index)
    (job,) = folder.missing(report(0))
    folder.add(answer(job))
    folder.add(answer(job, "blue"))
    opened(tmp_path, index).add(answer(job, "green"))
    folder = opened(tmp_path, index)
    folder.write_scores()
    rows = pq.read_table(folder.path / "scores.parquet").to_pylist()
    assert [(row["chunk"], row["task"], row["digest"]) for row in rows] == [(0, "colour", "digest-0")]
    (kept,) = folder.path.glob("predictions/*/*.parquet")
    assert pq.read_table(kept)["prediction"].to_pylist() == ["red"] * 3


def test_an_answer_of_other_weights_than_the_snapshots_is_refused(tmp_path: Path, index: StreamIndex) -> None:
    folder = opened(tmp_path, index)
    (job,) = folder.missing(report(0))
    with pytest.raises(UserError, match="other weights"):
        folder.add(answer(job, digest="stale"))
    assert folder.missing(report(0)) == [job]
    assert list(folder.path.glob("predictions/**/*.parquet")) == []


def test_a_boundary_learned_again_to_other_weights_is_scored_again_and_has_one_row(
    tmp_path: Path, index: StreamIndex
) -> None:
    """Where the newest commit was lost, and learning again gave other roundings (another device)."""
    folder = opened(tmp_path, index)
    folder.add(answer(folder.missing(report(0))[0]))
    folder = opened(tmp_path, index)
    (job,) = folder.missing(report(0, "other"))
    folder.add(answer(job, "blue"))
    for one in (folder, opened(tmp_path, index)):
        one.write_scores()
        rows = pq.read_table(one.path / "scores.parquet").to_pylist()
        assert [(row["chunk"], row["digest"]) for row in rows] == [(0, "other")]
        assert one.missing(report(0, "other")) == []


def test_the_audit_is_of_the_last_boundary_alone_and_outlives_a_restart(tmp_path: Path, index: StreamIndex) -> None:
    folder = opened(tmp_path, index)
    assert {job.audit for job in folder.missing(report(2))} == {0}
    jobs = folder.missing(report(3))
    assert [job.audit for job in jobs] == [8, 8]
    differ = [Disagreement(NAMES["colour"][1], "red", "x" * 999)]
    folder.add(dataclasses.replace(answer(jobs[0]), audited=3, differ=differ))
    again = opened(tmp_path, index)
    again.add(dataclasses.replace(answer(jobs[0]), audited=3, differ=differ))
    again.add(dataclasses.replace(answer(jobs[1]), audited=3))
    again.write_scores()
    audit = json.loads((again.path / "summary.json").read_text())["audit"]
    assert audit["asked"] == 6
    assert audit["differ"] == [
        {"task": "colour", "sample_id": NAMES["colour"][1], "batched": "red", "alone": "x" * audits.SHOWN}
    ]
    told = audits.line(audit)
    assert told.startswith(
        f"audit: 6 answers given again one by one, 1 of them differ; the first: colour/{NAMES['colour'][1]}"
    )
    events = [json.loads(line) for line in (again.path / "events.jsonl").read_text().splitlines()]
    assert [(event["task"], event["asked"]) for event in events if event["event"] == "audit"] == [
        ("colour", 3),
        ("shape", 3),
    ]
    (row,) = audited([("lora", RunRecord.load(again.path))])
    assert (row["asked"], len(row["differ"])) == (6, 1)


@pytest.mark.parametrize("count", [0, 1, 16, 24])
def test_an_audit_is_spread_evenly_over_the_tasks_and_what_is_over_is_drawn_by_the_seed(count: int) -> None:
    tasks = [f"task-{number}" for number in range(11)]
    found = audits.shares(tasks, count, 0)
    assert sum(found.values()) == count and set(found.values()) <= {count // 11, count // 11 + 1}
    assert found == audits.shares(tasks, count, 0)
    assert count % 11 == 0 or any(found != audits.shares(tasks, count, seed) for seed in range(1, 9))


def test_a_damaged_prediction_file_is_named_and_asked_for_again(tmp_path: Path, index: StreamIndex) -> None:
    folder = opened(tmp_path, index)
    (job,) = folder.missing(report(0))
    folder.add(answer(job))
    (path,) = folder.path.glob("predictions/*/*.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    folder = opened(tmp_path, index)
    assert folder.missing(report(0)) == [job]
    assert "colour.parquet" in (folder.path / "events.jsonl").read_text()
    folder.add(answer(job))
    assert opened(tmp_path, index).missing(report(0)) == []


def test_no_bit_of_a_prediction_file_can_flip_and_be_read_as_other_predictions(
    tmp_path: Path, index: StreamIndex
) -> None:
    folder = opened(tmp_path, index)
    folder.add(answer(folder.missing(report(0))[0]))
    (path,) = folder.path.glob("predictions/*/*.parquet")
    whole, table, found = path.read_bytes(), read_predictions(path), 0
    bits = range(0, 8 * len(whole), 13)
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert read_predictions(path).equals(table)
        except ValueError:
            found += 1
    assert found > len(bits) // 2


def test_a_commit_whose_state_json_is_damaged_is_told_of_by_the_events(tmp_path: Path, index: StreamIndex) -> None:
    folder = opened(tmp_path, index)
    bad = {"position": 3, "sample_id": "s3", "reason": "image", "detail": "cut short"}
    reports = [dataclasses.replace(report(chunk), quarantined=[bad] if chunk == 1 else []) for chunk in range(3)]
    for one in reports:
        state = {"boundary": True, "chunk": one.chunk, "digest": one.digest, "info": one.info}
        commit.write_commit(
            folder.path / "commits", one.version, lambda _: None, {**state, "quarantined": one.quarantined}
        )
    for one in reports[:2]:
        folder.chunk_done(one)
    told = boundary_reports(folder.path, "lora")
    (folder.path / "commits" / "00000010" / "state.json").write_text("{")
    again = boundary_reports(folder.path, "lora")
    assert list(again) == [0, 1, 2]
    assert "00000010: damaged commit" in again[1].damaged[0]
    assert {chunk: dataclasses.replace(one, damaged=()) for chunk, one in again.items()} == told
    (folder.path / "commits" / "00000015" / "state.json").unlink()  # killed before it was noted
    assert list(boundary_reports(folder.path, "lora")) == [0, 1]
    with pytest.raises(UserError, match=r"00000010, .*00000015: the commit that ends chunk 2 is damaged or lost"):
        boundary_report(folder.path, "lora", 2)


def test_a_chunk_is_noted_once_and_a_line_cut_by_a_kill_is_written_anew(tmp_path: Path, index: StreamIndex) -> None:
    folder = opened(tmp_path, index)
    folder.chunk_done(report(0))
    folder.chunk_done(report(1))
    path = folder.path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    for _ in range(2):
        folder = opened(tmp_path, index)
        folder.chunk_done(report(0))
        folder.chunk_done(report(1))
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["chunk"] for event in events] == [0, 1]


def written(folder: RunFolder, always: bool = True) -> dict[str, Any]:
    folder.write_scores(always)
    return json.loads((folder.path / "summary.json").read_text())


def test_a_sample_that_could_not_be_read_at_one_boundary_is_left_out_of_that_alone(
    tmp_path: Path, index: StreamIndex
) -> None:
    folder = opened(tmp_path, index)
    folder.add(answer(folder.missing(report(0))[0]))
    (job,) = folder.missing(report(1))
    whole = answer(job)
    lost = {"sample_ids": whole.sample_ids[:2], "predictions": ["red"] * 2, "references": ["red"] * 2}
    folder.add(dataclasses.replace(whole, points=whole.points[:2], follows=whole.follows[:2], **lost))
    once = written(folder)
    assert once["matrix"] == [[pytest.approx(200 / 3), None], [50.0, None]]
    assert written(opened(tmp_path, index)) == once


def test_what_is_left_out_of_a_task_is_noted_once_and_again_where_it_is_more(
    tmp_path: Path, index: StreamIndex
) -> None:
    for chunk, left_out in enumerate([{"x": "length: long"}] * 3 + [{"x": "length: long", "y": "checksum: other"}]):
        folder = opened(tmp_path, index)
        folder.add(dataclasses.replace(answer(folder.missing(report(chunk))[0]), left_out=left_out))
    events = [json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines()]
    assert [(event["task"], list(event["left_out"])) for event in events] == [("colour", ["x"]), ("colour", ["x", "y"])]


def test_scores_before_any_learning_have_a_summary_before_the_first_chunk_is_scored(
    tmp_path: Path, index: StreamIndex
) -> None:
    folder = opened(tmp_path, index, zero_shot=True)
    for job in folder.missing(None):
        folder.add(answer(job))
    assert written(folder)["matrix"] == [[None, None]]
    assert folder.scores.means(ZERO) == {"colour": pytest.approx(200 / 3), "shape": pytest.approx(200 / 3)}


def test_a_summary_that_takes_long_is_not_written_all_the_time_and_yet_in_the_end(
    tmp_path: Path, index: StreamIndex
) -> None:
    folder = opened(tmp_path, index)
    folder.add(answer(folder.missing(report(0))[0]))
    assert len(written(folder, False)["matrix"]) == 1
    folder.add(answer(folder.missing(report(1))[0]))
    folder._took = 60.0
    assert len(written(folder, False)["matrix"]) == 1
    assert len(written(folder)["matrix"]) == 2
    assert len(pq.read_table(folder.path / "scores.parquet")) == 2


def test_a_prediction_file_that_is_damaged_again_is_named_again(tmp_path: Path, index: StreamIndex) -> None:
    folder = opened(tmp_path, index)
    for times in (1, 2, 3):
        for job in folder.missing(report(0)):
            folder.add(answer(job))
        (path,) = (folder.path / "predictions").glob("*/[!.]*.parquet")
        path.write_bytes(path.read_bytes()[:-9])
        folder = opened(tmp_path, index)
        assert (folder.path / "events.jsonl").read_text().count('"damaged"') == times


def test_a_changed_stream_has_its_plan_written_anew(tmp_path: Path, index: StreamIndex) -> None:
    config = RunConfig(name="r", out=str(tmp_path))
    RunFolder(config, "lora", index, COUNTS[:2], "base")
    folder = RunFolder(config, "lora", index, COUNTS, "base")
    folder.adopt({"index": ("one", "other")}, "base")
    assert json.loads((folder.path / "plan.json").read_text())["chunks"] == COUNTS.tolist()


def test_scores_before_any_learning_belong_to_the_base_that_gave_them(tmp_path: Path, index: StreamIndex) -> None:
    folder = opened(tmp_path, index, zero_shot=True)
    for job in folder.missing(None):
        folder.add(answer(job))
    assert not opened(tmp_path, index, zero_shot=True).missing(None)
    other = RunFolder(folder.config, "lora", index, COUNTS, "another base")
    assert [job.task for job in other.missing(None)] == list(TASKS)


@pytest.mark.parametrize("what", ["predictions", "scores.parquet", "run.json"])
def test_a_full_disk_leaves_no_draft_behind(
    tmp_path: Path, index: StreamIndex, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = opened(tmp_path, index)
    (job,) = folder.missing(report(0))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        match what:
            case "predictions":
                folder.add(answer(job))
            case "scores.parquet":
                folder.write_scores()
            case "run.json":
                folder.finish()
    assert not list(folder.path.rglob(".*"))
