"""From the stream section of a config to a plan, and to shards with an index."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.data.files.spool import Nothing, Spool
from streamcvit.data.files.taskrows import Rows
from streamcvit.data.files.tasks import TaskData, load_tasks, report_of
from streamcvit.data.locations import is_url
from streamcvit.data.plan import Plan
from streamcvit.data.sample import Quarantined, Sample, TaskSpec
from streamcvit.data.scenario import order
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.write import write_stream
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, SCORERS, STRCVIT_SCORERS, check_test_set
from streamcvit.run.losses import check_losses, list_lost, save_report
from streamcvit.run.ownkinds import formats_of, scorer_of
from streamcvit.run.plans import embedded_plan, files_plan

EMBEDDED_TESTS = 100
"""Test samples of an embedded task, where the config names no number."""
_SAY_EVERY = 10.0
"""Seconds between two words on how far the writing is."""

Say = Callable[[str], None]


def plan_of(config: RunConfig) -> Plan:
    """The chunk x task table of a config's stream, without writing anything."""
    stream = config.stream
    if stream.source == "shards":
        return StreamIndex.open(stream.data).plan
    if stream.source == "embedded":
        return embedded_plan(stream.scenario, config.seed)
    data = _load(config, Nothing())
    return files_plan(stream.scenario, {name: len(task.train) for name, task in data.items()}, config.seed)


def prepare_stream(config: RunConfig, folder: Path, say: Say = lambda _: None) -> StreamIndex:
    """Write a config's stream into `folder`, whole or not at all; a folder that holds it already is kept.

    Args:
        config: whose stream.
        folder: where to; what was found, and what cannot be used, is noted beside it (`losses`).
        say: told now and then how far a long writing is.

    Raises:
        UserError: missing or unreadable data, too much that cannot be used, a task without test set, a test sample
            without what its task's rules need, a plan that asks for more than there is, a folder that cannot be
            written, a full disk.
    """
    try:
        return _prepare(config, folder, say)
    except OSError as fault:
        where, fix = str(fault.filename or folder), "Choose another folder, or make room; nothing was written"
        raise UserError(f"cannot be read or written ({fault.strerror or fault})", where=where, fix=fix) from None


def _prepare(config: RunConfig, folder: Path, say: Say) -> StreamIndex:
    stream = config.stream
    if stream.source == "shards":
        return _adopt(config, folder)
    bad: list[Quarantined] = []
    report = None
    if stream.source == "embedded":
        plan = embedded_plan(stream.scenario, config.seed)
        n = stream.test_samples or EMBEDDED_TESTS
        tasks: dict[str, TaskSpec] = embedded.TASKS
        how: dict[str, Any] = {"wordings": stream.wordings, "conventions": stream.conventions}
        samples = embedded.stream(plan.counts, config.seed, **how)
        test: dict[str, Iterable[Sample]] = {task: embedded.test_samples(task, n, **how) for task in tasks}
    else:
        data = _load(config, Spool(_there(folder)))
        plan = files_plan(stream.scenario, {name: len(task.train) for name, task in data.items()}, config.seed)
        tasks = {name: task.spec for name, task in data.items()}
        bad = [row for task in data.values() for row in task.quarantined]
        report = report_of(data)
        samples = _samples(data, plan, config.seed)
        drawn = {name: _draw(task.test, stream.test_samples, config.seed, name) for name, task in data.items()}
        for name, rows in drawn.items():
            report.tasks[name].used = len(rows)
        test = dict(drawn)
    test = {t: check_test_set(tasks[t], samples, scorer_of(config, tasks[t])) for t, samples in test.items()}

    def check(index: StreamIndex, tests: StreamIndex) -> None:
        check_losses(index, tests, stream.bad_share, report)
        if report:
            save_report(index.folder, report)

    index = write_stream(
        folder,
        _told(samples, int(plan.counts.sum()), say),
        tasks,
        test,
        config.seed,
        plan=plan,
        samples_per_shard=stream.samples_per_shard,
        check=check,
    )
    list_lost(folder, index, bad)
    return index


def _adopt(config: RunConfig, folder: Path) -> StreamIndex:
    """The shards of others, as they lie; on this machine only their index, or a link."""
    data = config.stream.data
    index = StreamIndex.open(data)
    _check_rules(index)
    check_losses(index, index.eval_index(), config.stream.bad_share)
    if is_url(data):
        copy = index.copy_to(folder)  # the run folder stays local; only the shards are fetched
        list_lost(folder, copy)
        return copy
    target = Path(data).absolute()
    if folder.is_symlink() and folder.readlink() != target:  # the shards were moved
        folder.unlink()
    if not folder.is_symlink() and not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(target, target_is_directory=True)
    list_lost(folder, index)
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


def _load(config: RunConfig, spool: Spool) -> dict[str, TaskData]:
    tasks = {name: task.model_dump() for name, task in config.stream.tasks.items()}
    return load_tasks(config.stream.data, tasks, config.stream.bad_share, spool, formats_of(config))


def _there(folder: Path) -> Path:
    """The nearest folder above that is there: the disk that the stream goes to has the room for what is read too."""
    return next(parent for parent in folder.absolute().parents if parent.is_dir())


def _draw(rows: Rows, count: int, seed: int, task: str) -> Rows:
    """So many of a test set in its order, drawn by the seed; 0: all."""
    if not 0 < count < len(rows):
        return rows
    rng = np.random.default_rng([seed, 3, zlib.crc32(task.encode())])
    return rows.pick(sorted(rng.permutation(len(rows))[:count].tolist()))


def _samples(data: dict[str, TaskData], plan: Plan, seed: int) -> Iterator[tuple[int, Sample]]:
    for chunk, task, number in order(plan, {name: len(task.train) for name, task in data.items()}, seed):
        yield chunk, data[task].train[number]


def _told(samples: Iterable[tuple[int, Sample]], total: int, say: Say) -> Iterator[tuple[int, Sample]]:
    """The samples, while it is told how many of them have come and how long the others take."""
    began = last = time.monotonic()
    for done, sample in enumerate(samples):
        yield sample
        if (now := time.monotonic()) - last >= _SAY_EVERY:
            last, left = now, (now - began) / (done + 1) * (total - done - 1)
            wait = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
            say(f"writing the stream: {done + 1} of {total} samples, about {wait} left")
