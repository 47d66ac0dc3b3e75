"""The matrix of scores A[t, i] (task i after chunk t) and every summary of it.

docs/scoring.md holds the formulae. Chunks count from 0 here, T is their number. A task is *seen* at t when a sample of
it was learned in chunks 0..t; `first(i)` is the chunk that brought it first, `last(i)` the last chunk that brought it.
Metrics work on arrays with any leading axes, so that the matrix as measured and all its bootstrap draws are summarised
in one pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcvit.errors import UserError
from streamcvit.evaluation.bootstrap import DRAWS, Estimate, blocks, bootstrap_mean, ends
from streamcvit.evaluation.draws import Draws, edges_of
from streamcvit.evaluation.forgetting import (
    best_earlier,
    best_so_far,
    cross_fitted,
    cross_fitted_loss,
    cross_interval,
    final_loss,
    forgetting_by_chunk,
    mean_forgetting,
    reaching,
    steadied,
)
from streamcvit.evaluation.interval import wilson_ends
from streamcvit.evaluation.plan import Plan, at, mean_of

__all__ = [
    "METRICS",
    "WHERE_DEFINED",
    "Estimate",
    "Plan",
    "Summary",
    "bootstrap_mean",
    "metrics",
    "summarise",
]

METRICS = (
    *("ap", "map", "bwt_first", "bwt_last", "bwt_max", "maf_cross", "maf_best", "maf_first", "maf_previous"),
    *("mfn", "mft", "mif", "fwt", "ap_unseen", "mif_unseen", "fwt_unseen"),
)
CROSS_LOSS = "cross/bwt_max"
"""The cross-fitted form of `bwt_max`, which its interval is of."""
WHERE_DEFINED = ("fwt", "ap_unseen", "mif_unseen", "fwt_unseen")
"""Metrics that a summary holds only where they are defined: where tasks are scored before they are seen, or unseen."""


@dataclass(frozen=True)
class Summary:
    """What a run's scores come to, in points.

    Attributes:
        tasks: their order.
        matrix: float [T, tasks], nan where a task was not evaluated.
        ap_by_chunk: AP after every chunk, float [T]; the last one's interval is that of the metric `ap`.
        seen: names of the seen tasks after every chunk.
        metrics: name (of `METRICS`) to value and interval; those of `WHERE_DEFINED` only where they are.
        forgetting: per seen task its best earlier score minus its score now; 0 for a task that has no earlier score.
        family: the scorers the points come from, `strict` or `strcvit`.
        forms: instruction form to the MIF of its tasks.
    """

    tasks: list[str]
    matrix: np.ndarray
    ap_by_chunk: np.ndarray
    seen: list[list[str]]
    metrics: dict[str, Estimate]
    forgetting: dict[str, float]
    family: str = "strict"
    forms: dict[str, Estimate] = field(default_factory=dict)

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


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan, as it should be
        return np.nanmean(values, axis=axis)


def average_by_chunk(scores: np.ndarray, plan: Plan, counted: np.ndarray) -> np.ndarray:
    """AP_t = mean over seen tasks of A[t, i]; [..., T, tasks] to [..., T]."""
    return mean_of(scores, plan.seen & counted)


def mean_following(following: np.ndarray, plan: Plan, judged: np.ndarray) -> np.ndarray:
    """MIF: mean over the seen tasks of `judged` (bool [tasks]) that have rates, then over chunks; [...]."""
    rated = plan.seen & judged & ~np.isnan(following).reshape(-1, len(judged)).all(axis=0)
    return mean_of(mean_of(following, rated), rated.any(axis=-1))


def metrics(
    scores: np.ndarray,
    plan: Plan,
    counted: np.ndarray,
    following: np.ndarray | None = None,
    zero_shot: np.ndarray | None = None,
    parts: np.ndarray | None = None,
    judged: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of `METRICS` (StrCVIT, SMoLoRA, GEM; design of the names in docs/scoring.md), in points.

    Args:
        scores: float [..., T, tasks]; the first of the leading axes is the matrix as measured.
        plan: when each task was learned.
        counted: bool [tasks], whether the average holds a task.
        following: float [..., T, tasks], rates of instruction following in points.
        zero_shot: float [..., tasks], scores before the first chunk.
        parts: float [2 * SPLITS, ..., T, tasks], scores on halves of the samples (`cross_fitted`).
        judged: bool [tasks], whether MIF holds a task; None: all.

    Returns:
        name to [...], nan where a metric is not defined (one chunk, an evaluation missing, no such rows given).
    """
    final, learned, tested = scores[..., -1, :], plan.seen[-1] & counted, ~plan.seen[-1]
    end = len(plan.seen) - 1
    by_chunk = average_by_chunk(scores, plan, counted)
    at_first, at_last = at(scores, plan.first), at(scores, plan.last)
    measured = scores if scores.ndim == 2 else scores[0]
    forgotten = forgetting_by_chunk(scores, plan, best_earlier(measured, plan))
    nothing = np.full(scores.shape[:-2], np.nan)
    values = dict.fromkeys(METRICS, nothing) | {
        "ap": by_chunk[..., -1],
        "map": mean_of(by_chunk, (plan.seen & counted).any(axis=-1)),
        "bwt_first": mean_of(final - at_first, learned & (plan.first < end)),
        "bwt_last": mean_of(final - at_last, learned & (plan.last < end)),
        "bwt_max": final_loss(scores, plan, counted, best_so_far(measured, plan)),
        "mfn": mean_of(final, learned),
        "mft": mean_of(at_first, learned),
        "ap_unseen": mean_of(final, tested & counted),
    }
    values |= {f"maf_{name}": mean_forgetting(by, plan, counted) for name, by in forgotten.items()}
    if parts is not None:
        values["maf_cross"] = cross_fitted(parts, plan, counted)
    if following is not None:
        judged = np.ones(len(counted), bool) if judged is None else judged
        values["mif"] = mean_following(following, plan, judged)
        values["mif_unseen"] = mean_of(following[..., -1, :], tested & judged)
    if zero_shot is not None:
        values["fwt_unseen"] = mean_of(final - zero_shot, tested & counted)
        gained = np.where(learned & (plan.first > 0), at(scores, plan.first - 1) - zero_shot, np.nan)
        # Runs that evaluate seen tasks only have no such score; the mean is over the tasks that have one.
        values["fwt"] = _nanmean(gained, axis=-1)
    return {name: values[name] for name in METRICS}


