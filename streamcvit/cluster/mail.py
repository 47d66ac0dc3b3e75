"""The learner's weights between two steps, for the driver's probes: asked for, awaited, and handed to evaluators."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from streamcvit.cluster.supervise import Call, Post, Supervisor
from streamcvit.run.messages import Job, Weights


class Mail:
    """What the learner's mailbox gave last, kept while it is fresh (`streamcvit.run.local.Probing`).

    Args:
        supervisor: carries the question, also to a learner's successor.
        learner: whom to ask.
        tell: the monitor, of rows: (method of the monitor, what it is given).
    """

    def __init__(self, supervisor: Supervisor, learner: Post, tell: Callable[..., None]) -> None:
        self.supervisor, self.learner, self.tell = supervisor, learner, tell
        self.asked: Call | None = None
        self.letter: Weights | None = None
        self.came = 0.0

    def newest(self, seconds: float) -> Weights | None:
        """What the learner held so many seconds ago at most; None where it is asked for, until a step ends."""
        if self.letter is not None and time.monotonic() - self.came <= seconds:
            return self.letter
        self.letter = None
        if self.asked is None:
            self.asked = self.supervisor.call(self.learner, "newest")
        return None

    def take(self, call: Call, letter: Weights | None) -> bool:
        """Take an answer, if it is the one to the question."""
        if call is not self.asked:
            return False
        self.asked, self.letter, self.came = None, letter, time.monotonic()
        return True

    def snapshot(self, job: Job) -> Any:
        """Where the weights of a probe are; None where others came since."""
        letter = self.letter
        same = letter is not None and (letter.method, letter.digest) == (job.method, job.digest)
        return letter.snapshot if letter is not None and same else None

    def probed(self, method: str, rows: list[dict[str, Any]]) -> None:
        """Show a probe's rows to whoever watches."""
        self.tell("probed", method, rows)
