"""Metrics of one's own over the matrix of scores, with the intervals that the package's have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from streamcvit.evaluation.bootstrap import DRAWS, Estimate, blocks, estimate
from streamcvit.evaluation.draws import Draws, edges_of
from streamcvit.evaluation.plan import Plan

Metric = Callable[[np.ndarray, Plan, np.ndarray], np.ndarray]
"""(scores [..., T, tasks] in points, when each task was learned, bool [tasks] which are in the average) -> [...]."""


def own_metrics(
    functions: Mapping[str, Metric],
    scores: Mapping[str, np.ndarray],
    trained: np.ndarray,
    in_average: Collection[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The value of each metric and its 95 % interval, from the very draws that `summarise` takes.

    Args:
        functions: by name.
        scores, trained, in_average, draws, seed: as in `summarise`.
    """
    plan, counted = Plan(np.asarray(trained)), np.array([task in in_average for task in scores])
    drawn = Draws(scores, seed, edges=edges_of(scores, plan))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in functions}
    for size in (0, *blocks(draws, drawn.numbers)):
        block, _ = drawn.draw(size)
        for name, function in functions.items():
            parts[name].append(function(block, plan, counted)[1 if size else 0 :])
    return {name: estimate(np.concatenate(part)) for name, part in parts.items()}
