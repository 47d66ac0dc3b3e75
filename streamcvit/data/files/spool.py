"""Bytes set aside until they are needed: in memory while they are few, then in a file without a name."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

IN_MEMORY = 32 << 20
"""Bytes that are kept in memory before a file is begun."""


class Spool:
    """An append-only store of byte strings; what it puts on disk is gone with it, however the process ends.

    Args:
        folder: where its file goes; None: the machine's folder for temporary files.

    Attributes:
        keeps: whether what is put can be had again.
    """

    keeps = True

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=None if folder is None else str(folder))  # noqa: SIM115
        self._lock = threading.Lock()
        self._end = 0

    def put(self, data: bytes) -> int:
        """Keep `data`; returns where it lies.

        Raises:
            OSError: the disk is full.
        """
        with self._lock:
            start = self._end
            self._file.seek(start)
            self._file.write(data)
            self._end += len(data)
        return start

    def get(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`."""
        with self._lock:
            self._file.seek(start)
            return self._file.read(size)


class Nothing(Spool):
    """Keeps nothing: for who only counts."""

    keeps = False

    def put(self, data: bytes) -> int:
        """Nowhere."""
        return 0

    def get(self, start: int, size: int) -> bytes:
        """Nothing."""
        raise RuntimeError("this import was made to be counted only")
