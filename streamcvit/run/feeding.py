"""Feeds the sinks of a run from a thread of its own: boundaries from the run folder, what lies between from the
learner's words; nothing of it is waited for."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from streamcvit.config import RunConfig
from streamcvit.monitoring.definitions import Source
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.sinks import SINKS, Point, Sink, Target, points_of
from streamcvit.run.history import boundary_points, probe_points, scored_boundaries
from streamcvit.run.messages import Progress

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Between two points of what the learner tells; a restart of it costs no more."""
LAST_SECONDS = 30.0  # that sinks may take at the end
AT_ONCE = 20  # boundaries of one method before the next has its turn
EVERY = "chunks_completed_total"  # of every boundary, and of nothing else
BETWEEN = frozenset(
    ("stream_position", "stream_lag_samples", "prequential_loss", "steps_skipped_total", "learner_step_seconds")
    + ("learner_wait_seconds_total", "ingest_queue_batches", "commit_seconds", "commit_bytes")
)
"""Metrics that the learner's words hold."""


def hear(store: MetricStore, run: Source, word: Progress) -> None:
    """Set what the learner's newest word says."""
    store.position(run, word.cursor, word.total)
    if word.loss is not None:
        store.prequential(run, word.loss, {})
    store.steps_skipped(run, word.skipped)
    store.step_seconds(run, word.step_seconds)
    store.step(run, word.step)
    store.waits(run, word.chunk, word.waited)
    if word.commits is not None:
        store.commit(run, word.commits.seconds, word.commits.size_bytes, word.commits.written)
    if word.queue is not None:
        store.queue(run, word.queue)


class Feed:
    """One method's sinks.

    Args:
        config: the run.
        method: a key of `config.methods`.
    """

    def __init__(self, config: RunConfig, method: str) -> None:
        self.config, self.method = config, method
        self.source, self.folder = Source(config.name, method), config.folder(method)
        self.sinks: dict[str, tuple[Sink, dict[str, int]]] = {}  # with the last step of each tag that it holds
        self.writing: set[str] = set()
        self.faults: list[str] = []
        self.store = MetricStore()
        self.opened, self.boundaries, self.finished = False, 0, False
        self.words: deque[Progress] = deque()
        self.unread, self.rests_until = True, 0.0

    def look(self, last: bool = False) -> None:
        """Pass on what is new: a part of it where that is much, unless it is the `last` time."""
        if not (self.folder / "run.json").exists():
            return
        if self.unread and time.monotonic() >= self.rests_until:
            self.unread, began = False, time.monotonic()
            record = RunRecord.load(self.folder)
            if not self.opened:
                self._open(record)
            done = scored_boundaries(self.config, record)
            upto = done if last else min(done, self.boundaries + AT_ONCE)
            for chunk in range(self.boundaries, upto):
                self._write(boundary_points(self.config, record, self.source, chunk))
            self._write(probe_points(record))
            self.boundaries, self.finished = upto, record.finished
            self.unread |= upto < done
            if not record.n_chunks and record.summary:  # it learns nothing: what it scores stands at the beginning
                store = MetricStore()
                store.summary(self.source, record.summary)
                self._write(points_of(store.collect(), self.source, 0, time.time()))
            took = time.monotonic() - began
            self.rests_until = began + took + (9 * took if took > 1 else 0)
        words = [self.words.popleft() for _ in range(len(self.words))]
        for word, then in zip_longest(words, words[1:]):
            if self.opened and (then is None or then.chunk != word.chunk):  # each chunk's last, and the newest
                hear(self.store, self.source, word)
                self._write(points_of(self.store.collect(), self.source, word.step, time.time(), BETWEEN))

    def close(self) -> None:
        """Let the sinks go."""
        for name in list(self.writing):
            try:
                self.sinks[name][0].close(self.finished)
            except Exception as error:
                self._fails(name, error)

    def _open(self, record: RunRecord) -> None:
        self.opened = True
        self.store.load(record, self.source)
        self.target = Target(self.source, self.folder, str(record.run.get("started")), record.config)
        for name in self.config.monitor.sinks:
            try:
                sink = SINKS[name](**self.config.monitor.sink_options.get(name, {}))
                self.sinks[name] = sink, sink.held(self.target)
            except Exception as error:  # of a library or server that learning must not depend on
                self._fails(name, error)
        told = min((held.get(EVERY, -1) for _, held in self.sinks.values()), default=-1)
        self.boundaries = sum(int(event.get("step") or 0) <= told for event in record.chunk_events())

    def _write(self, points: Sequence[Point]) -> None:
        for name, (sink, held) in list(self.sinks.items()):
            new = [point for point in points if point.step > held.get(point.tag, -1)]
            try:
                if new and name not in self.writing:
                    sink.open(self.target)
                    self.writing.add(name)
                if new:
                    sink.write(new)
                    held |= {point.tag: point.step for point in new}
            except Exception as error:
                self._fails(name, error)

    def _fails(self, name: str, error: Exception) -> None:
        self.sinks.pop(name, None)
        self.writing.discard(name)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self.faults.append(
            f"{name} takes no more points of {self.method} ({reason}); --resume tells it what is missing"
        )
        log.warning("%s", self.faults[-1])


class Feeder:
    """The sinks of all methods of a run.

    Args:
        config: the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.feeds = {method: Feed(config, method) for method in config.methods}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sinks", daemon=True)
        self._thread.start()

    def word(self, word: Progress) -> None:
        """The learner's newest word."""
        self.feeds[word.run].words.append(word)

    def changed(self, folder: Path) -> None:
        """Something new is in a method's folder."""
        self.feeds[folder.name].unread = True

    @property
    def faults(self) -> list[tuple[str, str]]:
        """What went wrong so far: method, and a line on it."""
        return [(method, fault) for method, feed in self.feeds.items() for fault in list(feed.faults)]

    def close(self) -> None:
        """Tell the rest, so long as that does not take for ever."""
        for feed in self.feeds.values():
            feed.unread, feed.rests_until = True, 0.0
        self._end.set()
        self._thread.join(LAST_SECONDS)

    def _work(self) -> None:
        ending = False
        while not ending:
            ending = self._end.wait(LOOK_SECONDS)
            for feed in self.feeds.values():
                try:
                    feed.look(last=ending)
                except Exception:  # a folder in the writing: it is read again
                    log.exception("%s cannot be read", feed.folder)
                    feed.unread = True
        for feed in self.feeds.values():
            feed.close()
