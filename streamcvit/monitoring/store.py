"""The numbers of runs that go on, from their folders."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pyarrow as pa
from prometheus_client import Metric

from streamcvit.monitoring.metrics import MetricStore, telling_rows
from streamcvit.monitoring.record import RunRecord

READ_SECONDS = 2.0  # that an answer waits for newer numbers; a Prometheus gives up after ten


class RunStore(MetricStore):
    """Numbers of run folders that are read when they are asked for, and only where something changed.

    A folder is read whole, so a long stream's takes its time: who asks waits `READ_SECONDS` for that at most and then
    gets what was read before; after a reading of more than a second comes a pause nine times as long.
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

    def read(self) -> None:
        """Read every folder at once: what was counted before anybody looked is no news."""
        with self._turn:
            folders, self._unread = self._unread, set()
        self._read(folders)

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