Metric = Callable[[np.ndarray, Plan, np.ndarray], np.ndarray]
"""One of one's own: (scores [..., T, tasks] in points, when each task was learned, bool [tasks] which are in the
average) -> [...]."""


def _check(scores: Mapping[str, np.ndarray], trained: np.ndarray, in_average: Collection[str]) -> None:
    if not scores:
        raise UserError("there are no scores to summarise", fix="Evaluate at least one task")
    shapes = {task: np.shape(points) for task, points in scores.items()}
    odd = {task: shape for task, shape in shapes.items() if len(shape) < 2 or shape[-2] != len(trained)}
    if odd:
        raise ValueError(f"expected per-sample points [{len(trained)} chunks, n], got {odd}")
    if np.shape(trained) != (len(trained), len(scores)) or len(trained) == 0:
        raise ValueError(f"the plan has shape {np.shape(trained)} for {len(scores)} tasks")
    unknown = set(in_average) - set(scores)
    if unknown:
        raise ValueError(f"tasks in the average without scores: {sorted(unknown)}")


@dataclass(frozen=True)
class Drawn:
    """Every metric of a run as measured, then in block after block of draws (`drawn_metrics`).

    Attributes:
        matrix: float [..., T, tasks], as measured.
        blocks: matrices [size, ..., T, tasks] and name to values [size, ...]; the first block is what was measured.
        lost: what is forgotten in the world that draws of cross-fitted forms come from (`steadied`), name to [...].
        alone: ends of the intervals of metrics that are one task's score, [...] each; nan where the draws tell them.
    """

    matrix: np.ndarray
    blocks: Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]
    lost: dict[str, np.ndarray]
    alone: dict[str, tuple[np.ndarray, np.ndarray]]


