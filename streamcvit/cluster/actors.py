"""The Ray actors: a few lines around classes that work without Ray.

Every method is idempotent, because a call is made again when its actor was lost. Actors find each other by name; a
handle kept by an actor would point at the dead. A constructor does nothing: what is slow or may fail comes with the
first call, so that an actor has a pulse from its start on and its errors are those of a call.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import ray
from torch import nn

from streamcvit.cluster.actor import MAILBOX, PULSE, Actor, work
from streamcvit.cluster.placing import extends
from streamcvit.cluster.ranks import group_options, together
from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.learning import Schedule
from streamcvit.learning.epochs import Turn
from streamcvit.learning.group import Group
from streamcvit.learning.meeting import Lead, Meeting
from streamcvit.models.batch import Batch
from streamcvit.models.snapshot import Snapshot
from streamcvit.monitoring import traces
from streamcvit.run.evaluating import EvaluatorWorker
from streamcvit.run.leading import Leading
from streamcvit.run.loading import Feed, local_feed, schedule_of, settle, traced
from streamcvit.run.mailbox import Mailbox
from streamcvit.run.messages import ChunkReport, Job, Order, Probed, Progress, TaskScores, Weights
from streamcvit.run.workers import LearnerWorker

KEPT_MIB = 128
SNAPSHOT_SECONDS = 30.0  # a published snapshot that is not there by then is read from its commit
PROBE_SECONDS = 5.0  # one that is not there by then is not probed
MAIL_SECONDS = 60.0  # that a question for weights waits for the end of a step; then it is asked again


def ingest_name(number: int) -> str:
    return f"ingest-{number}"


def count_forwards(model: nn.Module, move: Callable) -> None:
    """Let every forward of a model, or of its vision tower, count as a move, and its having been loaded too."""
    move()

    def count(*_: Any) -> None:  # a function, which a copy of the module (PEFT's `modules_to_save`) shares
        move()

    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.Conv2d | nn.Conv3d):  # where forwards begin
            module.register_forward_hook(count)


def size_of(batch: Batch) -> int:
    """Bytes of a batch's pictures, as they came and as the model takes them, and of its tokens."""
    pictures = sum(len(picture.data) for sample in batch.samples for picture in sample.pictures)
    return pictures + sum(tensor.nbytes for part in batch.parts for tensor in part.tensors.values())


class IngestActor(Actor):
    """Reads, decodes and preprocesses; batch(cursor) is a pure function, so a restart needs no thought.

    Where several methods read the stream in one order, the first batches of it are kept for those after the first,
    `KEPT_MIB` of them at most: of a small stream all.
    """

    def __init__(self, config: RunConfig, stream: str) -> None:
        super().__init__(config)
        self.stream = stream
        orders = Counter(method.order for method in config.methods.values() if method.adapter != "none")
        self.again = {order for order, count in orders.items() if count > 1}
        self.kept: dict[tuple[str, int], Batch] = {}
        self.room = KEPT_MIB << 20
        self.shared: dict[tuple[str, int], Batch] = {}

    @cached_property
    def feed(self) -> Feed:
        traced(self.config, ray.get_runtime_context().get_actor_name() or "")
        settle(self.config)
        return local_feed(self.config, self.stream)

    @work
    def ready(self) -> int:
        assert self.feed is not None
        return os.getpid()

    @work
    def batch(self, order: str, cursor: int, rank: int = 0) -> Batch:
        """The batch of `order` that starts at `cursor`, with the pictures that a rank of the learners works on."""
        batch = self.kept.get((order, cursor)) or self.shared.get((order, cursor))
        if batch is None:
            batch = next(self.feed(order, cursor, cursor + 1))
            size = size_of(batch)
            if order in self.again and size <= self.room:
                self.kept[order, cursor] = batch
                self.room -= size
            elif self.config.cluster.learners > 1:  # it is made once, for all ranks
                self.shared[order, cursor] = batch
                while len(self.shared) > 2 * self.config.cluster.look_ahead:
                    del self.shared[next(iter(self.shared))]
        self.move()
        if self.config.cluster.learners == 1 or extends(self.config):
            return batch
        return batch.only(Group(rank, self.config.cluster.learners).share(len(batch.parts)))


