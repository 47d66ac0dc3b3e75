"""The Ray actors: a few lines around classes that work without Ray.

Every method is idempotent, because a call is made again when its actor was lost. Actors find each other by name; a
handle kept by an actor would point at the dead. A constructor does nothing: what is slow or may fail comes with the
first call, so that an actor has a pulse from its start on and its errors are those of a call.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from prometheus_client import Metric
from torch import nn

from streamcvit.cluster.folder import build_labels
from streamcvit.cluster.messages import ChunkReport, Job, Progress, TaskScores
from streamcvit.cluster.supervise import Pulse
from streamcvit.cluster.workers import EvaluatorWorker, Feed, LearnerWorker, local_feed, settle
from streamcvit.config import RunConfig
from streamcvit.data.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.learning import Schedule
from streamcvit.models.batch import Batch
from streamcvit.models.snapshot import Snapshot
from streamcvit.monitoring.exporter import Server, serve
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report import live_page

MONITOR = "monitor"
PULSE = "pulse"  # the concurrency group that answers while a call is served
SNAPSHOT_SECONDS = 30.0  # a published snapshot that is not there by then is read from its commit
PORT_SECONDS = 20.0  # a stopped monitor keeps its port until its node has killed it


def ingest_name(number: int) -> str:
    return f"ingest-{number}"


def work(method: Callable) -> Callable:
    """Mark a method of an actor as work: while it runs, the actor should move."""

    @functools.wraps(method)
    def run(self: Actor, *args: Any) -> Any:
        self.working = True
        try:
            return method(self, *args)
        finally:
            self.working = False

    return run


class Actor:
    """What all actors have: a pulse, taken by a thread of its own."""

    def __init__(self, config: RunConfig) -> None:
        _end_with_the_node()
        self.config = config
        self.moves, self.working = 0, False
        self.word: Progress | None = None

    @ray.method(concurrency_group=PULSE)
    def pulse(self) -> Pulse:
        return Pulse(self.moves, self.working, self.word)

    def move(self, *_: Any) -> None:
        """Note that something was done."""
        self.moves += 1

    def count_forwards(self, model: nn.Module) -> None:
        """Let every forward of a model, or of its vision tower, count as a move."""
        for module in model.modules():
            if isinstance(module, nn.Embedding | nn.Conv2d | nn.Conv3d):  # where forwards begin
                module.register_forward_hook(self.move)


def _end_with_the_node() -> None:
    """Let the kernel end this process with its node's: Ray leaves that to the process, so a stopped one would stay."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


class IngestActor(Actor):
    """Reads, decodes and preprocesses; batch(cursor) is a pure function, so a restart needs no thought."""

    def __init__(self, config: RunConfig, stream: str) -> None:
        super().__init__(config)
        self.stream = stream

    @cached_property
    def feed(self) -> Feed:
        settle(self.config)
        return local_feed(self.config, self.stream)

    @work
    def ready(self) -> int:
        assert self.feed is not None
        return os.getpid()

    @work
    def batch(self, order: str, cursor: int) -> Batch:
        """The batch of `order` that starts at `cursor`."""
        batch = next(self.feed(order, cursor, cursor + 1))
        self.move()
        return batch


