"""Differences of two runs on the same samples: what they decide, what they do not, and how often."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarking import load_benchmark

from streamcvit.errors import UserError
from streamcvit.evaluation import summarise
from streamcvit.evaluation.bootstrap import student
from streamcvit.evaluation.paired import (
    FEWEST,
    Points,
    differences,
    over_seeds,
    sample,
    seeds_apart,
)

PLAN = np.array([[8, 0], [0, 8], [0, 8]])


def points(scores: dict[str, np.ndarray], zero: dict[str, np.ndarray] | None = None) -> Points:
    forms = {task: np.where(np.isnan(table), np.nan, table > 20) for task, table in scores.items()}
    return Points(scores, forms, PLAN if len(scores["a"]) == 3 else np.ones((1, 2), int), list(scores), zero or {})


def drawn(seed: int, n: int = 40, lift: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tables = {task: 100.0 * (rng.random((3, n)) < 0.4 + lift) for task in ("a", "b")}
    tables["b"][0] = np.nan
    return tables


def held(one: Points, other: Points, draws: int = 200):
    return differences(one, other, (sample(one, draws), sample(other, draws)))


def test_every_metrics_difference_is_that_of_the_summaries() -> None:
    one, other = points(drawn(0, lift=0.5)), points(drawn(1))
    by_metric, by_task = held(one, other)
    summaries = [summarise(p.scores, p.following, PLAN, p.in_average, draws=10).metrics for p in (one, other)]
    assert {"ap", "map", "bwt_first", "bwt_last", "maf_best", "mif"} <= set(by_metric)
    for name, found in by_metric.items():
        assert found.estimate.value == pytest.approx(summaries[0][name].value - summaries[1][name].value)
        assert found.estimate.low <= found.estimate.value <= found.estimate.high
    for task, found in by_task.items():
        assert found.estimate.value == pytest.approx(one.scores[task][-1].mean() - other.scores[task][-1].mean())
    assert by_metric["ap"].decided and by_metric["ap"].reversed().estimate.high == -by_metric["ap"].estimate.low


def test_a_run_is_not_told_from_itself_or_from_its_equal() -> None:
    one = points(drawn(0))
    for found in (*held(one, points(drawn(0)))[0].values(), *held(one, one)[1].values()):
        assert found.estimate[:2] == (0.0, 0.0) and not found.decided


def test_scores_before_learning_give_a_difference_of_forward_transfer() -> None:
    early = [drawn(seed) for seed in (0, 1)]
    for table in early:
        table["b"][0] = 100.0
    zero = {"b": np.zeros(40)}
    found = held(points(early[0], zero), points(early[1], {"b": np.full(40, 50.0)}))[0]["fwt"]
    assert found.estimate.value == pytest.approx(50.0) and found.decided


@pytest.mark.parametrize(("differing", "decided"), [(FEWEST - 1, False), (FEWEST, True)])
def test_fewer_samples_than_a_sign_test_needs_decide_nothing(differing: int, decided: bool) -> None:
    one = {"a": np.zeros((1, 400)), "b": np.zeros((1, 400))}
    other = {task: table.copy() for task, table in one.items()}
    one["a"][0, :differing] = 100.0
    by_metric, by_task = held(points(one), points(other), draws=1000)
    assert by_task["a"].estimate.low > 0 or not decided
    assert by_task["a"].decided is decided and by_metric["ap"].decided is decided
    assert not by_task["b"].decided


def test_tasks_outside_the_average_count_in_no_average() -> None:
    one = {task: np.full((1, 40), 50.0) for task in ("a", "b")}
    other = {"a": one["a"] - 7.0, "b": one["b"] + 30.0}
    held_in = [Points(p, p, np.ones((1, 2), int), ["a"], {}) for p in (one, other)]
    assert held(*held_in)[0]["ap"].estimate.value == pytest.approx(7)


def test_other_samples_are_refused() -> None:
    one, other = points(drawn(0, n=30)), points(drawn(0, n=31))
    with pytest.raises(UserError, match="sample by sample"):
        held(one, other)


def test_the_pairing_finds_what_overlapping_intervals_hide_and_cries_no_wolf() -> None:
    """Most of an interval is which samples are hard, and that is the same for both runs."""
    rates = load_benchmark("pairing").rates
    paired, apart = rates(3.0, trials=40)
    assert paired >= 0.5 and apart <= 0.1
    assert rates(0.0, trials=40)[0] <= 0.15  # 5 % are expected


def test_the_quantiles_of_student_are_those_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}
    assert {n: round(student(n), 3) for n in table} == table


def test_seeds_are_taken_together_by_students_interval() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.value == 2.0 and found.high - 2.0 == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert seeds_apart([5.0, 6.0, 7.0]).decided and not seeds_apart([-1.0, 6.0, 7.0]).decided
    assert not seeds_apart([0.0, 0.0]).decided
    assert np.isnan(over_seeds([4.0]).low)
