"""The learner's newest word in a run folder, so that who watches from outside sees it between two commits."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

WORD = "progress.json"
EVERY = 0.5
"""Seconds between two words that are written; those in between are passed over."""


class Word:
    """Writes the newest word: a file that is replaced, never waited for, and worth nothing once the run has ended.

    Args:
        folder: of the whole run.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path, self._half = Path(folder) / WORD, Path(folder) / f".{WORD}.tmp"
        self._due, self._method = 0.0, ""

    def __call__(self, method: str, position: int, loss: float | None, rate: float | None, step: int | None) -> None:
        """What a method's learner is at: samples behind it, loss in nats, samples a second, optimizer steps."""
        if method == self._method and time.monotonic() < self._due:
            return
        self._due, self._method = time.monotonic() + EVERY, method
        word = {"method": method, "position": position, "loss": loss, "rate": rate, "step": step, "time": time.time()}
        with contextlib.suppress(OSError):  # a full disk is said by what must be written
            self._half.write_text(json.dumps(word), encoding="utf-8")
            os.replace(self._half, self.path)


def newest_word(folder: Path) -> dict[str, Any]:
    """What was written last; empty where nothing was, or nothing that can be read."""
    try:
        word = json.loads((folder / WORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kinds = {"method": str, "position": int, "time": float}
    return word if isinstance(word, dict) and all(isinstance(word.get(k), t) for k, t in kinds.items()) else {}