class RemoteFeed:
    """Batches pulled from the ingest actors by cursor, a bounded number ahead; batch k belongs to actor k mod n.

    What an actor did not live to give is asked for again, from its successor.

    Args:
        config: the run.
        stream: folder of shards and index.
        alive: called while it waits: a learner that waits for others is not stuck.
    """

    def __init__(self, config: RunConfig, stream: str, alive: Callable[[], None] = lambda: None) -> None:
        self.config, self.index, self.alive = config, StreamIndex.open(stream), alive
        self.schedules: dict[str, Schedule] = {}
        self.ahead: dict[tuple[str, int], Any] = {}
        self.actors: dict[int, Any] = {}

    def __call__(self, order: str, cursor: int, stop: int) -> Iterator[Batch]:
        config = self.config
        if order not in self.schedules:
            self.schedules[order] = Schedule.of(self.index, config.learner.batch_size, order, config.seed)  # type: ignore[arg-type]
        schedule = self.schedules[order]
        self.ahead = {key: ref for key, ref in self.ahead.items() if key[0] == order and key[1] >= cursor}
        while cursor < stop:
            # Asking goes on over the chunk's end, so that the next chunk finds its first batches ready.
            ask = cursor
            while ask < len(schedule) and len(self.ahead) < config.cluster.look_ahead:
                if (order, ask) not in self.ahead and not self._ask(order, ask):
                    break
                ask = schedule.next_cursor(ask)
            batch = self._take(order, cursor)
            if batch is not None:
                yield batch
                cursor = batch.next_cursor

    def _number(self, cursor: int) -> int:
        return (cursor // self.config.learner.batch_size) % self.config.cluster.ingest_actors

    def _ask(self, order: str, cursor: int) -> bool:
        """Ask for a batch; False while its actor is being replaced."""
        number = self._number(cursor)
        try:
            if number not in self.actors:
                self.actors[number] = ray.get_actor(ingest_name(number))
            self.ahead[order, cursor] = self.actors[number].batch.remote(order, cursor)
        except (ValueError, ray.exceptions.RayError):
            self.actors.pop(number, None)
            return False
        return True

    def _take(self, order: str, cursor: int) -> Batch | None:
        """The batch at `cursor`; None where it was lost with its actor and is to be asked for again."""
        began = time.monotonic()
        reference = self.ahead.pop((order, cursor), None)
        if reference is None:
            time.sleep(0.2)
        else:
            limit = self.config.cluster.stuck_seconds
            while not ray.wait([reference], timeout=1.0)[0] and time.monotonic() - began < limit:
                self.alive()
            try:
                return ray.get(reference, timeout=10)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError:
                number = self._number(cursor)
                self.actors.pop(number, None)
                self.ahead = {key: ref for key, ref in self.ahead.items() if self._number(key[1]) != number}
        self.alive()
        return None


class LearnerActor(Actor):
    """The one writer of commits: learns chunks in order and publishes a snapshot of each boundary."""

    def __init__(self, config: RunConfig, stream: str) -> None:
        super().__init__(config)
        self.stream = stream

    @cached_property
    def worker(self) -> LearnerWorker:
        feed = RemoteFeed(self.config, self.stream, self.move)
        worker = LearnerWorker(
            self.config, self.stream, feed, self._tell, stop=lambda: ray.get_runtime_context().is_canceled()
        )
        self.count_forwards(worker.base.model)
        return worker

    def _tell(self, word: Progress) -> None:
        self.word = copy.deepcopy(word)  # it holds counts that go on changing

    @work
    def ready(self) -> str:
        return self.worker.base.digest

    @work
    def learn_chunk(self, method: str, chunk: int) -> tuple[ChunkReport, Any]:
        """Make the chunk exist; returns its report and a reference to its snapshot (None: read the commit).

        Where the driver cancels the call, the learner commits after the batch it is at; nobody reads what it returns.
        """
        report = self.worker.learn_chunk(method, chunk)
        fresh = report.version == self.worker.learner.step
        return report, [ray.put(self.worker.learner.snapshot())] if fresh else None


class EvaluatorActor(Actor):
    """Scores (snapshot, task) jobs; the base stays loaded, only the adapter's weights change."""

    def __init__(self, config: RunConfig, stream: str) -> None:
        super().__init__(config)
        self.stream = stream

    @cached_property
    def worker(self) -> EvaluatorWorker:
        worker = EvaluatorWorker(self.config, self.stream)
        self.count_forwards(worker.base.model)
        return worker

    @work
    def ready(self) -> int:
        assert self.worker is not None
        return os.getpid()

    @work
    def evaluate(self, job: Job, snapshot: list[Any] | None) -> TaskScores:
        """Score one job, with the published snapshot or, where that is gone, from the commit."""
        return self.worker.evaluate(job, _fetch(snapshot))


def _fetch(reference: list[Any] | None) -> Snapshot | None:
    """The published snapshot; None when it died with its owner (the commit folder is the truth, this a cache)."""
    if not reference:
        return None
    try:
        return ray.get(reference[0], timeout=SNAPSHOT_SECONDS)
    except (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError):
        return None


class RunStore(MetricStore):
    """Numbers of run folders that are read when they are asked for, and only where something changed.

    A folder is read whole; read at every chunk boundary, a long stream would spend more on that with every chunk.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        super().__init__()
        self._unread, self._reading = set(folders), threading.Lock()

    def changed(self, folder: Path) -> None:
        """Read a folder before the next answer."""
        self._unread.add(folder)

    def collect(self) -> Iterator[Metric]:
        """All values, as `prometheus_client` wants them."""
        with self._reading:
            while self._unread:
                folder = self._unread.pop()
                if (folder / "run.json").exists():
                    self.load(RunRecord.load(folder))
        yield from super().collect()


class MonitorActor(Actor):
    """Holds the numbers of all runs and serves the one /metrics endpoint; after a restart it reads the run folders.

    Args:
        config: the run.
        port: where to listen; 0 takes any.
        token: what a reader must show; empty: nothing.
        again: whether another monitor held this port a moment ago.
    """

    def __init__(self, config: RunConfig, port: int, token: str, again: bool) -> None:
        super().__init__(config)
        self.port, self.token, self.again = port, token, again

    @cached_property
    def store(self) -> RunStore:
        store = RunStore(self.config.folder(method) for method in self.config.methods)
        store.build_info(**build_labels())
        return store

    @cached_property
    def server(self) -> Server:
        page = live_page(self.config.folder(), title=self.config.name)
        deadline = time.monotonic() + (PORT_SECONDS if self.again else 0)
        while True:
            try:
                return serve(self.store, self.port, self.config.monitor.host, page=page, token=self.token)
            except UserError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    @work
    def ready(self) -> tuple[str, int]:
        """Address and port of the metrics.

        Raises:
            UserError: the port is taken.
        """
        return self.server.url, self.server.port

    @work
    def progress(self, progress: Progress) -> None:
        """The learner's newest word."""
        self.store.position(progress.run, progress.cursor, progress.total)
        self.store.prequential(progress.run, progress.loss, {})
        self.store.step_seconds(progress.run, progress.step_seconds)
        self.move()

    @work
    def reload(self, folder: str) -> None:
        """Take over what a run folder says by now, when someone looks."""
        self.store.changed(Path(folder))
        self.move()
