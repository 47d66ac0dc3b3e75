"""Whether a task has forgotten: its best earlier boundary less the newest, with an interval that knows it was picked.

Both boundaries answered the same test samples, so the bootstrap draws the same ones for all boundaries (as for two
runs, `streamcvit.evaluation.paired`). The best of several noisy scores is too high, and a plain interval around it
finds forgetting where there is none. `maf_cross` meets that by halving the samples
(`streamcvit.evaluation.forgetting`), which one task's hundred samples bear badly. Here the lower end holds for all
earlier boundaries at once: it lies below the value by what the *largest* error over them comes to in 97.5 % of the
draws (the single-step max statistic of Westfall and Young, 1993), so that it does not matter which of them was picked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamcvit.evaluation.bootstrap import DRAWS, LEVEL, resampled_means
from streamcvit.evaluation.paired import FEWEST


class Loss(NamedTuple):
    """What a task lost.

    Attributes:
        points: its score at the best earlier boundary less the newest.
        low, high: 95 % interval; `low` holds for all earlier boundaries at once.
        best: row of the best boundary, the first of equal ones.
        decided: whether the interval lies above zero, on samples enough to say so.
    """

    points: float
    low: float
    high: float
    best: int
    decided: bool


def loss_of(points: np.ndarray, draws: int = DRAWS, seed: tuple[int, ...] = (0,)) -> Loss:
    """What a task lost at its newest boundary.

    Args:
        points: float [boundaries, n], two rows at least, the newest last; nan what was not scored.
        draws, seed: of the bootstrap.
    """
    known = points[:, ~np.isnan(points).all(axis=0)]
    means = resampled_means(known, draws, np.random.default_rng(seed))
    apart = means[:, :-1] - means[:, -1:]  # [1 + draws, earlier]
    best = int(np.nanargmax(apart[0]))
    error = apart[1:] - apart[0]
    low = apart[0, best] - np.nanquantile(np.nanmax(error, axis=1), (1 + LEVEL) / 2)
    high = np.nanquantile(apart[1:, best], (1 + LEVEL) / 2)
    differing = int((np.abs(known[best] - known[-1]) > 1e-9).sum())
    return Loss(float(apart[0, best]), float(low), float(high), best, bool(differing >= FEWEST and low > 0))
