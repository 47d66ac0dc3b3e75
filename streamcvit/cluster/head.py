"""Notices that what no run can go on without is gone: a cluster's head, a private Ray's only node.

Ray itself ends a driver without a head after a minute, in its own words, and waits for another node for ever.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

from streamcvit.cluster.supervise import RESUME
from streamcvit.config import ClusterConfig
from streamcvit.errors import UserError
from streamcvit.screen import Screen

KNOCK_SECONDS = 5.0  # that a knock may go unanswered, as by a machine that is switched off
LEAVE_SECONDS = 20.0  # that a driver whose head is gone gets to end by itself


class Head:
    """Knocks at the head's door from a thread of its own, as long as the context lasts.

    A driver that has just asked the head for something (to start an actor, say) waits in Ray's core, where neither an
    exception nor a signal reaches it; one that has not ended by itself `LEAVE_SECONDS` after its head was given up is
    ended here, with the same line and exit code. All that it writes is written so that it may end at any moment.

    Args:
        config: how often, and how long it may stay shut.
        leave_seconds: only a test needs others.
    """

    def __init__(self, config: ClusterConfig, leave_seconds: float = LEAVE_SECONDS) -> None:
        self._every, self._patience = config.heartbeat_seconds, config.silent_seconds
        self._leave_seconds = leave_seconds
        self._gone, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def watch(self, name: str, address: str) -> None:
        """Begin to knock at one more door.

        Args:
            name: whose it is.
            address: host:port.
        """
        threading.Thread(target=self._watch, args=(name, address), name=f"at {address}", daemon=True).start()

    def check(self) -> None:
        """Go on only if all are there.

        Raises:
            UserError: one has not been there for `cluster.silent_seconds`.
        """
        if self._gone.is_set():
            raise self._error

    def give_up(self, what: str, where: str) -> None:
        """Let the next `check` fail, and the process end in any case."""
        self._error = UserError(what, where=where, fix=RESUME)
        self._gone.set()
        threading.Thread(target=self._leave, name="leave", daemon=True).start()

    def _watch(self, name: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        place = (host.strip("[]"), int(port))
        since = None  # the first knock in vain
        while since is None or time.monotonic() - since <= self._patience:
            if self._over.wait(self._every):
                return
            began = time.monotonic()
            try:
                socket.create_connection(place, timeout=min(self._patience / 4, KNOCK_SECONDS)).close()
                since = None
            except OSError:
                since = since or began
        self.give_up(f"{name} has been gone for {self._patience:.0f} s", address)

    def _leave(self) -> None:
        if self._over.wait(self._leave_seconds):
            return
        Screen().show_cursor(True)  # a live view hides it
        with contextlib.suppress(OSError):
            os.write(2, f"error: {self._error}\n".encode())
        os._exit(2)
