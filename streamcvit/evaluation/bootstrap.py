"""Intervals by resampling samples: what another test set of the same size might have shown.

All are 95 % percentile intervals of the paired bootstrap (Efron and Tibshirani, 1993; Koehn, 2004, for comparing
systems): a draw resamples the samples of a task with replacement, and the same samples at every chunk and in both
runs. Tasks are resampled apart. Nothing here speaks of another seed of training. CIDEr keeps each row's points as they
are: its document frequencies are not estimated anew in a draw.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DRAWS, LEVEL = 1000, 0.95
# Draws are counted in blocks, so that a large test set does not need draws x samples numbers at once.
_BLOCK = 4_000_000


class Estimate(NamedTuple):
    """A value with its 95 % interval, in points; nan where it is not defined."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """The contract of summary.json: null where it is not defined."""
        return {key: None if np.isnan(number) else float(number) for key, number in self._asdict().items()}


def resampled_means(points: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Row means of the points as they are and in every draw.

    Args:
        points: float [rows, n]; nan where a sample has none in that row. A draw takes the same samples in every row.
        draws: how often to resample.
        rng: source of the draws.

    Returns:
        float64 [1 + draws, rows]; the first is the plain mean. Nan where a row has no points (or a draw met none).
    """
    rows, n = points.shape
    present = np.isfinite(points)
    filled = np.where(present, points, 0.0).T.astype(np.float64)
    # Whole rows are present or absent as a rule; then the number of points in a draw is known without counting.
    holes = not bool(np.all(present.any(axis=1) == present.all(axis=1)))
    means = np.full((1 + draws, rows), np.nan)
    if n == 0:
        return means
    with np.errstate(invalid="ignore", divide="ignore"):
        means[0] = filled.sum(axis=0) / present.sum(axis=1)
        block = max(1, _BLOCK // n)
        for start in range(0, draws, block):
            size = min(block, draws - start)
            picked = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
            weights = np.bincount(picked.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
            counts = weights @ present.T.astype(np.float64) if holes else n * present.all(axis=1)
            means[1 + start : 1 + start + size] = weights @ filled / counts
    return means


def estimate(values: np.ndarray) -> Estimate:
    """The first of the values, and the interval of the others; float [1 + draws].

    Draws in which the value is not defined are left out.
    """
    drawn = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or drawn.size == 0:
        return Estimate(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values[0]), float(low), float(high))


def bootstrap_mean(points: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of per-sample points [n]; (nan, nan) where there are none.

    A row of equal points has an interval of width 0: the bootstrap knows no sample that it has not seen.
    """
    means = resampled_means(np.asarray(points, dtype=np.float64)[None, :], draws, np.random.default_rng(seed))
    return estimate(means[:, 0])[1:]
