"""The matrix of scores A[t, i] (task i after chunk t) and every summary of it.

docs/scoring.md holds the formulae. Chunks count from 0 here, T is their number. A task is *seen* at t when a sample of
it was learned in chunks 0..t; `first(i)` is the chunk that brought it first, `last(i)` the last chunk that brought it.
Metrics work on arrays with any leading axes, so that the matrix as measured and all its bootstrap draws are summarised
in one pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcvit.errors import UserError
from streamcvit.evaluation.bootstrap import DRAWS, Estimate, Resampler, blocks, bootstrap_mean, estimate

__all__ = ["METRICS", "Estimate", "Plan", "Summary", "bootstrap_mean", "compare", "metrics", "summarise"]

METRICS = ("ap", "map", "bwt_first", "bwt_last", "maf_best", "maf_first", "maf_previous", "mfn", "mft", "mif", "fwt")


@dataclass(frozen=True)
class Plan:
    """When each task was learned.

    Args:
        trained: int [T, tasks], samples learned of a task in a chunk.

    Attributes:
        seen: bool [T, tasks].
        first: int [tasks], T where the task never came.
        last: int [tasks], -1 where the task never came.
    """

    trained: np.ndarray
    seen: np.ndarray = field(init=False)
    first: np.ndarray = field(init=False)
    last: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        came = np.asarray(self.trained) > 0
        chunks = len(came)
        object.__setattr__(self, "seen", np.cumsum(came, axis=0) > 0)
        object.__setattr__(self, "first", np.where(came.any(axis=0), came.argmax(axis=0), chunks))
        object.__setattr__(self, "last", np.where(came.any(axis=0), chunks - 1 - came[::-1].argmax(axis=0), -1))


@dataclass(frozen=True)
class Summary:
    """What a run's scores come to, in points.

    Attributes:
        tasks: their order.
        matrix: float [T, tasks], nan where a task was not evaluated.
        ap_by_chunk: AP after every chunk, float [T]; the last one's interval is that of the metric `ap`.
        seen: names of the seen tasks after every chunk.
        metrics: name (of `METRICS`) to value and interval; `fwt` only where it is defined.
        forgetting: per seen task its best earlier score minus its score now; 0 for a task that has no earlier score.
        family: the scorers the points come from, `strict` or `strcvit`.
    """

    tasks: list[str]
    matrix: np.ndarray
    ap_by_chunk: np.ndarray
    seen: list[list[str]]
    metrics: dict[str, Estimate]
    forgetting: dict[str, float]
    family: str = "strict"

    def to_json(self) -> dict[str, Any]:
        """The content of summary.json; null where a number is not defined."""
        return {
            "family": self.family,
            "tasks": self.tasks,
            "chunks": list(range(len(self.matrix))),
            "matrix": _nulls(self.matrix),
            "ap_by_chunk": _nulls(self.ap_by_chunk),
            "seen": self.seen,
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "forgetting": {task: points for task, points in self.forgetting.items() if not np.isnan(points)},
        }


def _nulls(values: np.ndarray) -> list[Any]:
    """The numbers as lists, null for nan."""
    numbers = values.astype(object)
    numbers[np.isnan(values)] = None
    return numbers.tolist()


def _mean(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the entries marked in `among`; nan where none is, or where a marked one is nan."""
    count = among.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(among, values, 0.0).sum(axis=-1) / np.where(count, count, np.nan)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan, as it should be
        return np.nanmean(values, axis=axis)


def average_by_chunk(scores: np.ndarray, plan: Plan, counted: np.ndarray) -> np.ndarray:
    """AP_t = mean over seen tasks of A[t, i]; [..., T, tasks] to [..., T]."""
    return _mean(scores, plan.seen & counted)


def best_earlier(scores: np.ndarray, plan: Plan) -> np.ndarray:
    """The chunk of each task's best score at first(i) <= t' < t, int [T, tasks]; -1 where it has none.

    Draws of the bootstrap keep this choice of the matrix as measured: the best of several noisy scores is too high on
    average, and more so in every draw, whose interval would then lie above the value.
    """
    learned = np.where(plan.seen & ~np.isnan(scores), scores, -np.inf)
    peak = np.maximum.accumulate(learned, axis=0)
    rises = learned > np.concatenate([np.full_like(peak[:1], -np.inf), peak[:-1]])
    at = np.maximum.accumulate(np.where(rises, np.arange(len(scores))[:, None], -1), axis=0)
    return np.concatenate([np.full_like(at[:1], -1), at[:-1]])


