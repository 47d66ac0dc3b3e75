"""The actor that shows a run's numbers. It needs no model, so nothing here imports one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from prometheus_client import Metric

from streamcvit.cluster.actor import Actor, work
from streamcvit.cluster.messages import Progress
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.monitoring.exporter import Server, serve
from streamcvit.monitoring.metrics import MetricStore, telling_rows
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report import live_page

MONITOR = "monitor"
READ_SECONDS = 2.0  # that an answer waits for newer numbers; a Prometheus gives up after ten
PORT_SECONDS = 20.0  # a stopped monitor keeps its port until its node has killed it


class RunStore(MetricStore):
    """Numbers of run folders that are read when they are asked for, and only where something changed.

    A folder is read whole, so a long stream's takes its time: who asks waits for that a little and then gets what was
    read before, and at most a tenth of the time goes into reading.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        super().__init__()
        self._unread, self._turn = set(folders), threading.Lock()
        self._reader = ThreadPoolExecutor(1, "reader")
        self._reading: Future[None] | None = None
        self._rests_until = 0.0

    def changed(self, folder: Path) -> None:
        """Read a folder before the next answer."""
        with self._turn:
            self._unread.add(folder)

    def collect(self) -> Iterator[Metric]:
        """All values, as `prometheus_client` wants them."""
        with self._turn:
            free = self._reading is None or self._reading.done()
            if self._unread and free and time.monotonic() >= self._rests_until:
                # What changes from here on is for the next time: a stream may change faster than it is read.
                self._reading, self._unread = self._reader.submit(self._read, self._unread), set()
            reading = self._reading
        if reading is not None:
            wait([reading], timeout=READ_SECONDS)
        yield from super().collect()

    def _read(self, folders: set[Path]) -> None:
        began = time.monotonic()
        for folder in folders:
            try:
                if (folder / "run.json").exists():
                    self.load(RunRecord.load(folder, telling_rows))
            except Exception:  # the numbers of the other folders, and the older ones of this, are worth showing
                logging.getLogger(__name__).exception("%s cannot be read", folder)
        pa.default_memory_pool().release_unused()
        ended = time.monotonic()
        self._rests_until = ended + (9 * (ended - began) if ended - began > 1 else 0)


class MonitorActor(Actor):
    """Holds the numbers of all runs and serves the one /metrics endpoint; after a restart it reads the run folders.

    Args:
        config: the run.
        port: where to listen; 0 takes any.
        token: what a reader must show; empty: nothing.
        again: whether another monitor held this port a moment ago.
        labels: of the build.
    """

    def __init__(self, config: RunConfig, port: int, token: str, again: bool, labels: dict[str, str]) -> None:
        super().__init__(config)
        self.port, self.token, self.again, self.labels = port, token, again, labels

    @cached_property
    def store(self) -> RunStore:
        store = RunStore(self.config.folder(method) for method in self.config.methods)
        store.build_info(**self.labels)
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
