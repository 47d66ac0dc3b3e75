"""Notices that a cluster's head is gone before Ray does, which after a minute ends the driver in its own words."""

from __future__ import annotations

import socket
import threading
import time

from streamcvit.cluster.supervise import RESUME
from streamcvit.config import ClusterConfig
from streamcvit.errors import UserError

KNOCK_SECONDS = 5.0  # that a knock may go unanswered, as by a machine that is switched off


class Head:
    """Knocks at the head's door from a thread of its own.

    Args:
        address: host:port of Ray's control service.
        config: how often, and how long it may stay shut.
    """

    def __init__(self, address: str, config: ClusterConfig) -> None:
        host, _, port = address.rpartition(":")
        self.address, self._place = address, (host.strip("[]"), int(port))
        self._every, self._patience = config.heartbeat_seconds, config.silent_seconds
        self._gone = threading.Event()
        threading.Thread(target=self._watch, name="head", daemon=True).start()

    def check(self) -> None:
        """Go on only if it is there.

        Raises:
            UserError: it has not been there for `cluster.silent_seconds`.
        """
        if self._gone.is_set():
            raise UserError(
                f"the cluster's head has been gone for {self._patience:.0f} s",
                where=self.address,
                fix=RESUME,
            )

    def _watch(self) -> None:
        since = None  # the first knock in vain
        while since is None or time.monotonic() - since <= self._patience:
            time.sleep(self._every)
            began = time.monotonic()
            try:
                socket.create_connection(self._place, timeout=min(self._patience / 4, KNOCK_SECONDS)).close()
                since = None
            except OSError:
                since = since or began
        self._gone.set()
