"""What the actors of a run need of a cluster, and how GPUs are divided among them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from streamcvit.config import RunConfig
from streamcvit.errors import UserError

OWN_ALONE = ("ewc", "lwf", "mas", "sequential")
"""Strategies that learn the batch's own samples alone."""


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
