"""What all actors have: a pulse. Imported by every one of them, so it imports little."""

from __future__ import annotations

import ctypes
import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

import ray

from streamcvit.cluster.supervise import Pulse
from streamcvit.config import RunConfig
from streamcvit.monitoring import traces

PULSE = "pulse"  # the concurrency group that answers while a call is served
MAILBOX = "mailbox"  # the one that waits meanwhile for what the learner leaves there


def work(method: Callable) -> Callable:
    """Mark a method of an actor as work: while it runs, the actor should move."""

    @functools.wraps(method)
    def run(self: Actor, *args: Any) -> Any:
        self.working = True
        try:
            return method(self, *args)
        finally:
            self.working = False

    return run


class Actor:
    """What all actors have: a pulse, taken by a thread of its own."""

    def __init__(self, config: RunConfig) -> None:
        _end_with_the_node()
        self.config = config
        self.moves, self.working = 0, False
        self.word: Any = None  # the newest thing to tell

    @ray.method(concurrency_group=PULSE)
    def pulse(self) -> Pulse:
        return Pulse(self.moves, self.working, self.word)

    @ray.method(concurrency_group=PULSE)
    def flush(self) -> None:
        """Send the spans that wait."""
        traces.flush()

    def move(self, *_: Any) -> None:
        """Note that something was done."""
        self.moves += 1


def _end_with_the_node() -> None:
    """Let the kernel end this process with its node's: Ray leaves that to the process, so a stopped one would stay."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
