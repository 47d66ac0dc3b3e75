"""The Ray actors: a few lines around classes that work without Ray.

Every method is idempotent, because Ray retries a call at least once when an actor is restarted. Actors find each other
by name; a handle kept by an actor that was restarted would point at the dead.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from streamcvit.cluster.folder import build_labels
from streamcvit.cluster.messages import ChunkReport, Job, Progress, TaskScores
from streamcvit.cluster.workers import EvaluatorWorker, LearnerWorker, local_feed, settle
from streamcvit.config import RunConfig
from streamcvit.data.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.learning import Schedule
from streamcvit.models.batch import Batch
from streamcvit.models.snapshot import Snapshot
from streamcvit.monitoring.exporter import serve
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report import live_page

MONITOR = "monitor"


def ingest_name(number: int) -> str:
    return f"ingest-{number}"


def _born(actor: str) -> None:
    """Tell the monitor when this is not the actor's first life."""
    if ray.get_runtime_context().was_current_actor_reconstructed:
        ray.get_actor(MONITOR).restarted.remote(actor)


class IngestActor:
    """Reads, decodes and preprocesses; batch(cursor) is a pure function, so a restart needs no thought."""

    def __init__(self, config: RunConfig, stream: str, number: int) -> None:
        settle(config)
        self.feed = local_feed(config, stream)
        _born(ingest_name(number))

    def ready(self) -> int:
        return os.getpid()

    def batch(self, order: str, cursor: int) -> Batch:
        """The batch of `order` that starts at `cursor`."""
        return next(self.feed(order, cursor, cursor + 1))


class RemoteFeed:
    """Batches pulled from the ingest actors by cursor, a bounded number ahead; batch k belongs to actor k mod n."""

    def __init__(self, config: RunConfig, stream: str) -> None:
        self.config, self.index = config, StreamIndex.open(stream)
        self.schedules: dict[str, Schedule] = {}
        self.ahead: dict[tuple[str, int], Any] = {}

    def __call__(self, order: str, cursor: int, stop: int) -> Iterator[Batch]:
        config = self.config
        if order not in self.schedules:
            self.schedules[order] = Schedule.of(self.index, config.learner.batch_size, order, config.seed)  # type: ignore[arg-type]
        schedule = self.schedules[order]
        actors = [ray.get_actor(ingest_name(i)) for i in range(config.cluster.ingest_actors)]
        self.ahead = {key: ref for key, ref in self.ahead.items() if key[0] == order and key[1] >= cursor}
        ask = cursor
        while cursor < stop:
            # Asking goes on over the chunk's end, so that the next chunk finds its first batches ready.
            while ask < len(schedule) and len(self.ahead) < config.cluster.look_ahead:
                if (order, ask) not in self.ahead:
                    actor = actors[(ask // config.learner.batch_size) % len(actors)]
                    self.ahead[order, ask] = actor.batch.remote(order, ask)
                ask = schedule.next_cursor(ask)
            batch = ray.get(self.ahead.pop((order, cursor)))
            yield batch
            cursor = batch.next_cursor


class LearnerActor:
    """The one writer of commits: learns chunks in order and publishes a snapshot of each boundary."""

    def __init__(self, config: RunConfig, stream: str) -> None:
        self.worker = LearnerWorker(
            config,
            stream,
            RemoteFeed(config, stream),
            progress=lambda word: ray.get_actor(MONITOR).progress.remote(word),
            stop=lambda: ray.get_runtime_context().is_canceled(),
        )
        _born("learner")

    def ready(self) -> str:
        return self.worker.base.digest

    def learn_chunk(self, method: str, chunk: int) -> tuple[ChunkReport, Any]:
        """Make the chunk exist; returns its report and a reference to its snapshot (None: read the commit).

        Where the driver cancels the call, the learner commits after the batch it is at; nobody reads what it returns.
        """
        report = self.worker.learn_chunk(method, chunk)
        fresh = report.version == self.worker.learner.step
        return report, [ray.put(self.worker.learner.snapshot())] if fresh else None


class EvaluatorActor:
    """Scores (snapshot, task) jobs; the base stays loaded, only the adapter's weights change."""

    def __init__(self, config: RunConfig, stream: str, number: int) -> None:
        self.worker = EvaluatorWorker(config, stream)
        _born(f"evaluator-{number}")

    def ready(self) -> int:
        return os.getpid()

    def evaluate(self, job: Job, snapshot: list[Any] | None) -> TaskScores:
        """Score one job, with the published snapshot or, where that is gone, from the commit."""
        return self.worker.evaluate(job, _fetch(snapshot))


def _fetch(reference: list[Any] | None) -> Snapshot | None:
    """The published snapshot; None when it died with its owner (the commit folder is the truth, this a cache)."""
    if not reference:
        return None
    try:
        return ray.get(reference[0])
    except ray.exceptions.ObjectLostError:
        return None


class MonitorActor:
    """Holds the numbers of all runs and serves the one /metrics endpoint; after a restart it reads the run folders."""

    def __init__(self, config: RunConfig) -> None:
        self.store = MetricStore()
        self.store.build_info(**build_labels())
        for method in config.methods:
            self.reload(str(config.folder(method)))
        self.restarts: Counter[str] = Counter()
        page = live_page(config.folder(), title=config.name)
        try:
            self.server = serve(self.store, config.monitor.port, config.monitor.host, page=page)
        except UserError as error:
            self.fault: UserError | None = error  # a constructor's error would reach the user as a dead actor
        else:
            self.fault = None
        self.newest: Progress | None = None
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.restarted(MONITOR)

    def ready(self) -> str:
        """The address of the metrics.

        Raises:
            UserError: the port is taken.
        """
        if self.fault is not None:
            raise self.fault
        return self.server.url

    def progress(self, progress: Progress) -> None:
        """The learner's few-times-a-second word."""
        self.newest = progress
        self.store.position(progress.run, progress.cursor, progress.total)
        self.store.prequential(progress.run, progress.loss, {})
        self.store.step_seconds(progress.run, progress.step_seconds)

    def latest(self) -> tuple[Progress | None, dict[str, int]]:
        """The learner's newest word, and how often which actor was restarted."""
        return self.newest, dict(self.restarts)

    def restarted(self, actor: str) -> None:
        self.restarts[actor] += 1
        if self.newest is not None:
            self.store.restarts(self.newest.run, actor, self.restarts[actor])

    def reload(self, folder: str) -> None:
        """Take over what a run folder says by now."""
        if (Path(folder) / "run.json").exists():
            self.store.load(RunRecord.load(Path(folder)))