def drawn_metrics(
    scores: Mapping[str, np.ndarray],
    following: Mapping[str, np.ndarray] | None,
    plan: Plan,
    counted: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
    zero_shot: Mapping[str, np.ndarray] | None = None,
    judged: np.ndarray | None = None,
    forms: Mapping[str, np.ndarray] | None = None,
    own: Mapping[str, Metric] | None = None,
) -> Drawn:
    """Every metric with its draws, also of many runs at once (leading axes); two of one seed draw the same samples.

    Args:
        scores: task to points [..., T, n_i].
        following: task to whether the answers keep to the demanded form, same shapes.
        plan: when each task was learned.
        counted: bool [tasks], whether the average holds a task.
        draws, seed: of the bootstrap.
        zero_shot: task to points [..., n_i] before the first chunk.
        judged: bool [tasks], whether MIF holds a task; None: all.
        forms: name to bool [tasks]; MIF over these tasks stands under `mif/NAME`.
        own: metrics of one's own, which stand under `own/NAME`.
    """
    tasks = list(scores)
    tested = edges_of(tasks, plan)
    drawn = Draws(scores, seed, len(plan.seen) > 1, tested)
    rates, before = None, None
    if following is not None:
        absent = np.full((*drawn.shape, 1), np.nan)
        rates = Draws(
            {task: following.get(task, absent) for task in tasks}, seed, edges=dict.fromkeys(tasks, (0.0, 1.0))
        )
    if zero_shot is not None:
        missing = np.full((*drawn.shape[:-1], 1), np.nan)
        before = Draws({task: zero_shot.get(task, missing)[..., None, :] for task in tasks}, seed, edges=tested)
    steady = np.stack([steadied(points, _alone(plan, number)) for number, points in enumerate(scores.values())], -1)

    def blocks_of() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for size in (0, *blocks(draws, drawn.numbers)):
            block, parts = drawn.draw(size)
            parts[:, 1:] += steady - drawn.parts[:, None]  # draws of the choice come from a world that is known
            rate = None if rates is None else 100.0 * rates.draw(size)[0]
            zero = None if before is None else before.draw(size)[0][..., 0, :]
            values = metrics(block, plan, counted, rate, zero, parts if len(parts) else None, judged)
            if rate is not None:
                values |= {f"mif/{name}": mean_following(rate, plan, among) for name, among in (forms or {}).items()}
            if len(parts):
                values[CROSS_LOSS] = cross_fitted_loss(parts, plan, counted)
            values |= {f"own/{name}": function(block, plan, counted) for name, function in (own or {}).items()}
            fresh = slice(1 if size else 0, None)
            yield block[fresh], {name: value[fresh] for name, value in values.items()}

    forgotten = forgetting_by_chunk(steady, plan, best_earlier(steady, plan))["best"]
    lost = {
        "maf_cross": mean_forgetting(forgotten, plan, counted),
        CROSS_LOSS: final_loss(steady, plan, counted, best_so_far(steady, plan)),
    }
    return Drawn(drawn.plain, blocks_of(), lost, _alone_ends(scores, following or {}, plan, counted, judged))


