"""A learner's weights between two steps, for whoever asks: the newest only, and nothing is done where nobody asks."""

from __future__ import annotations

import threading

from streamcvit.learning import OnlineLearner
from streamcvit.models.snapshot import Snapshot, adapter_state, state_digest
from streamcvit.run.messages import Weights


class Mailbox:
    """Where a learner leaves a copy of its weights when one is asked for.

    The learner looks in after a step and before the next, so that a copy is what some step left behind, never half of
    one. It makes the copy and goes on learning; the digest is computed by the thread that asked. Reading weights
    changes none, and draws no random number.
    """

    def __init__(self) -> None:
        self._wanted, self._there, self._turn = threading.Event(), threading.Event(), threading.Lock()
        self._left: tuple[str, Snapshot] | None = None

    def look_in(self, method: str, learner: OnlineLearner) -> None:
        """What the learner's thread does between two steps."""
        if not self._wanted.is_set():
            return
        self._wanted.clear()
        copy = adapter_state(learner.model)
        self._left = method, Snapshot(copy, learner.step, learner.cursor, learner.chunk, "")
        self._there.set()

    def ask(self, seconds: float) -> Weights | None:
        """Wait, in another thread than the learner's, for the weights after its next step; None if they do not come."""
        with self._turn:
            self._there.clear()
            self._wanted.set()
            came = self._there.wait(seconds)
            self._wanted.clear()
            left, self._left = self._left, None
        if not came or left is None:
            return None
        method, copy = left
        digest = state_digest(copy.tensors)
        whole = Snapshot(copy.tensors, copy.version, copy.cursor, copy.chunk, digest)
        return Weights(method, copy.chunk, copy.version, copy.cursor, digest, whole)
