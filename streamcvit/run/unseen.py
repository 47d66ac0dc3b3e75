"""Which tasks are scored at which boundary: those seen, and where it is wanted those that are not seen yet."""

from __future__ import annotations

import numpy as np

from streamcvit.config import RunConfig


def scored_at(config: RunConfig, counts: np.ndarray) -> np.ndarray:
    """Whether a task is scored before any learning (row 0) and after each chunk, bool [1 + T, tasks].

    What learns nothing (T = 0) is scored on every task.

    Args:
        config: `evaluation.unseen` and `evaluation.zero_shot` of it decide.
        counts: int [T, tasks], samples of each task in each chunk.
    """
    if not len(counts):
        return np.ones((1, counts.shape[1]), bool)
    seen = np.cumsum(counts, axis=0) > 0
    scored = np.concatenate([np.zeros_like(seen[:1]), seen])
    wanted, untrained = config.evaluation.unseen, ~seen[-1]
    if wanted == "every":
        scored[:] = True
    elif wanted == "ends":
        scored[0] = True
        # Row t + 1 is after chunk t: the one before chunk first(i) is row first(i).
        scored[np.where(untrained, len(counts), seen.argmax(axis=0)), np.arange(len(untrained))] = True
    elif wanted is None and config.stream.source not in ("embedded", "follow"):
        scored[np.ix_([0, -1], untrained)] = True
    if config.evaluation.zero_shot:
        scored[0] = True
    return scored
