"""The journal of a stream that goes on: what arrived in which order, where chunks end; written before it is learned.

A line of JSON each, on disk before anything follows from it. Each holds a digest of the line before it, so that a line
that was changed, lost or put in is noticed when the run goes on; a last line that was cut short was never acted on.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from streamcvit.errors import UserError
from streamcvit.learning.durable import fsync_folder

JOURNAL = "journal.jsonl"
BEGIN, TASK, TAKE, HOLD, ASIDE, CLOSE, END = "begin", "task", "take", "hold", "aside", "close", "end"
"""What a line tells: of the stream, a task with its test set, a shard that was taken, something that has to wait or was
set aside, the end of a chunk, and that nothing follows."""
_FIX = "Restore it from a copy, or start another run"


class Journal:
    """The lines of a journal, in order, and the one writer of them.

    Args:
        folder: of the run's stream.

    Raises:
        UserError: a line is damaged; nothing of it is used then.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.lines: list[dict[str, Any]] = []
        self._last = ""
        self._read()

    def __len__(self) -> int:
        return len(self.lines)

    def append(self, what: str, **values: Any) -> dict[str, Any]:
        """Write a line; it is on disk when this returns."""
        new = not self.path.exists()
        line = {"what": what, **values, "before": self._last}
        text = json.dumps(line, sort_keys=True) + "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if new:
            fsync_folder(self.path.parent)
        self._last = _digest(text.encode())
        self.lines.append(line)
        return line

    @property
    def identity(self) -> str:
        """What tells this stream from any other: the digest of the first line, which holds a drawn name."""
        return hashlib.sha256(json.dumps(self.lines[0], sort_keys=True).encode()).hexdigest() if self.lines else ""

    def _read(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        if short := data.rfind(b"\n") + 1 - len(data):
            os.truncate(self.path, len(data) + short)
        for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(keepends=True), start=1):
            try:
                line = json.loads(text)
                sound = isinstance(line, dict) and line.get("before") == self._last and isinstance(line["what"], str)
            except (ValueError, LookupError):
                sound = False
            if not sound:
                what = f"line {number} of the journal is damaged, or one before it is missing"
                raise UserError(what, where=str(self.path), fix=_FIX)
            self._last = _digest(text)
            self.lines.append(line)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
