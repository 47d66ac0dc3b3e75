"""From the stream section of a config to a plan, and to shards with an index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from streamcvit.config import RunConfig
from streamcvit.data.index import StreamIndex
from streamcvit.data.locations import is_url
from streamcvit.data.plan import Plan
from streamcvit.data.sample import Quarantined, Sample, TaskSpec
from streamcvit.data.scenario import PRESETS, generate, order, scale_plan, task_incremental
from streamcvit.data.shards import write_stream
from streamcvit.data.taskfiles import TaskData, load_tasks
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, SCORERS, STRCVIT_SCORERS, check_test_set

DEFAULT_PER_CHUNK = 480


def plan_of(config: RunConfig) -> Plan:
    """The chunk x task table of a config's stream, without writing anything."""
    if config.stream.source == "shards":
        return StreamIndex.open(config.stream.data).plan
    if config.stream.source == "embedded":
        return _embedded_plan(config)
    return _fit(config, {name: len(task.train) for name, task in _load(config).items()})


def prepare_stream(config: RunConfig, folder: Path) -> StreamIndex:
    """Write a config's stream into `folder`, whole or not at all; a folder that holds it already is kept.

    Args:
        config: whose stream.
        folder: where to; what rows could not be read is listed beside it (`unreadable_rows`).

    Raises:
        UserError: missing or unreadable data, a task without test set, a test sample without what its task's rules
            need, a plan that asks for more than there is, a folder that cannot be written, a full disk.
    """
    try:
        return _prepare(config, folder)
    except OSError as fault:
        where, fix = str(fault.filename or folder), "Choose another folder, or make room; nothing was written"
        raise UserError(f"cannot be read or written ({fault.strerror or fault})", where=where, fix=fix) from None


def _prepare(config: RunConfig, folder: Path) -> StreamIndex:
    stream = config.stream
    if stream.source == "shards":
        index = StreamIndex.open(stream.data)
        _check_rules(index)
        if is_url(stream.data):
            return index.copy_to(folder)  # the run folder stays local; only the shards are fetched
        target = Path(stream.data).absolute()
        if folder.is_symlink() and folder.readlink() != target:  # the shards were moved
            folder.unlink()
        if not folder.is_symlink() and not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(target, target_is_directory=True)
        return index
    bad: list[Quarantined] = []
    if stream.source == "embedded":
        plan = _embedded_plan(config)
        n = stream.test_samples or 100
        tasks: dict[str, TaskSpec] = embedded.TASKS
        how: dict[str, Any] = {"wordings": stream.wordings, "conventions": stream.conventions}
        samples = embedded.stream(plan.counts, config.seed, **how)
        test: dict[str, Iterable[Sample]] = {task: embedded.test_samples(task, n, **how) for task in tasks}
    else:
        data = _load(config)
        plan = _fit(config, {name: len(task.train) for name, task in data.items()})
        tasks = {name: task.spec for name, task in data.items()}
        bad = [row for task in data.values() for row in task.quarantined]
        samples = _samples(data, plan, config.seed)
        test = {name: task.test[: stream.test_samples or None] for name, task in data.items()}
    test = {task: check_test_set(tasks[task], samples) for task, samples in test.items()}
    index = write_stream(
        folder, samples, tasks, test, config.seed, plan=plan, samples_per_shard=stream.samples_per_shard
    )
    _note_unreadable(bad, folder)
    return index


def _check_rules(index: StreamIndex) -> None:
    """A stream from elsewhere names its tasks' scorers itself."""
    for task in index.tasks.values():
        for kind, rule, known in (
            ("scorer", task.scorer, SCORERS),
            ("strcvit", task.strcvit, {"", *STRCVIT_SCORERS}),
            ("follow", task.follow, FOLLOW_RULES),
        ):
            if rule not in known:
                raise UserError(
                    f"task {task.name!r} names the unknown {kind} {rule!r:.80}",
                    where=index.folder,
                    fix="Write the stream again with a rule of this release",
                )
    if untested := sorted(set(index.task_of) - set(index.eval_index().task_of)):
        raise UserError(f"task {untested[0]!r} has no test set", where=index.folder, fix="Add test samples of it")


def _embedded_plan(config: RunConfig) -> Plan:
    scenario = config.stream.scenario
    if scenario.preset != "embedded":
        available = dict.fromkeys(embedded.TASKS, 10**9)
        return _by_name(config, available)
    per_chunk = scenario.samples_per_chunk or DEFAULT_PER_CHUNK
    return Plan(tuple(embedded.TASKS), embedded.chunk_plan(scenario.chunks, per_chunk, config.seed))


def _fit(config: RunConfig, available: dict[str, int]) -> Plan:
    """A named plan for these tasks; asked for no number of samples, it uses each of them exactly once."""
    scenario = config.stream.scenario
    plan = _by_name(config, available)
    if scenario.preset in PRESETS:
        return scale_plan(plan, available)  # a published mixture stays as published, or shrinks by one factor
    return plan if scenario.samples_per_chunk else scale_plan(plan, available, exhaust=True)


def _by_name(config: RunConfig, available: dict[str, int]) -> Plan:
    scenario = config.stream.scenario
    per_chunk = scenario.samples_per_chunk or max(1, min(sum(available.values()) // scenario.chunks, 1000))
    if scenario.preset == "generate":
        return generate(
            list(available),
            scenario.chunks,
            per_chunk,
            config.seed,
            tasks_per_chunk=min(scenario.tasks_per_chunk, len(available)),
            recurrence_gap=scenario.recurrence_gap,
        )
    if scenario.preset == "task-incremental":
        return task_incremental(available, scenario.samples_per_chunk or None)
    if scenario.preset in PRESETS:
        return PRESETS[scenario.preset]()
    raise UserError(
        f"unknown plan {scenario.preset!r}",
        where="stream.scenario.preset",
        fix=f"Choose from embedded, generate, task-incremental, {', '.join(PRESETS)}",
    )


def _load(config: RunConfig) -> dict[str, TaskData]:
    tasks = {name: task.model_dump() for name, task in config.stream.tasks.items()}
    return load_tasks(config.stream.data, tasks, config.stream.bad_share)


def unreadable_rows(folder: Path) -> Path:
    """Where the rows that could not be read on import are listed, one JSON object a line: beside the stream folder."""
    return folder.with_name(f"{folder.name}.quarantined.jsonl")


def _note_unreadable(rows: list[Quarantined], folder: Path) -> None:
    if rows:
        lines = [json.dumps({"sample_id": b.sample_id, "reason": b.reason, "detail": b.detail}) for b in rows]
        unreadable_rows(folder).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _samples(data: dict[str, TaskData], plan: Plan, seed: int) -> Iterator[tuple[int, Sample]]:
    for chunk, task, number in order(plan, {name: len(task.train) for name, task in data.items()}, seed):
        yield chunk, data[task].train[number]
