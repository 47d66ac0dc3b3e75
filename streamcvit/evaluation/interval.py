"""The interval of one task's score: Wilson's near 0 and 100 %, else the bootstrap."""

from __future__ import annotations

import math

import numpy as np

from streamcvit.evaluation.bootstrap import Estimate, bootstrap_mean

FEW = 10
"""Right or wrong answers below which a share is near an edge."""
_Z = 1.959963984540054


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, in 0..1 (Wilson, 1927)."""
    share, z2 = right / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def wilson_ends(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of every row's Wilson interval, points [..., n]; nan where `score_interval` takes the bootstrap."""
    n, right = points.shape[-1], (points == 100.0).sum(axis=-1)
    near = (np.minimum(right, n - right) < FEW) & np.isin(points, (0.0, 100.0)).all(axis=-1)
    if n == 0:
        return np.full(right.shape, np.nan), np.full(right.shape, np.nan)
    found = np.array([wilson(count, n) for count in range(n + 1)])[right]  # a table: as many counts as samples at most
    low, high = np.moveaxis(np.where(near[..., None], 100.0 * found, np.nan), -1, 0)
    return low, high


def score_interval(points: np.ndarray) -> tuple[Estimate, str]:
    """The mean of points [n] with its 95 % interval, and which of the two it is: `wilson` or `bootstrap`."""
    mean, right = float(points.mean()), int((points == 100.0).sum())
    if min(right, len(points) - right) < FEW and bool(np.isin(points, (0.0, 100.0)).all()):
        low, high = wilson(right, len(points))
        return Estimate(mean, 100.0 * low, 100.0 * high), "wilson"
    return Estimate(mean, *bootstrap_mean(points)), "bootstrap"
