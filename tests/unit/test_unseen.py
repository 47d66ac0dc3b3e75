"""Tasks that the stream has not brought yet, or never brings: when they are scored, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from rowmaking import llava, qa, write
from streams import TASKS, picture, stream_samples, test_sets
from test_run_folder import answer, opened, report

from streamcvit.config import RunConfig
from streamcvit.data.scenario import PRESETS, task_incremental
from streamcvit.data.shards.write import write_stream
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.record import RunRecord
from streamcvit.run.drive import task_counts
from streamcvit.run.scores import ZERO
from streamcvit.run.stream import prepare_stream
from streamcvit.run.unseen import scored_at

LATE = np.array([[4, 0, 0], [0, 0, 0], [2, 4, 0], [0, 1, 0]])
"""Samples of three tasks in four chunks: the second comes in the third chunk, the last never."""


def config(unseen=None, zero_shot=False, source="files", tasks=None, **stream):
    tasks = tasks or {"a": {"test": "t"}}
    evaluation = {"unseen": unseen, "zero_shot": zero_shot}
    return RunConfig.model_validate({"stream": {"source": source, "tasks": tasks, **stream}, "evaluation": evaluation})


@pytest.mark.parametrize(
    ("unseen", "rows"),
    [
        ("never", ["---", "x--", "x--", "xx-", "xx-"]),
        (None, ["--x", "x--", "x--", "xx-", "xxx"]),
        ("ends", ["xxx", "x--", "xx-", "xx-", "xxx"]),
        ("every", ["xxx", "xxx", "xxx", "xxx", "xxx"]),
    ],
)
def test_unseen_tasks_are_scored_when_the_setting_says(unseen, rows):
    found = scored_at(config(unseen), LATE)
    assert ["".join("-x"[here] for here in row) for row in found.tolist()] == rows
    with_zero = scored_at(config(unseen, zero_shot=True), LATE)
    assert with_zero[0].all() and np.array_equal(with_zero[1:], found[1:])


def test_the_built_in_tasks_and_what_learns_nothing_are_scored_as_ever():
    assert np.array_equal(scored_at(config(source="embedded"), LATE), scored_at(config("never"), LATE))
    assert scored_at(config("never"), LATE[:0]).tolist() == [[True] * 3]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("stream") / "stream", stream_samples(), TASKS, test_sets(), 0)


def scored(folder):
    for chunk in (ZERO, *range(len(folder.counts))):
        for job in folder.missing(None if chunk == ZERO else report(chunk)):
            folder.add(answer(job))
    folder.write_scores()
    return RunRecord.load(folder.path)


def test_scores_of_unseen_tasks_stand_apart_and_leave_every_metric_as_it_is(tmp_path, index):
    """Matrix, forgetting, best scores and /metrics speak of what was learned; `shape` comes in the third chunk."""
    plain, every = (
        scored(opened(tmp_path / name, index, unseen=unseen)) for name, unseen in (("a", "never"), ("b", "every"))
    )
    kinds = {(row["chunk"], row["task"]): row["kind"] for row in every.scores}
    assert kinds[0, "shape"] == kinds[1, "shape"] == "unseen" and kinds[2, "shape"] == "boundary"
    assert kinds[-1, "shape"] == kinds[-1, "colour"] == "zero" and len(kinds) == 10
    assert np.isnan(every.matrix()[:2, 1]).all() and not np.isnan(every.matrix(unseen=True)).any()
    np.testing.assert_array_equal(every.matrix(), plain.matrix())
    fwt = every.summary["metrics"].pop("fwt")
    assert fwt == {"value": 0.0, "low": 0.0, "high": 0.0}
    for key in ("metrics", "forgetting", "ap_by_chunk", "seen"):
        assert every.summary[key] == plain.summary[key], key
    best = []
    for record in (plain, every):
        store = MetricStore()
        store.load(record)
        best.append(store._values["task_best_score_points"])
    assert best[0] == best[1]


def test_a_boundary_says_the_mean_of_seen_tasks(tmp_path, index):
    folder = opened(tmp_path, index, unseen="every")
    scored(folder)
    assert list(folder.scores.means(0)) == ["colour"] and list(folder.scores.means(2)) == ["colour", "shape"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training rows of two tasks of the published stream, and test rows of three."""
    root = tmp_path_factory.mktemp("data")
    for number in range(3):
        (root / f"{number}.png").write_bytes(picture(number, 32))
    write(root, "train.json", [llava(number) for number in range(40)])
    write(root, "test.json", [qa(number) for number in range(4)])
    return root


PUBLISHED = ("textcaps", "places365", "fin", "chartqa", "grounding", "imagenet", "ad", "gqa", "rs")


@pytest.mark.parametrize("preset", ["generate", "task-incremental", *PRESETS])
def test_a_task_that_is_only_tested_is_legal_in_every_plan_and_has_no_chunk(tmp_path, data, preset):
    trained = ("one", "two") if preset in ("generate", "task-incremental") else PUBLISHED
    files = {task: {"train": "train.json", "test": "test.json"} for task in trained}
    tasks = {"first": {"test": "test.json"}, **files, "last": {"test": "test.json"}}
    scenario = {"preset": preset, "tasks_per_chunk": 1, "recurrence_gap": 0}
    scenario |= {"chunks": 3} if preset == "generate" else {}
    run = config(None, tasks=tasks, data=str(data), scenario=scenario)
    found = prepare_stream(run, tmp_path / "stream")
    counts = task_counts(run, found, "smolora")
    assert counts[:, [0, -1]].sum() == 0 and counts.sum() == len(found) > 0
    if preset in ("generate", "task-incremental"):
        assert (counts.sum(axis=1) > 0).all() and len(counts) == (3 if preset == "generate" else 2)
    there = scored_at(run, counts)
    assert there[0].tolist() == [True, *[False] * len(trained), True] and there[-1, [0, -1]].all()


def test_one_task_a_chunk_has_no_chunk_for_a_task_without_samples():
    assert task_incremental({"a": 3, "b": 0, "c": 2}).counts.tolist() == [[3, 0, 0], [0, 0, 2]]
