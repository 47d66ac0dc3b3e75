"""The log file of a run: what a person watching it was told, a line each, with its time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from streamcvit.screen import as_json, json_line

LOG = "run.log"


class RunLog:
    """Appends to a log file; a folder that takes no more is no reason to stop a run.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before: list[str] = []  # until the run begins, nothing is left behind

    def __call__(self, text: str, level: str = "info") -> None:
        """Write what is said, with the time (UTC), or as a line of JSON."""
        if as_json():
            self._before.append(json_line(text, level) + "\n")
        else:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._before += [f"{now} {line}\n" for line in text.splitlines()]
        if (self.path.parent / "config.yaml").exists():
            with contextlib.suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
                file.writelines(self._before)
            self._before = []


@contextlib.contextmanager
def noted(log: RunLog | None) -> Iterator[None]:
    """Log what ends the work within, where something does."""
    try:
        yield
    except BaseException as error:
        if log is not None:
            log(f"ended: {getattr(error, 'how', '') or error or type(error).__name__}", "error")
        raise
