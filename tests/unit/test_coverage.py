"""Intervals hold the truth about as often as they say; the whole table is `benchmarks/coverage.py`'s."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarking import load_benchmark

from streamcvit.evaluation.matrix import METRICS, summarise

coverage = load_benchmark("coverage")


@pytest.fixture(scope="module")
def told():
    return coverage.simulate(["keeps"], 2, 150, 100, [(5, 4)])["keeps"]


@pytest.mark.parametrize("name", [name for name in METRICS if "unseen" not in name])
def test_intervals_cover_on_small_and_larger_test_sets(told, name):
    for cell, found in told.items():
        assert 89 <= found[name]["covered"] <= 99.9, cell  # 300 streams: four standard deviations around 95


def test_a_learner_that_forgets_nothing_is_not_said_to_forget(told):
    for found in told.values():
        assert abs(found["maf_cross"]["bias"]) < 0.4 < found["maf_best"]["bias"]


def test_the_cross_fitted_form_is_what_its_definition_written_as_loops_gives():
    from streamcvit.evaluation.forgetting import halves

    rng = np.random.default_rng(3)
    rows = {task: 100.0 * (rng.random((5, 12)) < 0.6) for task in "ab"}
    trained = np.array([[1, 0], [0, 1], [1, 0], [0, 0], [0, 1]])
    seen = np.cumsum(trained, axis=0) > 0
    ways = []
    masks = [halves(12, np.random.default_rng((0, number, 1))) for number in range(2)]
    for way in range(4):
        by_chunk = []
        for t in range(1, 5):
            lost = []
            for number, points in enumerate(rows.values()):
                if seen[t - 1, number]:
                    choosing, measuring = masks[number][way], masks[number][way ^ 1]
                    first = int(seen[:, number].argmax())
                    best = first + int(points[first:t, choosing].mean(axis=1).argmax())
                    lost.append(points[best, measuring].mean() - points[t, measuring].mean())
            by_chunk.append(np.mean(lost))
        ways.append(np.mean(by_chunk))
    assert summarise(rows, None, trained, set(rows)).metrics["maf_cross"].value == pytest.approx(np.mean(ways))


def test_a_plain_form_has_the_interval_of_its_cross_fitted_one_and_holds_its_own_value():
    rng = np.random.default_rng(1)
    rows = {task: 100.0 * (rng.random((12, 30)) < 0.6) for task in "abc"}  # nothing is forgotten
    trained = np.zeros((12, 3), int)
    trained[0] = 1
    found = summarise(rows, None, trained, set(rows)).metrics
    for name in ("maf_best", "bwt_max"):
        assert found[name].low <= found[name].value <= found[name].high
    assert found["maf_best"].value > found["maf_cross"].high > found["maf_cross"].low
    assert found["maf_best"].low < 0.5 and found["bwt_max"].high > -0.5  # nothing forgotten is within both


def test_a_mean_over_one_task_has_that_tasks_interval():
    from streamcvit.evaluation.interval import score_interval

    points = np.repeat([[100.0, 0.0]], [17, 3], axis=1)
    trained = np.array([[1, 0]])
    found = summarise({"seen": points, "tested": points}, {"tested": points / 100}, trained, {"seen", "tested"}).metrics
    alone = score_interval(points[0])[0]
    for name in ("ap", "mfn", "ap_unseen", "mif_unseen"):
        assert found[name] == pytest.approx(alone), name