class RemoteFeed:
    """Batches pulled from the ingest actors by cursor, a bounded number ahead; batch k belongs to actor k mod n.

    What an actor did not live to give is asked for again, from its successor. They end early where the call that
    takes them is canceled while it waits, for a batch (which Ray interrupts) or for a successor.

    Args:
        config: the run.
        stream: folder of shards and index.
        alive: called while it waits: a learner that waits for others is not stuck.
        canceled: asked whether the call that takes the batches is.
        rank: whose batches they are, where several learners share them.
    """

    def __init__(
        self,
        config: RunConfig,
        stream: str,
        alive: Callable[[], None] = lambda: None,
        canceled: Callable[[], bool] = lambda: False,
        rank: int = 0,
    ) -> None:
        self.rank = rank
        self.config, self.index, self.alive, self.canceled = config, StreamIndex.open(stream), alive, canceled
        self.schedules: dict[str, Schedule] = {}
        self.ahead: dict[tuple[str, int], Any] = {}
        self.actors: dict[int, Any] = {}

    def __call__(self, order: str, cursor: int, stop: int) -> Iterator[Batch]:
        if order not in self.schedules:
            self.schedules[order] = schedule_of(self.config, self.index, order)
        schedule = self.schedules[order]
        self.ahead = {key: ref for key, ref in self.ahead.items() if key[0] == order and key[1] >= cursor}
        if (order, cursor) not in self.ahead:  # others would take its place
            self.ahead = {}
        with contextlib.suppress(KeyboardInterrupt):
            yield from self._batches(schedule, order, cursor, stop)

    def _batches(self, schedule: Schedule, order: str, cursor: int, stop: int) -> Iterator[Batch]:
        config = self.config
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
            elif self.canceled():
                return

    def ready(self) -> int:
        """Batches that were asked for and are there."""
        asked = list(self.ahead.values())
        return len(ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else 0

    def _number(self, cursor: int) -> int:
        return (cursor // self.config.learner.batch_size) % self.config.cluster.ingest_actors

    def _ask(self, order: str, cursor: int) -> bool:
        """Ask for a batch; False while its actor is being replaced."""
        number = self._number(cursor)
        try:
            if number not in self.actors:
                self.actors[number] = ray.get_actor(ingest_name(number))
            self.ahead[order, cursor] = self.actors[number].batch.remote(order, cursor, self.rank)
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

    def __init__(self, config: RunConfig, stream: str, turn: Turn) -> None:
        super().__init__(config)
        self.stream, self.turn = stream, turn
        self.mailbox = Mailbox()
        self.lead: Lead | None = None

    @cached_property
    def worker(self) -> LearnerWorker:
        traced(self.config, "learner")
        canceled = ray.get_runtime_context().is_canceled
        self.feed = RemoteFeed(self.config, self.stream, self.move, canceled)
        loaded = partial(count_forwards, move=self.move)
        between, leading = self.mailbox.look_in, None
        if self.config.cluster.learners > 1:
            cluster = self.config.cluster
            options = group_options(self.config, self.move)
            self.lead = Lead(stopped=canceled, patience=cluster.restarts, **options)
            leading = Leading(self.lead, cluster.compare_every)
        common = self.config, self.stream, self.feed, self._tell, canceled, self.turn, loaded, between
        return LearnerWorker(*common, leading)

    def _tell(self, word: Progress) -> None:
        # A copy: it holds counts that go on changing.
        self.word = copy.deepcopy(replace(word, queue=self.feed.ready()))

    @work
    def ready(self) -> str:
        return self.worker.base.digest

    @work
    def learn_chunk(
        self, method: str, chunk: int, orders: Mapping[int, Order] | None = None
    ) -> tuple[ChunkReport, Any]:
        """Make the chunk exist; returns its report and a reference to its snapshot (None: read the commit).

        Where the driver cancels the call, the learner commits after the batch it is at; nobody reads what it returns.
        """
        worker = self.worker
        report = together(self.lead, lambda: worker.base.device, worker.learn_chunk, method, chunk, orders)
        if report.version != self.worker.learner.step:
            return report, None
        with traces.span("publish", report.trace, method=method, chunk=chunk, version=report.version):
            snapshot = [ray.put(self.worker.learner.snapshot())]
            return replace(report, trace=traces.here()), snapshot

    @ray.method(concurrency_group=PULSE)
    def meeting(self) -> Meeting | None:
        """Where the other ranks of its group find it; None: nowhere."""
        return None if self.lead is None else self.lead.meeting

    @ray.method(concurrency_group=MAILBOX)
    def newest(self) -> Weights | None:
        """The weights after the step that is being taken, with a reference to them; None where no step is."""
        found = self.mailbox.ask(MAIL_SECONDS)
        try:
            return found and replace(found, snapshot=[ray.put(found.snapshot)])
        except ray.exceptions.RayError:  # the object store is full, say: learning must not end of it
            return None


class EvaluatorActor(Actor):
    """Scores (snapshot, task) jobs; the base stays loaded, only the adapter's weights change."""

    def __init__(self, config: RunConfig, stream: str) -> None:
        super().__init__(config)
        self.stream = stream

    @cached_property
    def worker(self) -> EvaluatorWorker:
        traced(self.config, ray.get_runtime_context().get_actor_name() or "")
        return EvaluatorWorker(self.config, self.stream, partial(count_forwards, move=self.move))

    @work
    def ready(self) -> int:
        assert self.worker is not None
        return os.getpid()

    @work
    def evaluate(self, job: Job, snapshot: list[Any] | None) -> TaskScores:
        """Score one job, with the published snapshot or, where that is gone, from the commit."""
        return self.worker.evaluate(job, _fetch(snapshot))

    @work
    def probe(self, job: Job, snapshot: list[Any] | None) -> Probed:
        """Score a probe, unless its weights were lost with the learner: no commit has them."""
        held = _fetch(snapshot, PROBE_SECONDS)
        return self.worker.probe(job, held) if held is not None else Probed(job)


def _fetch(reference: list[Any] | None, seconds: float = SNAPSHOT_SECONDS) -> Snapshot | None:
    """The published snapshot; None when it died with its owner (the commit folder is the truth, this a cache)."""
    if not reference:
        return None
    try:
        return ray.get(reference[0], timeout=seconds)
    except (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError):
        return None
