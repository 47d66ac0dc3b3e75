"""From the stream section of a config to a plan, and to shards with an index."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.data.files.report import ImportReport
from streamcvit.data.files.spool import Nothing, Spool
from streamcvit.data.files.taskrows import Row, Rows
from streamcvit.data.files.tasks import TaskData, TaskFiles, load_tasks, report_of
from streamcvit.data.layouts import LAYOUTS, load_layout
from streamcvit.data.locations import is_url
from streamcvit.data.plan import Plan
from streamcvit.data.sample import Quarantined, Sample, TaskSpec
from streamcvit.data.scenario import order
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.write import Writable, write_stream
from streamcvit.embedded import changed
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, SCORERS, STRCVIT_SCORERS, check_test_set
from streamcvit.run.following import Following
from streamcvit.run.losses import check_losses, list_lost, save_report
from streamcvit.run.ownkinds import formats_of, scorer_of
from streamcvit.run.plans import benchmark_plan, embedded_plan, files_plan

EMBEDDED_TESTS = 100
"""Test samples of an embedded task, where the config names no number."""
_SAY_EVERY = 10.0
"""Seconds between two words on how far the writing is."""

Say = Callable[[str], None]
Watch = Callable[[str, int, int], None]
"""Told of what is done (`reading`, `writing`), how many, and of how many (0: not known)."""


def plan_of(config: RunConfig) -> Plan:
    """The chunk x task table of a config's stream, without writing anything."""
    stream = config.stream
    if stream.source == "shards":
        return StreamIndex.open(stream.data).plan
    if stream.source == "follow":
        fix = "Follow it: streamcvit run; the run's report shows what came"
        raise UserError("a stream that goes on has no plan", where="stream.source: follow", fix=fix)
    if stream.source == "embedded":
        return embedded_plan(stream.scenario, config.seed, stream.returns)
    return _load(config, Nothing()).plan


def prepare_stream(
    config: RunConfig, folder: Path, say: Say = lambda _: None, watch: Watch = lambda *_: None, resume: bool = False
) -> StreamIndex:
    """Write a config's stream into `folder`, whole or not at all; a folder that holds it already is kept.

    Args:
        config: whose stream.
        folder: where to; what was found, and what cannot be used, is noted beside it (`losses`).
        say: told now and then how far a long writing is.
        watch: told of every row that is read, and every sample that is written.
        resume: go on where an earlier call was ended (`write_stream`).

    Raises:
        UserError: missing or unreadable data, too much that cannot be used, a task without test set, a test sample
            without what its task's rules need, a plan that asks for more than there is, a folder that cannot be
            written, a full disk.
    """
    try:
        return _prepare(config, folder, say, watch, resume)
    except OSError as fault:
        kept = "then the same command goes on" if resume else "nothing was written"
        where, fix = str(fault.filename or folder), f"Choose another folder, or make room; {kept}"
        raise UserError(f"cannot be read or written ({fault.strerror or fault})", where=where, fix=fix) from None


