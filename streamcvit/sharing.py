"""Which settings a group of learners can work with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from streamcvit.errors import UserError
from streamcvit.sections import OWN

if TYPE_CHECKING:
    from streamcvit.config import LearnerConfig, MethodConfig, RunConfig
    from streamcvit.sections import ClusterConfig

ADAPTERS = ("lora", "moelora", "none", "smolora", "strlora")
STRATEGIES = ("ewc", "lwf", "mas", "replay", "sequential")
"""What ranks can share; a strategy of one's own is taken at its word."""


def check_learners(cluster: ClusterConfig, learner: LearnerConfig, methods: Mapping[str, MethodConfig]) -> None:
    """Raises a ValueError where several learners cannot share the batches as they are asked to."""
    ranks, size = cluster.learners, learner.batch_size
    if ranks == 1:
        return
    micro = cluster.micro_batch(size, learner.micro_batch)
    if not micro:
        raise ValueError(
            f"cluster.learners: {ranks} learners share a batch exactly by its micro-batches; set learner.micro_batch "
            f"to {max(1, size // ranks)} or less, or cluster.learner_mode to fast"
        )
    if (parts := math.ceil(size / micro)) < ranks:
        raise ValueError(
            f"cluster.learners: a batch of {size} has {parts} micro-batches of {micro}, too few for {ranks} learners; "
            "lower learner.micro_batch or cluster.learners"
        )
    for name, method in methods.items():
        for key, known in (("adapter", ADAPTERS), ("strategy", STRATEGIES)):
            if (value := getattr(method, key)) not in known and not OWN.fullmatch(value):
                raise ValueError(
                    f"cluster.learners: methods.{name}.{key}: {value!r} is not made for several learners; set "
                    f"cluster.learners to 1, or take one of {', '.join(known)}"
                )
    for name, method in methods.items() if cluster.learner_mode == "exact" else ():
        if any(method.options.get(key) for key in ("lora_dropout", "dropout")):
            raise ValueError(
                f"cluster.learners: methods.{name} drops out, and what depends on who computes a micro-batch; "
                "set its lora_dropout to 0, or cluster.learner_mode to fast"
            )


def check_local(config: RunConfig) -> None:
    """Raises a UserError where a run in one process asks for several learners."""
    if config.cluster.learners > 1:
        raise UserError(
            f"{config.cluster.learners} learners want actors of their own, which neither --local nor runs side by side "
            "(seeds, sweep) have",
            where="cluster.learners",
            fix="Set it to 1, or run without --local, one seed at a time",
        )
