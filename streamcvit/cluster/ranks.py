"""The learners of a group beside rank 0 as Ray actors, and how rank 0 goes on when one of them is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeVar

import ray
import torch

from streamcvit.cluster.actor import Actor, work
from streamcvit.config import RunConfig
from streamcvit.learning.meeting import Lead, Meeting, Member
from streamcvit.learning.wires import GroupBroken
from streamcvit.run.loading import traced
from streamcvit.run.ranks import RankWorker

log = logging.getLogger(__name__)

LEARNER = "learner"
ANSWER_SECONDS = 30.0  # that rank 0 may take to say where the group meets
Result = TypeVar("Result")


def rank_name(rank: int) -> str:
    """The post of a rank; rank 0's is the learner's."""
    return f"{LEARNER}-{rank}" if rank else LEARNER


def host_of(config: RunConfig) -> str:
    """Where the other ranks reach this process: nobody from outside, where Ray is this machine's alone."""
    return "127.0.0.1" if config.cluster.address == "local" else ray.util.get_node_ip_address()


def group_options(config: RunConfig, alive: Callable[[], None]) -> dict[str, Any]:
    """What every rank's view of the group is made with."""
    cluster = config.cluster
    return {
        "ranks": cluster.learners,
        "exact": cluster.learner_mode == "exact",
        "seed": config.seed,
        "host": host_of(config),
        "seconds": cluster.stuck_seconds,
        "alive": alive,
    }


def together(lead: Lead | None, device: Callable[[], torch.device], do: Callable[..., Result], *given: Any) -> Result:
    """Do what rank 0 does, with its group: where that breaks it is built anew, and rank 0 goes on from the last commit.

    Args:
        lead: the group; None: there is none.
        device: of the model.
        do, given: the call, which may be made again.
    """
    if lead is None:
        return do(*given)
    while True:
        try:
            lead.meet(device())
            return do(*given)
        except GroupBroken as error:
            log.warning("the group of learners broke, and is built anew: %s", error)
            lead.broke(error)
        except BaseException:
            lead.close()
            raise


def _where() -> Meeting | None:
    """Where the group meets now; None while rank 0 is being replaced, or waits for work."""
    try:
        asked: Any = ray.get_actor(LEARNER).meeting.remote()
        found: Any = ray.get(asked, timeout=ANSWER_SECONDS)
        return found
    except (ValueError, ray.exceptions.RayError):
        return None


class RankActor(Actor):
    """Learns with the learner, and writes nothing."""

    def __init__(self, config: RunConfig, stream: str, rank: int) -> None:
        super().__init__(config)
        self.stream, self.rank = stream, rank

    @cached_property
    def worker(self) -> RankWorker:
        from streamcvit.cluster.actors import RemoteFeed, count_forwards

        traced(self.config, rank_name(self.rank))
        group = Member(self.rank, where=_where, **group_options(self.config, self.move))
        feed = RemoteFeed(self.config, self.stream, self.move, rank=self.rank)
        loaded = partial(count_forwards, move=self.move)
        return RankWorker(self.config, self.stream, feed, group, loaded, self._works)

    def _works(self, working: bool) -> None:
        self.working = working

    @work
    def ready(self) -> str:
        return self.worker.base.digest

    def follow(self) -> None:
        """Learn with rank 0 for as long as there is one; what is waited for is no work."""
        self.worker.follow()