def _prepare(config: RunConfig, folder: Path, say: Say, watch: Watch, resume: bool) -> StreamIndex:
    stream = config.stream
    if stream.source == "shards":
        return _adopt(config, folder)
    if stream.source == "follow":
        return Following(config, folder).first(wait=False)
    bad: list[Quarantined] = []
    report = None
    if stream.source == "embedded":
        plan = embedded_plan(stream.scenario, config.seed, stream.returns)
        n = stream.test_samples or EMBEDDED_TESTS
        again = stream.returns == "changed"
        tasks: dict[str, TaskSpec] = changed.tasks_of(stream.returns)
        how: dict[str, Any] = {"wordings": stream.wordings, "conventions": stream.conventions}
        drawn_by = changed.stream if again else embedded.stream
        samples: Iterable[tuple[int, Writable]] = drawn_by(plan.counts, config.seed, **how)
        test: dict[str, Iterable[Writable]] = {
            task: check_test_set(spec, changed.test_samples(task, n, **how), scorer_of(config, spec))
            for task, spec in tasks.items()
        }
    else:
        found = _load(config, _Watched(_there(folder), watch))
        data, plan, report = found.tasks, found.plan, found.report
        tasks = {name: task.spec for name, task in data.items()}
        bad = found.quarantined
        samples = _samples(found, config.seed)
        drawn = {name: _draw(task.test, stream.test_samples, config.seed, name) for name, task in data.items()}
        for name, rows in drawn.items():
            report.tasks[name].used = len(rows)
        test = {name: _checked(config, tasks[name], rows) for name, rows in drawn.items()}

    def check(index: StreamIndex, tests: StreamIndex) -> None:
        check_losses(index, tests, stream.bad_share, report)
        if report:
            save_report(index.folder, report)

    index = write_stream(
        folder,
        _told(samples, int(plan.counts.sum()), say, watch),
        tasks,
        test,
        config.seed,
        plan=plan,
        samples_per_shard=stream.samples_per_shard,
        check=check,
        resume=resume,
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


@dataclass(frozen=True)
class _Found:
    """Rows of files, and the stream that is made of them; `shuffled`: each task's rows come in a drawn order."""

    tasks: dict[str, TaskData]
    plan: Plan
    shuffled: bool
    report: ImportReport
    quarantined: list[Quarantined]


def _load(config: RunConfig, spool: Spool) -> _Found:
    stream = config.stream
    tasks = {name: TaskFiles(**task.model_dump()) for name, task in stream.tasks.items()}
    mixed, notes = None, []
    if stream.source == "benchmark":
        found = load_layout(LAYOUTS[stream.benchmark], stream.data, tasks, stream.bad_share, spool, formats_of(config))
        data, mixed, notes = found.tasks, found.mixed, found.notes
    else:
        data = load_tasks(stream.data, tasks, stream.bad_share, spool, formats=formats_of(config))
    available = {name: len(task.train) for name, task in data.items()}
    if stream.source == "benchmark":
        plan, shuffled = benchmark_plan(stream.scenario, available, config.seed, mixed.plan if mixed else None)
    else:
        plan, shuffled = files_plan(stream.scenario, available, config.seed), True
    bad = [row for task in data.values() for row in task.quarantined]
    report = replace(report_of(data), mixed=mixed.report if mixed else None, notes=notes)
    return _Found(data, plan, shuffled, report, [*(mixed.quarantined if mixed else ()), *bad])


def _there(folder: Path) -> Path:
    """The nearest folder above that is there: the disk that the stream goes to has the room for what is read too."""
    return next(parent for parent in folder.absolute().parents if parent.is_dir())


def _draw(rows: Rows, count: int, seed: int, task: str) -> Rows:
    """So many of a test set in its order, drawn by the seed; 0: all."""
    if not 0 < count < len(rows):
        return rows
    rng = np.random.default_rng([seed, 3, zlib.crc32(task.encode())])
    return rows.pick(sorted(rng.permutation(len(rows))[:count].tolist()))


def _samples(found: _Found, seed: int) -> Iterator[tuple[int, Writable]]:
    available = {name: len(task.train) for name, task in found.tasks.items()}
    for chunk, task, number in order(found.plan, available, seed, found.shuffled):
        yield chunk, found.tasks[task].train.stored(number)


def _checked(config: RunConfig, spec: TaskSpec, rows: Rows) -> Iterator[Writable]:
    """Test rows, after it is seen that they have what their task's rules read; pictures are not read for that, but for
    the first sample's, on which a scorer of one's own is tried."""
    own = spec.scorer not in SCORERS
    row: Row

    def looked_at() -> Iterator[Sample]:
        nonlocal row
        for place, row in enumerate(rows.rows):
            yield row.load() if own and not place else row.sample

    for _ in check_test_set(spec, looked_at(), scorer_of(config, spec)):
        yield row.stored


class _Watched(Spool):
    """A spool that tells of every row that is put."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        super().__init__(folder)
        self._watch, self._count = watch, 0

    def put(self, data: bytes) -> int:
        """As a spool."""
        self._count += 1
        self._watch("reading", self._count, 0)
        return super().put(data)


def _told(
    samples: Iterable[tuple[int, Writable]], total: int, say: Say, watch: Watch
) -> Iterator[tuple[int, Writable]]:
    """The samples, while it is told how many of them have come and how long the others take."""
    began = last = time.monotonic()
    for done, sample in enumerate(samples):
        yield sample
        watch("writing", done + 1, total)
        if (now := time.monotonic()) - last >= _SAY_EVERY:
            last, left = now, (now - began) / (done + 1) * (total - done - 1)
            wait = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
            say(f"writing the stream: {done + 1} of {total} samples, about {wait} left")