def forgetting_by_chunk(scores: np.ndarray, plan: Plan, best_at: np.ndarray) -> dict[str, np.ndarray]:
    """How far each task stands at t below an earlier score of it, [..., T, tasks]; nan before it is seen.

    `best`: the score at `best_at` (`best_earlier`). `first`: at first(i), 0 there. `previous`: at t - 1.
    """
    learned = np.where(plan.seen, scores, np.nan)
    index = np.broadcast_to(np.maximum(best_at, 0), scores.shape)
    best = np.where(best_at >= 0, np.take_along_axis(learned, index, axis=-2), np.nan)
    first = _at(scores, plan.first)[..., None, :]
    previous = np.full_like(learned, np.nan)
    previous[..., 1:, :] = learned[..., :-1, :]
    return {"best": best - learned, "first": first - learned, "previous": previous - learned}


def _at(scores: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """A[chunk(i), i], [..., tasks]; nan where a task has no such chunk."""
    chunks = scores.shape[-2]
    inside = (chunk >= 0) & (chunk < chunks)
    taken = scores[..., np.where(inside, chunk, 0), np.arange(scores.shape[-1])]
    return np.where(inside, taken, np.nan)


def _mean_forgetting(forgotten: np.ndarray, plan: Plan, counted: np.ndarray) -> np.ndarray:
    """Mean over tasks seen before chunk t, then over the chunks after the first that have such tasks."""
    before = np.zeros_like(plan.seen)
    before[1:] = plan.seen[:-1]
    return _mean_of_rows(_mean(forgotten, before & counted), (before & counted).any(axis=-1))


def _mean_of_rows(by_chunk: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Mean over the defined chunks; nan where one of them is missing, so that no gap goes unnoticed."""
    return _mean(by_chunk, defined)


def metrics(
    scores: np.ndarray,
    plan: Plan,
    counted: np.ndarray,
    following: np.ndarray | None = None,
    zero_shot: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of `METRICS` (StrCVIT, SMoLoRA, GEM; design of the names in docs/scoring.md), in points.

    Args:
        scores: float [..., T, tasks]; the first of the leading axes is the matrix as measured.
        plan: when each task was learned.
        counted: bool [tasks], whether the average holds a task.
        following: float [..., T, tasks], rates of instruction following in points.
        zero_shot: float [..., tasks], scores before the first chunk.

    Returns:
        name to [...], nan where a metric is not defined (one chunk, an evaluation missing, no such rows given).
    """
    final, learned = scores[..., -1, :], plan.seen[-1] & counted
    end = len(plan.seen) - 1
    by_chunk = average_by_chunk(scores, plan, counted)
    at_first, at_last = _at(scores, plan.first), _at(scores, plan.last)
    measured = scores.reshape(-1, *scores.shape[-2:])[0]
    forgotten = forgetting_by_chunk(scores, plan, best_earlier(measured, plan))
    nothing = np.full(scores.shape[:-2], np.nan)
    values = {
        "ap": by_chunk[..., -1],
        "map": _mean_of_rows(by_chunk, (plan.seen & counted).any(axis=-1)),
        "bwt_first": _mean(final - at_first, learned & (plan.first < end)),
        "bwt_last": _mean(final - at_last, learned & (plan.last < end)),
        "mfn": _mean(final, learned),
        "mft": _mean(at_first, learned),
        "mif": nothing,
        "fwt": nothing,
    }
    values |= {f"maf_{name}": _mean_forgetting(by, plan, counted) for name, by in forgotten.items()}
    if following is not None:
        judged = plan.seen & ~np.isnan(following).reshape(-1, len(counted)).all(axis=0)
        values["mif"] = _mean_of_rows(_mean(following, judged), judged.any(axis=-1))
    if zero_shot is not None:
        gained = np.where(learned & (plan.first > 0), _at(scores, plan.first - 1) - zero_shot, np.nan)
        # Runs that evaluate seen tasks only have no such score; the mean is over the tasks that have one.
        values["fwt"] = _nanmean(gained, axis=-1)
    return {name: values[name] for name in METRICS}


class _Draws:
    """Resampled means of every task, float64 [size, T, tasks] a time; task k draws from its own stream of `seed`.

    Two of the same seed, tasks and sizes draw the same samples.
    """

    def __init__(self, by_task: Mapping[str, Any], seed: int) -> None:
        self.tasks = [
            Resampler(np.atleast_2d(np.asarray(points)), np.random.default_rng((seed, number)))
            for number, points in enumerate(by_task.values())
        ]
        self.plain = np.stack([task.plain for task in self.tasks], axis=-1)
        self.numbers = max(self.plain.size, *(task.n for task in self.tasks))

    def draw(self, size: int) -> np.ndarray:
        """The means as measured, then the next `size` draws, [1 + size, T, tasks]."""
        drawn = np.stack([task.draw(size) for task in self.tasks], axis=-1)
        return np.concatenate([self.plain[None], drawn])


def _check(scores: Mapping[str, np.ndarray], trained: np.ndarray, in_average: Collection[str]) -> None:
    if not scores:
        raise UserError("there are no scores to summarise", fix="Evaluate at least one task")
    shapes = {task: np.shape(points) for task, points in scores.items()}
    odd = {task: shape for task, shape in shapes.items() if len(shape) != 2 or shape[0] != len(trained)}
    if odd:
        raise ValueError(f"expected per-sample points [{len(trained)} chunks, n], got {odd}")
    if np.shape(trained) != (len(trained), len(scores)) or len(trained) == 0:
        raise ValueError(f"the plan has shape {np.shape(trained)} for {len(scores)} tasks")
    unknown = set(in_average) - set(scores)
    if unknown:
        raise ValueError(f"tasks in the average without scores: {sorted(unknown)}")


def summarise(
    scores: Mapping[str, np.ndarray],
    following: Mapping[str, np.ndarray] | None,
    trained: np.ndarray,
    in_average: Collection[str],
    draws: int = DRAWS,
    seed: int = 0,
    zero_shot: Mapping[str, np.ndarray] | None = None,
    family: str = "strict",
) -> Summary:
    """All summaries of a run with 95 % intervals from a paired bootstrap over samples.

    Args:
        scores: task to points [T, n_i] per sample, a row of nan where the task was not evaluated after that chunk. The
            order of the tasks is the order of the matrix.
        following: task to whether the answer keeps to the demanded form, same shapes; None without such rows.
        trained: int [T, tasks], samples learned of a task in a chunk.
        in_average: the tasks that AP and its kin hold (leave out those whose points may pass 100).
        draws: how often to resample.
        seed: of the resampling; the same seed resamples the same samples in every run with the same tasks and sizes.
        zero_shot: task to points [n_i] before the first chunk.
        family: the scorers the points come from.

    Raises:
        UserError: there are no scores.
        ValueError: shapes or names do not fit together.
    """
    trained = np.asarray(trained)
    _check(scores, trained, in_average)
    tasks, plan = list(scores), Plan(trained)
    counted = np.array([task in in_average for task in tasks])
    drawn = _Draws(scores, seed)
    rates, before = None, None
    if following is not None:
        absent = np.full((len(trained), 1), np.nan)
        rates = _Draws({task: following.get(task, absent) for task in tasks}, seed)
    if zero_shot is not None:
        before = _Draws({task: zero_shot.get(task, np.full(1, np.nan)) for task in tasks}, seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    for size in (0, *blocks(draws, drawn.numbers)):
        block = drawn.draw(size)
        values = metrics(
            block,
            plan,
            counted,
            None if rates is None else 100.0 * rates.draw(size),
            None if before is None else before.draw(size)[:, 0],
        )
        for name, value in values.items():
            parts[name].append(value[1:] if size else value)
    values = {name: np.concatenate(part) for name, part in parts.items()}
    matrix = drawn.plain
    lost = forgetting_by_chunk(matrix, plan, best_earlier(matrix, plan))["best"][-1]
    found = {name: estimate(value) for name, value in values.items()}
    return Summary(
        tasks=tasks,
        matrix=matrix,
        ap_by_chunk=average_by_chunk(matrix, plan, counted),
        seen=[[task for task, here in zip(tasks, row, strict=True) if here] for row in plan.seen],
        metrics={name: value for name, value in found.items() if name != "fwt" or not np.isnan(value.value)},
        forgetting={
            task: 0.0 if plan.first[number] == len(trained) - 1 else float(lost[number])
            for number, task in enumerate(tasks)
            if plan.seen[-1][number]
        },
        family=family,
    )


def compare(
    one: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    in_average: Collection[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Difference of two runs' AP (one minus other) with its paired interval.

    Args:
        one: task to the points [n_i] of one run's final answers.
        other: the same of another run, the same samples in the same order.
        in_average: tasks to count; None for all.

    Raises:
        UserError: the runs do not hold the same tasks and samples.
    """
    tasks = [task for task in one if in_average is None or task in in_average]
    uneven = [task for task in tasks if np.shape(one[task]) != np.shape(other.get(task, ()))]
    if uneven or not tasks:
        raise UserError(
            f"the runs cannot be compared sample by sample ({', '.join(uneven) or 'no task in common'})",
            fix="Compare runs that were evaluated on the same tasks and samples",
        )
    gaps = {task: np.asarray(one[task], dtype=np.float64) - np.asarray(other[task], dtype=np.float64) for task in tasks}
    drawn = _Draws(gaps, seed)
    parts = [drawn.draw(size)[1 if size else 0 :, 0] for size in (0, *blocks(draws, drawn.numbers))]
    return estimate(np.concatenate(parts).mean(axis=-1))
