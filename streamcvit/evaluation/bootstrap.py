"""Intervals by resampling samples: what another test set of the same size might have shown.

All are 95 % percentile intervals of the paired bootstrap (Efron and Tibshirani, 1993; Koehn, 2004, for comparing
systems): a draw resamples the samples of a task with replacement, and the same samples at every chunk and in both
runs. Tasks are resampled apart. Nothing here speaks of another seed of training. CIDEr keeps each row's points as they
are: its document frequencies are not estimated anew in a draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

DRAWS, LEVEL = 1000, 0.95
BLOCK = 30_000
"""Numbers held at once. Draws come in blocks, so that neither a large test set nor a long stream needs them all; so
few also stay in the cache."""


class Estimate(NamedTuple):
    """A value with its 95 % interval, in points; nan where it is not defined."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """The contract of summary.json: null where it is not defined."""
        return {key: None if np.isnan(number) else float(number) for key, number in self._asdict().items()}


class Resampler:
    """Row means of points, as they are and in draw after draw.

    Args:
        points: float [rows, n]; nan where a sample has none in that row. A draw takes the same samples in every row.
        rng: source of the draws; how many are asked for at once does not change them.

    Attributes:
        plain: float64 [rows], the means as they are; nan where a row has no points.
    """

    def __init__(self, points: np.ndarray, rng: np.random.Generator) -> None:
        self.rng, self.n = rng, points.shape[1]
        present = np.isfinite(points)
        self._filled = np.where(present, points, 0.0).T.astype(np.float64)
        whole = present.all(axis=1)
        # Whole rows are present or absent as a rule; then the number of points in a draw is known without counting.
        self._holes = None if np.array_equal(present.any(axis=1), whole) else present.T.astype(np.float64)
        self._full = self.n * whole
        with np.errstate(invalid="ignore", divide="ignore"):
            self.plain = self._filled.sum(axis=0) / present.sum(axis=1)

    def draw(self, size: int) -> np.ndarray:
        """The next draws' means, float64 [size, rows]; nan where a draw met no point of a row."""
        n = self.n
        if n == 0:
            return np.full((size, len(self.plain)), np.nan)
        picked = self.rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        weights = np.bincount(picked.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return weights @ self._filled / (self._full if self._holes is None else weights @ self._holes)


def blocks(draws: int, numbers: int) -> Iterator[int]:
    """Sizes of the blocks in which draws come that need so many numbers each."""
    size = max(1, BLOCK // max(1, numbers))
    while draws > 0:
        yield min(size, draws)
        draws -= size


def resampled_means(points: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Row means of the points as they are and in every draw (`Resampler`), float64 [1 + draws, rows]."""
    source = Resampler(points, rng)
    return np.concatenate([source.plain[None], *(source.draw(size) for size in blocks(draws, source.n))])


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
