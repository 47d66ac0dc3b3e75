"""Two runs on the same stream held against each other: every metric's difference with the interval of its pairs.

Both runs answered the same test samples, so a draw of the bootstrap takes the same samples in both (Koehn, 2004): what
makes a sample hard makes it hard for both, and falls out of the difference. Several seeds of two methods are paired
seed by seed, and the interval is Student's over those differences.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamcvit.errors import UserError
from streamcvit.evaluation.bootstrap import DRAWS, Estimate, bootstrap_mean, estimate, student
from streamcvit.evaluation.matrix import CROSS_LOSS, Plan, average_by_chunk, drawn_metrics

FEWEST = 6
"""Samples that two runs must be judged differently on, before a difference is taken for one: with five, all in favour
of one run, a sign test still finds 0.06, and the bootstrap, which knows no other samples, would say less."""


@dataclass(frozen=True)
class Points:
    """What a run's answers are worth, sample by sample.

    Args:
        scores: task -> points [T, n_i], a row of nan where the task was not evaluated after that chunk.
        following: task -> whether the answer keeps to the demanded form, same shapes.
        trained: int [T, tasks], samples learned of a task in a chunk.
        in_average: the tasks that AP and its kin hold.
        zero_shot: task -> points [n_i] before the first chunk; only of tasks that were scored then.
        in_mif: the tasks that MIF holds; None: all.
    """

    scores: Mapping[str, np.ndarray]
    following: Mapping[str, np.ndarray]
    trained: np.ndarray
    in_average: Collection[str]
    zero_shot: Mapping[str, np.ndarray]
    in_mif: Collection[str] | None = None


@dataclass(frozen=True)
class Sampled:
    """A run's numbers as measured, then in every draw; two of the same seed drew the same samples.

    Attributes:
        metrics: name -> [1 + draws], in points.
        tasks: task -> its score after the last chunk, [1 + draws].
        by_chunk: AP after every chunk, [1 + draws, T].
    """

    metrics: dict[str, np.ndarray]
    tasks: dict[str, np.ndarray]
    by_chunk: np.ndarray


def sample(points: Points, draws: int = DRAWS, seed: int = 0) -> Sampled:
    """All metrics of a run, as measured and in every draw.

    Draws of `maf_cross` come from a world that is known (`intervals`); here they stand around the measured value, each
    as far on the other side of it as its draw lies from the mean of the draws.
    """
    tasks, plan = list(points.scores), Plan(np.asarray(points.trained))
    counted = np.array([task in points.in_average for task in tasks])
    judged = np.array([points.in_mif is None or task in points.in_mif for task in tasks])
    drawn = drawn_metrics(points.scores, points.following, plan, counted, draws, seed, points.zero_shot or None, judged)
    found: dict[str, list[np.ndarray]] = {}
    final, by_chunk = [], []
    for block, values in drawn.blocks:
        for name, value in values.items():
            if name != CROSS_LOSS:  # serves an interval only
                found.setdefault(name, []).append(value)
        final.append(block[:, -1])
        by_chunk.append(average_by_chunk(block, plan, counted))
    last, metrics = np.concatenate(final), {name: np.concatenate(parts) for name, parts in found.items()}
    if len(cross := metrics["maf_cross"][1:]) and not np.isnan(cross).all():
        metrics["maf_cross"] = np.append(metrics["maf_cross"][0], metrics["maf_cross"][0] + np.nanmean(cross) - cross)
    return Sampled(metrics, {task: last[:, place] for place, task in enumerate(tasks)}, np.concatenate(by_chunk))


@dataclass(frozen=True)
class Difference:
    """A number of one run less that of another.

    Attributes:
        estimate: the difference with its 95 % interval, in points; the interval is nan where there is none.
        decided: whether the interval leaves zero out, on samples enough to say so.
        pairs: seeds that were paired; 1: the interval is the paired bootstrap's, else Student's over seeds.
    """

    estimate: Estimate
    decided: bool
    pairs: int = 1

    def reversed(self) -> Difference:
        """The other run less the one."""
        value, low, high = self.estimate
        return Difference(Estimate(-value, -high, -low), self.decided, self.pairs)


def differences(
    one: Points, other: Points, sampled: tuple[Sampled, Sampled]
) -> tuple[dict[str, Difference], dict[str, Difference]]:
    """What one run has more than another of each metric, and of each task's score after the last chunk.

    Args:
        one, other: the runs' points, of the same samples in the same order.
        sampled: both runs' draws (`sample`) of one seed.

    Raises:
        UserError: the runs do not hold the same tasks and samples.
    """
    first, second = sampled
    if {t: np.shape(p) for t, p in one.scores.items()} != {t: np.shape(p) for t, p in other.scores.items()}:
        raise UserError(
            "the runs cannot be compared sample by sample",
            fix="Compare runs that were evaluated on the same tasks and samples",
        )
    at_all = {task: _differ(points, other.scores[task]).any(axis=0).sum() for task, points in one.scores.items()}
    form = [_differ(points, other.following[task]).any(axis=0).sum() for task, points in one.following.items()]
    counted = sum(int(n) for task, n in at_all.items() if task in one.in_average)
    by_metric = {}
    for name, values in first.metrics.items():
        found = estimate(values - second.metrics[name])
        if not math.isnan(found.value):
            by_metric[name] = _decided(found, int(sum(form)) if name.startswith("mif") else counted)
    by_task = {}
    for task, values in first.tasks.items():
        found = estimate(values - second.tasks[task])
        if not math.isnan(found.value):
            by_task[task] = _decided(found, int(_differ(one.scores[task][-1], other.scores[task][-1]).sum()))
    return by_metric, by_task


def _differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """bool, where both are known and not the same."""
    return np.abs(one.astype(np.float64) - other.astype(np.float64)) > 1e-9


def _decided(found: Estimate, differing: int) -> Difference:
    return Difference(found, differing >= FEWEST and (found.low > 0 or found.high < 0))


def moved(before: np.ndarray, now: np.ndarray) -> Difference:
    """What a task's score did from one boundary to another, by the samples that both were scored on.

    Args:
        before, now: points [n] of the same samples; nan where one was not scored.
    """
    known = ~(np.isnan(before) | np.isnan(now))
    apart = now[known] - before[known]
    if not len(apart):
        return Difference(Estimate(math.nan, math.nan, math.nan), False)
    return _decided(Estimate(float(apart.mean()), *bootstrap_mean(apart)), int((np.abs(apart) > 1e-9).sum()))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value a seed with Student's 95 % interval; without an interval for a single seed."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, math.nan, math.nan)
    half = student(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def seeds_apart(values: Sequence[float]) -> Difference:
    """Differences of pairs of seeds, taken together; equal pairs decide nothing."""
    found = over_seeds(values)
    return Difference(found, found.low > 0 or found.high < 0, len(values))
