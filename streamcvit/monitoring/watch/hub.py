"""One reader for all who watch: a run folder is looked at once, however many tabs are open, and not at all for none."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.4
BEAT_SECONDS = 5.0
"""Between two signs of life for a viewer to whom there is nothing to tell."""
MOST_VIEWERS = 100
SHARE = 0.2
"""Of a core, at most, that reading takes where a look takes long."""


class Hub:
    """The newest state of a run, part by part, and those who wait for the next.

    The reader's thread lives while somebody watches.

    Args:
        look: reads what is watched: its parts by name, of JSON values.
        seconds: between two looks.
    """

    def __init__(self, look: Callable[[], Mapping[str, Any]], seconds: float = LOOK_SECONDS) -> None:
        self._look, self._seconds = look, seconds
        self._turn = threading.Condition()
        self._looking = threading.Lock()
        self._parts: dict[str, tuple[int, str]] = {}  # name -> version, JSON
        self._gone: dict[str, int] = {}
        self._version, self._due = 0, 0.0
        self._sent: dict[object, int] = {}  # viewer -> version
        self._thread: threading.Thread | None = None
        self._closed = False
        self.boot = secrets.token_hex(4)
        """Tells the versions of this hub from those of an earlier one."""
        self.looks = 0
        """How often the folder was looked at."""

    @property
    def viewers(self) -> int:
        """How many wait for news."""
        return len(self._sent)

    def state(self, after: int = 0) -> tuple[int, dict[str, str]]:
        """Version, and the JSON of each part that is newer than `after`; a part that is gone is `null`."""
        self._refresh()
        with self._turn:
            return self._version, self._newer(after)

    def news(self, last: str = "") -> Iterator[str]:
        """The parts that change, as server-sent events, until the hub closes.

        Args:
            last: id of the newest event that the viewer has; it is told what changed since, or everything.
        """
        boot, _, number = last.partition(".")
        has = int(number) if boot == self.boot and number.isdecimal() else 0
        me = object()
        with self._turn:
            self._sent[me] = has
            self._begin()
        try:
            yield "retry: 1000\n\n"
            while True:
                self._refresh()
                with self._turn:
                    self._sent[me] = has
                    self._turn.notify_all()
                    end = time.monotonic() + BEAT_SECONDS
                    while not self._closed and self._version <= has and (left := end - time.monotonic()) > 0:
                        self._turn.wait(left)
                    if self._closed:
                        return
                    version, parts = self._version, self._newer(has)
                has = version
                yield event(f"{self.boot}.{version}", parts) if parts else "event: beat\ndata: 1\n\n"
        finally:
            with self._turn:
                del self._sent[me]
                self._turn.notify_all()

    def flush(self, seconds: float = 1.0) -> None:
        """Look once more, and wait until everybody was told what there is, for so long at most."""
        if self._looking.acquire(timeout=seconds):  # a look that goes on may have begun before the newest change
            try:
                self._look_once()
            finally:
                self._looking.release()
        with self._turn:
            self._turn.wait_for(lambda: all(has >= self._version for has in self._sent.values()), timeout=seconds)

    def close(self) -> None:
        """End every viewer's stream, and the reader."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="watch", daemon=True)
            self._thread.start()

    def _read(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._closed, timeout=max(self._seconds, self._due - time.monotonic()))
                if self._closed or not self._sent:
                    self._thread = None
                    return
            self._refresh()

    def _refresh(self) -> None:
        """Look, unless somebody did a moment ago or does so at the moment and there is something to show already."""
        if time.monotonic() < self._due:
            return
        if not self._looking.acquire(blocking=self._version == 0):
            return
        try:
            if time.monotonic() >= self._due:
                self._look_once()
        finally:
            self._looking.release()

    def _look_once(self) -> None:
        try:
            began = time.thread_time()
            self._take(self._look())
            took = time.thread_time() - began
            self._due = time.monotonic() + max(0.8 * self._seconds, took / SHARE - took)
        except Exception:  # what was read before is worth showing
            log.exception("the run cannot be read")
            self._due = time.monotonic() + 5.0

    def _take(self, parts: Mapping[str, Any]) -> None:
        self.looks += 1
        texts = {name: json.dumps(value, separators=(",", ":"), allow_nan=False) for name, value in parts.items()}
        with self._turn:
            changed = {name: text for name, text in texts.items() if self._parts.get(name, (0, ""))[1] != text}
            gone = self._parts.keys() - texts.keys()
            if not changed and not gone:
                return
            self._version += 1
            for name, text in changed.items():
                self._parts[name] = self._version, text
                self._gone.pop(name, None)
            for name in gone:
                del self._parts[name]
                self._gone[name] = self._version
            self._turn.notify_all()

    def _newer(self, after: int) -> dict[str, str]:
        found = {name: text for name, (version, text) in self._parts.items() if version > after}
        return found | {name: "null" for name, version in self._gone.items() if version > after}


def event(number: str, parts: Mapping[str, str]) -> str:
    """Parts as one server-sent event."""
    return f"id: {number}\ndata: {joined(parts)}\n\n"


def joined(parts: Mapping[str, str]) -> str:
    """Parts as one JSON object; every sign is ASCII, so no line ends within."""
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in parts.items()) + "}"