def _alone_ends(
    scores: Mapping[str, np.ndarray],
    following: Mapping[str, np.ndarray],
    plan: Plan,
    counted: np.ndarray,
    judged: np.ndarray | None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`Drawn.alone`: a mean over one task has that task's interval."""
    learned, judged = plan.seen[-1], np.ones(len(counted), bool) if judged is None else judged
    tasks, found = list(scores), {}
    for name, among, points, whole in (
        ("ap", learned & counted, scores, 1.0),
        ("mfn", learned & counted, scores, 1.0),
        ("ap_unseen", ~learned & counted, scores, 1.0),
        ("mif_unseen", ~learned & judged, following, 100.0),
    ):
        if among.sum() == 1 and (task := tasks[int(among.argmax())]) in points:
            found[name] = wilson_ends(whole * np.asarray(points[task], np.float64)[..., -1, :])
    return found


def intervals(drawn: Drawn) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Name of `METRICS`, `mif/NAME` or `own/NAME` to value and both ends of its 95 % interval, [...] each.

    The plain forms that take the best of noisy scores, `maf_best` and `bwt_max`, have the interval of their
    cross-fitted form, which is where the truth is; where the plain value lies beyond it, it reaches to it.
    """
    found: dict[str, list[np.ndarray]] = {}
    for _, values in drawn.blocks:
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    told = {name: (value[0], *ends(value[1:])) for name, value in whole.items()}
    for name, (low, high) in drawn.alone.items():
        value, *drawn_ends = told[name]
        told[name] = (
            value,
            *(np.where(np.isnan(end), other, end) for end, other in zip((low, high), drawn_ends, strict=True)),
        )
    for name, plain in (("maf_cross", "maf_best"), (CROSS_LOSS, "bwt_max")):
        if name in whole:
            cross = whole[name][0], drawn.lost[name], whole[name][1:]
            told[name] = (whole[name][0], *cross_interval(*cross))
            told[plain] = (told[plain][0], *reaching(told[plain][0], *cross))
    return told


def _alone(plan: Plan, task: int) -> Plan:
    return Plan(np.asarray(plan.trained)[:, [task]])


def summarise(
    scores: Mapping[str, np.ndarray],
    following: Mapping[str, np.ndarray] | None,
    trained: np.ndarray,
    in_average: Collection[str],
    draws: int = DRAWS,
    seed: int = 0,
    zero_shot: Mapping[str, np.ndarray] | None = None,
    family: str = "strict",
    in_mif: Collection[str] | None = None,
    forms: Mapping[str, Collection[str]] | None = None,
    own: Mapping[str, Metric] | None = None,
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
        in_mif: the tasks that MIF holds; None: all.
        forms: instruction form to its tasks, each of which gets a MIF of its own.
        own: metrics of one's own, by name.

    Raises:
        UserError: there are no scores.
        ValueError: shapes or names do not fit together.
    """
    trained = np.asarray(trained)
    _check(scores, trained, in_average)
    tasks, plan = list(scores), Plan(trained)

    def among(names: Collection[str]) -> np.ndarray:
        return np.array([task in names for task in tasks])

    counted, judged = among(in_average), among(tasks if in_mif is None else in_mif)
    groups = {name: among(members) & judged for name, members in (forms or {}).items()}
    drawn = drawn_metrics(scores, following, plan, counted, draws, seed, zero_shot, judged, groups, own)
    matrix, told = drawn.matrix, intervals(drawn)
    lost = forgetting_by_chunk(matrix, plan, best_earlier(matrix, plan))["best"][-1]
    found = {name: _estimate(*map(float, value)) for name, value in told.items()}
    return Summary(
        tasks=tasks,
        matrix=matrix,
        ap_by_chunk=average_by_chunk(matrix, plan, counted),
        seen=[[task for task, here in zip(tasks, row, strict=True) if here] for row in plan.seen],
        metrics={name: found[name] for name in METRICS if name not in WHERE_DEFINED or not np.isnan(found[name].value)}
        | {name: found[f"own/{name}"] for name in own or {}},
        forgetting={
            task: 0.0 if plan.first[number] == len(trained) - 1 else float(lost[number])
            for number, task in enumerate(tasks)
            if plan.seen[-1][number]
        },
        family=family,
        forms={name: found[f"mif/{name}"] for name in groups if f"mif/{name}" in found},
    )


def _estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high) if not np.isnan(value) else Estimate(value, value, value)
