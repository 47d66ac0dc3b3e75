"""The model of `benchmarks/capacity.py` against what one can work out by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def model() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "capacity.py"
    spec = importlib.util.spec_from_file_location("capacity", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["capacity"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_learner_that_is_never_kept_waiting_takes_its_samples_and_commits(model: ModuleType) -> None:
    work = model.Work([80, 80, 80], [[], [], []])
    found = model.simulate(work, model.Costs(ingest=0, learn=0.5, answer=1, commit=2), model.Machines())
    assert found.end == pytest.approx(3 * (80 * 0.5 + 2)) == found.learned
    assert found.busy["learner"] == pytest.approx(1)


def test_a_slow_ingest_binds_and_twice_the_actors_halve_it(model: ModuleType) -> None:
    work, costs = model.Work([800] * 4, [[]] * 4), model.Costs(ingest=1, learn=0.01, answer=1)
    one = model.simulate(work, costs, model.Machines(ingest=1))
    two = model.simulate(work, costs, model.Machines(ingest=2))
    assert one.end == pytest.approx(3200, rel=0.01) and one.busy["ingest"] > 0.99
    assert two.end == pytest.approx(1600, rel=0.02)


def test_scores_of_all_tasks_follow_the_last_chunk_and_evaluators_share_them(model: ModuleType) -> None:
    work = model.Work([10, 10], [[], [100.0, 100.0, 100.0, 100.0]])
    costs = model.Costs(ingest=0, learn=1, answer=0.1)
    for evaluators, rounds in ((1, 4), (2, 2), (4, 1), (9, 1)):
        found = model.simulate(work, costs, model.Machines(evaluators=evaluators))
        assert (found.learned, found.end) == pytest.approx((20, 20 + 10 * rounds))


def test_processes_that_share_one_processor_take_the_sum_of_their_work(model: ModuleType) -> None:
    work = model.Work([40, 40], [[60.0], [60.0]])
    costs = model.Costs(ingest=0.25, learn=1, answer=0.5)
    found = model.simulate(work, costs, model.Machines(ingest=1, processors=1))
    assert found.end == pytest.approx(80 * 1.25 + 120 * 0.5)
    assert model.simulate(work, costs, model.Machines(ingest=1, processors=9)).end < found.end


def test_what_runs_beside_a_run_slows_it_by_its_share(model: ModuleType) -> None:
    work, there = model.Work([100], [[]]), model.Machines(processors=1)
    alone = model.simulate(work, model.Costs(ingest=0, learn=1, answer=1), there)
    beside = model.simulate(work, model.Costs(ingest=0, learn=1, answer=1, background=0.5), there)
    assert beside.end == pytest.approx(2 * alone.end)


def test_tasks_come_one_after_another_and_a_budget_answers_them_all_every_so_often(model: ModuleType) -> None:
    work = model.stream_of(10, 1000, 20, 500, full_every=4, share=0.1)
    assert [len(tests) for tests in work.tests] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert [tests[0] for tests in work.tests] == [50, 50, 50, 500, 50, 50, 50, 500, 50, 500]
