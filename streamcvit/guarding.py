"""The section of the settings that says what a run does when forgetting is confirmed, and what each action needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from streamcvit.sections import Section

if TYPE_CHECKING:
    from streamcvit.config import MethodConfig


class GuardConfig(Section):
    """What a run does when forgetting is confirmed (docs/monitoring.md)."""

    action: Literal["none", "pause", "rollback", "replay"] = Field(
        "none",
        description="`pause`: stand still until `streamcvit resume`; `rollback`: put back the weights of the best "
        "boundary of the task that lost most; `replay`: rehearse more of what came before until it has recovered. "
        "Other than `none`, every chunk waits for the scores of the one before",
    )
    points: float = Field(
        10.0,
        gt=0,
        le=100,
        description="a task that stands more than so many points below its best boundary, with an interval above zero, "
        "has forgotten; at half of it, it has recovered",
    )
    share: float = Field(
        1.0,
        gt=0,
        le=8,
        description="replay: samples rehearsed beside a batch meanwhile, as a share of learner.batch_size",
    )
    memory: int = Field(
        64,
        ge=0,
        description="replay: training samples kept for it (a reservoir) by methods whose own strategy keeps none; "
        "0: none are kept, and such methods are refused",
    )

    @property
    def on(self) -> bool:
        """Whether anything is done."""
        return self.action != "none"

    def beside(self, samples: int) -> int:
        """Samples rehearsed beside a batch of so many while something is lost."""
        return math.ceil(self.share * samples)

    def rehearses(self, method: MethodConfig) -> bool:
        """Whether a method may be made to rehearse: it learns the stream chunk by chunk."""
        return self.action == "replay" and by_chunks(method)


def by_chunks(method: MethodConfig) -> bool:
    """Whether a method learns the stream chunk by chunk: only such a one forgets, and can be guarded."""
    return method.adapter != "none" and method.order != "joint"


def check_guard(guard: GuardConfig, methods: Mapping[str, MethodConfig], batch_size: int) -> None:
    """Raises a ValueError where an action can do nothing for any method, or replay nothing for one of them.

    Args:
        guard: a config's.
        methods: the config's, by name.
        batch_size: of the learner.
    """
    from streamcvit.learning.strategies import STRATEGIES, Replay, rehearses

    learning = {name: method for name, method in methods.items() if by_chunks(method)}
    if guard.on and not learning:
        raise ValueError(
            f"guard.action: {guard.action!r} guards methods that learn the stream chunk by chunk; none does"
        )
    for name, method in learning.items() if guard.action == "replay" else ():
        if not rehearses(method.strategy):
            if not guard.memory:
                raise ValueError(
                    f"guard.action: 'replay' has nothing to rehearse for methods.{name} (strategy "
                    f"{method.strategy!r}) while guard.memory is 0"
                )
            continue
        try:
            replay = STRATEGIES[method.strategy](**method.strategy_options)
        except (TypeError, ValueError):
            continue  # the check of all options says what is wrong
        assert isinstance(replay, Replay)
        asked, own = guard.beside(batch_size), replay.wanted(batch_size)
        memory = replay.memory if "memory" in method.strategy_options else asked
        if min(asked, memory) <= own:
            raise ValueError(
                f"guard.share: methods.{name} rehearses {own} samples beside a batch of {batch_size} of its own; "
                f"{guard.share:g} of it, from a memory of {memory}, is no more"
            )
