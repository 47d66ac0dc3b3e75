"""Which settings a group of learners can work with, and what it needs of a cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamcvit.errors import UserError

if TYPE_CHECKING:
    from streamcvit.config import LearnerConfig, MethodConfig, RunConfig
    from streamcvit.sections import ClusterConfig

OWN_ALONE = ("ewc", "lwf", "mas", "sequential")
"""Strategies that learn the batch's own samples alone."""


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


def check_there(config: RunConfig, there: Mapping[str, Any]) -> None:
    """See that a cluster has what a run's actors ask for.

    Args:
        config: the run.
        there: amounts of the cluster, by kind, as Ray names them.

    Raises:
        UserError: it has less.
    """
    cluster = config.cluster
    asked, has = cpus(config), there.get("CPU", 0)
    if has < asked:
        more = f"{cluster.learners} learners, " if cluster.learners > 1 else ""
        what = f" ({more}{cluster.ingest_actors} ingest, {cluster.evaluators} evaluators)" if more else ""
        lower = "cluster.learners, cluster.ingest_actors" if more else "cluster.ingest_actors"
        raise UserError(
            f"the cluster has {has:.0f} CPUs, the run asks for {asked}{what}",
            where=cluster.address,
            fix=f"Lower {lower} or cluster.evaluators, or add a node",
        )
    gpus = there.get("GPU", 0)
    wanted = config.model.device != "cpu" and (gpus or config.model.device != "auto")
    if cluster.learners > 1 and wanted and gpus < cluster.learners:
        raise UserError(
            f"the cluster has {gpus:g} GPUs, the run asks for one for each of {cluster.learners} learners",
            where=cluster.address,
            fix="Lower cluster.learners, set model.device=cpu, or add a node",
        )


def cpus(config: RunConfig) -> int:
    """CPUs that a run's actors ask for, and one for the driver."""
    return 1 + config.cluster.learners + config.cluster.ingest_actors + config.cluster.evaluators


def gpu_shares(gpus: float, learners: int, evaluators: int) -> tuple[float, float]:
    """GPUs of each learner and of each evaluator, of so many as there are.

    Whole ones where there are enough. One learner shares what there is with the evaluators; several want a GPU each, as
    NCCL has two ranks on none, and evaluators get what is left over, or a share of the learners'.
    """
    if not gpus or gpus >= learners + evaluators:
        return (1, 1) if gpus else (0, 0)
    if learners == 1:
        return (gpus / (1 + evaluators),) * 2
    if left := int(gpus - learners):
        return 1, _fraction(left, evaluators)
    return 0.6, 0.4 * _fraction(learners, evaluators)  # more than half, so that no two learners share one


def _fraction(gpus: int, actors: int) -> float:
    """The share of a GPU with which so many actors fit on so many."""
    return 1 / math.ceil(actors / gpus)


def extends(config: RunConfig) -> bool:
    """Whether a method learns other samples beside a batch's own, which nobody knows when the batch is made."""
    known = all(method.strategy in OWN_ALONE for method in config.methods.values())
    return not known or config.guard.action == "replay"
