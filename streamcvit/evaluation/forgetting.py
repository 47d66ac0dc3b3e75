"""How far tasks stand below earlier scores of theirs: plain forms, and the cross-fitted one that noise does not raise.

The best of several noisy scores is too high on average, so that `maf_best` finds forgetting where there is none.
Cross-fitting (Chernozhukov et al., 2018, for the idea) takes the two jobs apart: one half of a task's test samples
chooses the best earlier chunk, the other half measures both chunks, and the other way round. What is forgotten is then
measured on samples that had no say in the choice. Half of the samples choose less well than all, so that what they
choose may truly stand a little below the best: the cross-fitted form is low where true scores move by less than their
noise, and its interval reaches up by what the bootstrap finds of that (`cross_interval`).
"""

from __future__ import annotations

import numpy as np

from streamcvit.evaluation.bootstrap import LEVEL, ends
from streamcvit.evaluation.plan import Plan, at, mean_of

SPLITS = 2
"""Times that the samples are cut into halves; the cross-fitted form is the mean over them."""


def halves(n: int, rng: np.random.Generator) -> np.ndarray:
    """`SPLITS` cuts of n samples into two halves, bool [2 * SPLITS, n]: a half, then its other half."""
    masks = np.zeros((SPLITS, 2, n), bool)
    for split in masks:
        split[0, rng.permutation(n)[: n // 2]] = True
        split[1] = ~split[0]
    return masks.reshape(2 * SPLITS, n)


def best_earlier(scores: np.ndarray, plan: Plan) -> np.ndarray:
    """The chunk of each task's best score at first(i) <= t' < t, int [..., T, tasks]; -1 where it has none."""
    best = best_so_far(scores, plan)
    return np.concatenate([np.full_like(best[..., :1, :], -1), best[..., :-1, :]], axis=-2)


def best_so_far(scores: np.ndarray, plan: Plan) -> np.ndarray:
    """The chunk of each task's best score at first(i) <= t' <= t, the first of equal ones; -1 where it has none."""
    learned = np.where(plan.seen & ~np.isnan(scores), scores, -np.inf)
    peak = np.maximum.accumulate(learned, axis=-2)
    below = np.concatenate([np.full_like(peak[..., :1, :], -np.inf), peak[..., :-1, :]], axis=-2)
    places = np.where(learned > below, np.arange(scores.shape[-2])[:, None], -1)
    return np.maximum.accumulate(places, axis=-2)


def taken(scores: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """A[chunk[t, i], i], [..., T, tasks]; nan where `chunk` is -1."""
    index = np.broadcast_to(np.maximum(chunk, 0), scores.shape)
    return np.where(chunk >= 0, np.take_along_axis(scores, index, axis=-2), np.nan)


def forgetting_by_chunk(scores: np.ndarray, plan: Plan, best_at: np.ndarray) -> dict[str, np.ndarray]:
    """How far each task stands at t below an earlier score of it, [..., T, tasks]; nan before it is seen.

    `best`: the score at `best_at` (`best_earlier`). `first`: at first(i), 0 there. `previous`: at t - 1.

    Draws of the bootstrap keep the best chunks of the matrix as measured: the best of several noisy scores is too high
    on average, and more so in every draw, whose interval would then lie above the value.
    """
    learned = np.where(plan.seen, scores, np.nan)
    first = at(scores, plan.first)[..., None, :]
    previous = np.full_like(learned, np.nan)
    previous[..., 1:, :] = learned[..., :-1, :]
    return {"best": taken(learned, best_at) - learned, "first": first - learned, "previous": previous - learned}


def mean_forgetting(forgotten: np.ndarray, plan: Plan, counted: np.ndarray) -> np.ndarray:
    """Mean over tasks seen before chunk t, then over the chunks after the first that have such tasks; [...]."""
    before = np.zeros_like(plan.seen)
    before[1:] = plan.seen[:-1]
    return mean_of(mean_of(forgotten, before & counted), (before & counted).any(axis=-1))


def cross_fitted(parts: np.ndarray, plan: Plan, counted: np.ndarray) -> np.ndarray:
    """`maf_cross`: forgetting against the chunk that one half of the samples finds best, measured on the other half.

    Args:
        parts: float [2 * SPLITS, ..., T, tasks], scores on the halves as `halves` numbers them.
        plan: when each task was learned.
        counted: bool [tasks], whether the average holds a task.

    Returns:
        [...], the mean over both ways and all splits.
    """
    found = []
    for number, choosing in enumerate(parts):
        measuring = np.where(plan.seen, parts[number ^ 1], np.nan)
        found.append(mean_forgetting(taken(measuring, best_earlier(choosing, plan)) - measuring, plan, counted))
    return np.mean(found, axis=0)


def cross_fitted_loss(parts: np.ndarray, plan: Plan, counted: np.ndarray) -> np.ndarray:
    """`bwt_max` against the chunk that one half of the samples finds best, measured on the other half; [...].

    Args:
        parts, plan, counted: as of `cross_fitted`.
    """
    found = [
        final_loss(parts[number ^ 1], plan, counted, best_so_far(choosing, plan))
        for number, choosing in enumerate(parts)
    ]
    return np.mean(found, axis=0)


def final_loss(scores: np.ndarray, plan: Plan, counted: np.ndarray, best_at: np.ndarray) -> np.ndarray:
    """Mean over the tasks learned of A[T, i] less A at `best_at` (`best_so_far`), [...]: `bwt_max`."""
    return mean_of(scores[..., -1, :] - taken(scores, best_at)[..., -1, :], plan.seen[-1] & counted)


def steadied(points: np.ndarray, plan: Plan) -> np.ndarray:
    """Scores of one task drawn together as far as their changes from chunk to chunk are noise, [..., T].

    The bootstrap of a choice needs a truth in which as much moves as truly moves: measured scores move more, by the
    noise of their samples. Their distances from the task's mean are scaled by the root of the share of the variance
    over chunks that the samples' own spread does not explain (James and Stein's idea).

    Args:
        points: float [..., T, n] of the task; rows of nan where it was not evaluated.
        plan: of this one task, `seen` bool [T, 1].
    """
    there = plan.seen[:, 0] & ~np.isnan(points).all(axis=-1)  # [..., T]
    known = np.where(np.isnan(points), 0.0, points) * there[..., None]
    n, chunks = points.shape[-1], there.sum(axis=-1, keepdims=True)
    if n < 2:  # a single sample says nothing of its noise
        return np.where(there, known.sum(axis=-1), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = known.sum(axis=-1) / (~np.isnan(points)).sum(axis=-1)
        score = np.where(there, score, 0.0)
        middle = score.sum(axis=-1, keepdims=True) / chunks
        seen = ((score - middle) ** 2 * there).sum(axis=-1, keepdims=True) / (chunks - 1)
        own = (known - (known.sum(axis=-2, keepdims=True) / chunks[..., None])) * there[..., None]
        noise = own.var(axis=-1, ddof=1).sum(axis=-1, keepdims=True) / n / (chunks - 1)
        true = np.where(seen > 0, np.maximum(0.0, 1.0 - noise / seen), 0.0)
    shrunk = middle + np.sqrt(np.where(np.isfinite(true), true, 1.0)) * (score - middle)
    return np.where(there, shrunk, np.nan)


Ends = tuple[np.ndarray, np.ndarray]


def cross_interval(value: np.ndarray, truth: np.ndarray, drawn: np.ndarray, level: float = LEVEL) -> Ends:
    """Interval of a cross-fitted form, of 95 % unless told.

    The draws' spread around their own mean, and beyond it, on that side alone, the distance of this mean from the
    truth that the draws were made of: what choosing on half of the samples costs.

    Args:
        value: [...] as measured.
        truth: [...] what is forgotten in the world that the draws come from (`steadied`).
        drawn: [draws, ...] of the form in that world.
    """
    low, high = ends(drawn, level)
    with np.errstate(invalid="ignore"):
        middle = np.where(np.isnan(drawn), 0.0, drawn).sum(axis=0) / (~np.isnan(drawn)).sum(axis=0)
    cost = truth - middle
    return value - (high - middle) - np.maximum(0.0, -cost), value + (middle - low) + np.maximum(0.0, cost)


def reaching(plain: np.ndarray, value: np.ndarray, truth: np.ndarray, drawn: np.ndarray) -> Ends:
    """95 % interval of a plain form: that of its cross-fitted form, moved out to a plain value which it does not hold.

    An interval that was moved out on one side errs on the other alone, which then has all 5 %.

    Args:
        plain: [...] the plain form, as measured.
        value, truth, drawn: as of `cross_interval`.
    """
    low, high = cross_interval(value, truth, drawn)
    lower, higher = cross_interval(value, truth, drawn, 2 * LEVEL - 1)
    above, below = plain > high, plain < low
    return (
        np.where(below, plain, np.where(above, lower, low)),
        np.where(above, plain, np.where(below, higher, high)),
    )
