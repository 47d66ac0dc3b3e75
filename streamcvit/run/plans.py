"""Which task gives how many samples to which chunk: the plan that a config's scenario asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from streamcvit.config import ScenarioConfig
from streamcvit.data.plan import Plan
from streamcvit.data.scenario import PRESETS, cut, generate, resolve_groups, scale_plan, task_incremental
from streamcvit.embedded import changed
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError

CHUNKS = 15
"""Of the embedded and of generated plans, where the config names no number."""
PER_CHUNK = 480
"""Samples of an embedded chunk, where the config names no number."""

_CUT = re.compile(r"strcvit-(\d+)-(first|recut)")


def embedded_plan(scenario: ScenarioConfig, seed: int, returns: changed.Returns = "same") -> Plan:
    """The plan of the embedded tasks, which have as many samples as are asked for.

    Args:
        scenario: which plan.
        seed: of what is drawn.
        returns: whether tasks come back as they were, or as variants of their own.

    Raises:
        UserError: see `files_plan`.
    """
    again = returns == "changed"
    tasks = tuple(changed.tasks_of(returns))
    per_chunk = scenario.samples_per_chunk or (changed.PER_CHUNK if again else PER_CHUNK)
    if scenario.preset == "embedded":
        if again:
            return Plan(tasks, changed.chunk_plan(scenario.chunks or changed.CHUNKS, per_chunk, seed))
        return Plan(tasks, embedded.chunk_plan(scenario.chunks or CHUNKS, per_chunk, seed))
    if scenario.preset == "task-incremental":
        available = dict.fromkeys(tasks, per_chunk)
    else:
        available = dict.fromkeys(tasks, (scenario.chunks or CHUNKS) * per_chunk)
    plan = _by_name(scenario, available, seed, per_chunk)
    # The embedded tasks are drawn in one order, whichever of them a plan names.
    return Plan(tasks, plan.counts[:, [plan.tasks.index(task) for task in tasks]])


def files_plan(scenario: ScenarioConfig, available: Mapping[str, int], seed: int) -> Plan:
    """The plan of tasks that have `available` training samples; asked for no number, it uses each exactly once.

    Raises:
        UserError: an unknown plan, one of other tasks or with another number of chunks than asked for, or controls
            that contradict each other.
    """
    trained = {name: count for name, count in available.items() if count}
    if not trained:
        raise UserError("no task has training samples", where="stream.tasks", fix="Name a training file")
    chunks = scenario.chunks or CHUNKS
    per_chunk = scenario.samples_per_chunk or max(1, min(sum(trained.values()) // chunks, 1000))
    plan = _by_name(scenario, trained, seed, per_chunk)
    if scenario.preset in PRESETS:
        plan = scale_plan(plan, trained)  # a published mixture stays as published, or shrinks by one factor
        if not plan.counts.sum():
            fix = "Give more samples, or choose another preset"
            raise UserError(f"the plan {scenario.preset!r} shrinks to nothing for {trained}", fix=fix)
        return plan
    return plan if scenario.samples_per_chunk else scale_plan(plan, trained, exhaust=True)


def benchmark_plan(
    scenario: ScenarioConfig, available: Mapping[str, int], seed: int, mixed: Plan | None
) -> tuple[Plan, bool]:
    """The plan of a benchmark, and whether each task's samples are shuffled; in files of mixed rows they have an order.

    Args:
        scenario: `benchmark` is its own plan.
        available: training samples of each task, in the benchmark's order.
        seed: of what is drawn.
        mixed: the order of its files of mixed rows; None: each task has files of its own.

    Raises:
        UserError: see `files_plan`, and a cut of another benchmark.
    """
    kept = mixed is not None and not (scenario.chunks or scenario.samples_per_chunk)
    if scenario.preset == "benchmark" or (kept and scenario.preset == "strcvit-25"):
        if mixed is None:
            return files_plan(scenario.model_copy(update={"preset": "task-incremental"}), available, seed), True
        if kept:
            return mixed, False
        fix = "Leave `chunks` and `samples_per_chunk` out, or choose the preset generate or task-incremental"
        raise UserError("the benchmark's chunks are its files'", where="stream.scenario", fix=fix)
    if mixed is not None and kept and (cut_of := _CUT.fullmatch(scenario.preset)):
        return cut(mixed, cut_of[2], int(cut_of[1])), False
    return files_plan(scenario, available, seed), True


def _by_name(scenario: ScenarioConfig, available: Mapping[str, int], seed: int, per_chunk: int) -> Plan:
    if scenario.preset == "generate":
        return generate(
            list(available),
            scenario.chunks or CHUNKS,
            per_chunk,
            seed,
            tasks_per_chunk=min(scenario.tasks_per_chunk, len(available)),
            recurrence_gap=scenario.recurrence_gap,
        )
    if scenario.preset == "task-incremental":
        plan = task_incremental(available, scenario.samples_per_chunk or None)
    elif scenario.preset in PRESETS:
        plan = _published(scenario.preset, available)
    else:
        raise UserError(
            f"unknown plan {scenario.preset!r}",
            where="stream.scenario.preset",
            fix=f"Choose from embedded, generate, task-incremental, benchmark, {', '.join(PRESETS)}",
        )
    if scenario.chunks not in (None, len(plan)):
        what = "one chunk a task, that is" if scenario.preset == "task-incremental" else "its own"
        raise UserError(
            f"{scenario.chunks} chunks are asked for; the plan {scenario.preset!r} has {what} {len(plan)}",
            where="stream.scenario.chunks",
            fix="Leave it out (null), or choose the preset generate",
        )
    return plan


def _published(preset: str, available: Mapping[str, int]) -> Plan:
    plan = PRESETS[preset]()
    asked = {task for task, count in resolve_groups(plan, available).totals.items() if count}
    fix = "Name the tasks so in the config, or choose the preset generate or task-incremental"
    if absent := sorted(asked - set(available)):
        what = f"the plan {preset!r} is of other tasks: there are no samples of {', '.join(absent)}"
        raise UserError(what, where="stream.scenario.preset", fix=fix)
    if unasked := sorted(set(available) - asked):
        what = f"the plan {preset!r} gives no chunk to {', '.join(unasked)}"
        fix = "Leave their training files out, or choose the preset generate or task-incremental"
        raise UserError(what, where="stream.scenario.preset", fix=fix)
    return plan
