"""What a rank above 0 does, as a plain class: it learns what rank 0 learns, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from streamcvit.adapters.calls import take_usage
from streamcvit.config import RunConfig
from streamcvit.learning.group import fingerprint
from streamcvit.learning.meeting import Member
from streamcvit.learning.putback import put_back
from streamcvit.learning.soundness import Diverged
from streamcvit.learning.wires import GroupBroken
from streamcvit.models.batch import Batch
from streamcvit.run.loading import Feed
from streamcvit.run.workers import LearnerWorker


class RankWorker(LearnerWorker):
    """Learns with a group, on a loaded base of its own.

    Args:
        config: the run.
        stream: folder of shards and index.
        feed: gives batches.
        group: this rank's.
        loaded: told of the base model, each time one is loaded.
        working: told whether something is being done: a rank that waits for rank 0 is not stuck.
    """

    def __init__(
        self,
        config: RunConfig,
        stream: str,
        feed: Feed,
        group: Member,
        loaded: Callable[[torch.nn.Module], None] = lambda _: None,
        working: Callable[[bool], None] = lambda _: None,
    ) -> None:
        super().__init__(config, stream, feed, loaded=loaded)
        self.group, self.working = group, working

    def follow(self) -> None:
        """Do what rank 0 says, in one group after another, for ever.

        Raises:
            UserError: what it is to learn cannot be read, as rank 0 finds too.
        """
        while True:
            self.follow_group()

    def follow_group(self) -> None:
        """The same until the group breaks, or rank 0 lets go of it."""
        try:
            self.group.meet(self.base.device)
            while True:
                word = self.group.hear()
                self.working(True)
                getattr(self, f"_do_{word.pop('do')}")(**word)
                self.working(False)
        except (GroupBroken, Diverged):
            pass  # rank 0 has met with the same, and says what comes next
        finally:
            self.working(False)
            self.group.close()

    def _do_begin(self, method: str) -> None:
        self._build(method)
        self.learner.group = self.group
        self.method = method

    def _do_resume(self, commit: str | None) -> None:
        if commit is None:
            self._start(self.method)
        else:
            self.learner.resume(Path(commit))

    def _do_obey(self, version: int | None, digest: str, share: float) -> None:
        if version is not None:
            put_back(self.learner, self.folder / "commits", version, digest)
        self._rehearse(share)

    def _do_learn(self, cursor: int, stop: int, chunk: int) -> None:
        if cursor == stop:
            self.learner.learn(Batch(cursor, stop, chunk, (), (), None))
            return
        batch = next(self.feed(self.config.methods[self.method].order, cursor, stop), None)
        if batch is None:
            raise GroupBroken("the call that takes the batches was canceled")
        self.learner.learn(batch)

    def _do_compare(self) -> None:
        self.group.answer(fingerprint(self.learner))

    def _do_usage(self) -> None:
        counts: list[list[Any]] = take_usage(self.learner.model)
        self.group.answer(counts)
