"""Intervals by resampling samples: what another test set of the same size might have shown.

All are 95 % percentile intervals of the paired bootstrap (Efron and Tibshirani, 1993; Koehn, 2004, for comparing
systems): a draw resamples the samples of a task with replacement, and the same samples at every chunk and in both
runs. Tasks are resampled apart. The bootstrap of a small test set is too narrow: its variance is (n - 1) / n of the
unbiased one, and its quantiles are the normal's, not Student's. Draws are stretched by both (`stretch`), and held
within the points that there are. Nothing here speaks of another seed of training. CIDEr keeps each row's points as they
are: its document frequencies are not estimated anew in a draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

DRAWS, LEVEL = 1000, 0.95
Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
OFTEN = 4
"""How much oftener a sample is drawn than one that stands for what a test set that is all right or all wrong hides."""
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


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t (Hill, 1970, Cornish-Fisher expansion; within 0.0002 from 6 degrees on)."""
    if freedom < 6:
        return {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706}.get(freedom, math.inf)
    z, v = Z, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, start=1))


def stretch(n: np.ndarray | int, whole: int) -> np.ndarray:
    """How much wider draws of means of n samples of a test set of `whole` must spread; 1 where there is one sample."""
    many = np.asarray(n) > 1
    unbiased = np.sqrt(np.where(many, n, 2) / np.where(many, np.asarray(n) - 1, 1))
    return np.where(many, unbiased * (student(whole - 1) / Z if whole > 1 else 1.0), 1.0)


class Resampler:
    """Row means of points, as they are and in draw after draw.

    Args:
        points: float [rows, n]; nan where a sample has none in that row. A draw takes the same samples in every row.
        rng: source of the draws; how many are asked for at once does not change them.
        parts: bool [parts, n]; the means are also wanted of these samples alone.
        edges: the two points that an answer can get, where it can get no others. A small test set that is all right or
            all wrong would not vary: two more samples are then drawn from, one of either kind in every row, a
            quarter as often as the others, and the draws are centred on the means as they are (after Agresti and Coull,
            1998).

    Attributes:
        plain: float64 [1 + parts, rows], the means as they are, of all samples and of each part; nan where a row has
            no points.
    """

    def __init__(
        self,
        points: np.ndarray,
        rng: np.random.Generator,
        parts: np.ndarray | None = None,
        edges: tuple[float, float] | None = None,
    ) -> None:
        self.rng, self.n = rng, points.shape[1]
        parts = np.zeros((0, self.n), bool) if parts is None else parts
        present = np.isfinite(points)
        low = np.where(present, points, np.inf).min(axis=1, initial=np.inf)
        high = np.where(present, points, -np.inf).max(axis=1, initial=-np.inf)
        more = 0
        if edges is not None and self.n > 1 and np.isin(points[present], edges).all():
            low, high, more = np.full_like(low, edges[0]), np.full_like(high, edges[1]), len(edges)
            there = np.repeat(present.any(axis=1, keepdims=True), more, axis=1)
            points = np.concatenate([points, np.where(there, edges, np.nan)], axis=1)
            present, parts = np.isfinite(points), np.concatenate([parts, np.ones((len(parts), more), bool)], axis=1)
        self._low, self._high, real = low, high, np.arange(self.n + more) < self.n
        self._filled = np.where(present, points, 0.0).T.astype(np.float64)
        whole = present.all(axis=1)
        # Whole rows are present or absent as a rule; then the number of points in a draw is known without counting.
        self._holes = None if np.array_equal(present.any(axis=1), whole) else present.T.astype(np.float64)
        self._whole = whole.astype(np.float64)
        self._parts = np.concatenate([np.ones((1, len(real)), bool), parts])
        self.plain, self._middle = (
            self._means(real[None].astype(float))[0],
            self._means(np.where(real, OFTEN, 1.0)[None])[0],
        )
        here = self._parts & real
        counts = here.sum(axis=1)[:, None] if self._holes is None else here @ self._holes
        self._stretch = stretch(counts, self.n) * np.sqrt(1 + more / OFTEN / max(1, self.n))  # of what does not vary

    def draw(self, size: int) -> np.ndarray:
        """The next draws' means, stretched, float64 [size, 1 + parts, rows]; nan where a draw met no point of a row."""
        n = self.n
        if n == 0:
            return np.full((size, *self.plain.shape), np.nan)
        pool = self._parts.shape[1]
        picked = self.rng.integers(0, n if pool == n else OFTEN * n + pool - n, (size, n))
        picked = np.where(picked < OFTEN * n, picked % n, picked - (OFTEN - 1) * n) + pool * np.arange(size)[:, None]
        weights = np.bincount(picked.ravel(), minlength=size * pool).reshape(size, pool).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a row without points has no ends
            wide = self.plain + self._stretch * (self._means(weights) - self._middle)
            return np.clip(wide, self._low, self._high)

    def _means(self, weights: np.ndarray) -> np.ndarray:
        """[size, n] to [size, parts, rows]."""
        found = np.empty((len(weights), len(self._parts), self._filled.shape[1]))
        with np.errstate(invalid="ignore", divide="ignore"):
            for number, part in enumerate(self._parts):
                here = weights if number == 0 else weights * part
                if self._holes is None:
                    found[:, number] = here @ self._filled / (here.sum(axis=1, keepdims=True) * self._whole)
                else:
                    found[:, number] = here @ self._filled / (here @ self._holes)
        return found


def blocks(draws: int, numbers: int) -> Iterator[int]:
    """Sizes of the blocks in which draws come that need so many numbers each."""
    size = max(1, BLOCK // max(1, numbers))
    while draws > 0:
        yield min(size, draws)
        draws -= size


def resampled_means(points: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Row means of the points as they are and in every draw (`Resampler`), float64 [1 + draws, rows]."""
    source = Resampler(points, rng)
    return np.concatenate([source.plain, *(source.draw(size)[:, 0] for size in blocks(draws, source.n))])


def ends(drawn: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the interval of drawn values [draws, ...]; draws in which a value is not defined are left out."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    if not np.isnan(drawn).any():
        low, high = np.quantile(drawn, tails, axis=0)
        return low, high
    known = ~np.isnan(drawn).all(axis=0)
    found = np.full((2, *drawn.shape[1:]), np.nan)
    if known.any():
        found[:, known] = np.nanquantile(drawn[:, known], tails, axis=0)
    return found[0], found[1]


def estimate(values: np.ndarray) -> Estimate:
    """The first of the values, and the interval of the others; float [1 + draws].

    Draws in which the value is not defined are left out.
    """
    if np.isnan(values[0]) or len(values) < 2:
        return Estimate(float(values[0]), float("nan"), float("nan"))
    low, high = ends(values[1:, None])
    return Estimate(float(values[0]), float(low[0]), float(high[0]))


def bootstrap_mean(points: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of per-sample points [n]; (nan, nan) where there are none.

    A row of equal points has an interval of width 0: the bootstrap knows no sample that it has not seen.
    """
    means = resampled_means(np.asarray(points, dtype=np.float64)[None, :], draws, np.random.default_rng(seed))
    return estimate(means[:, 0])[1:]
