"""Runs held against each other: every number with its interval, every difference with its own, and which is best.

A difference is decided where its paired interval leaves zero out. That the intervals of two runs overlap says little:
most of a run's interval is what makes test samples hard, which is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from streamcvit.comparison.answers import Answers, points_of, read_answers, same_samples
from streamcvit.comparison.sides import Side, apart, pairs_of, ready, sides_of
from streamcvit.errors import UserError
from streamcvit.evaluation.bootstrap import DRAWS, Estimate, estimate, student
from streamcvit.evaluation.matrix import METRICS as ALL
from streamcvit.evaluation.paired import Difference, Sampled, differences, over_seeds, sample, seeds_apart
from streamcvit.monitoring.record import Interval, RunRecord
from streamcvit.monitoring.runs import LOWER_IS_BETTER, Records
from streamcvit.monitoring.verdict import Gap, Seeds, Verdict, task_key

OF_LEARNERS = ("bwt", "maf", "fwt", "mft")
"""Metrics that say nothing of what learns nothing, or all at once."""


@dataclass
class Comparison:
    """What was found.

    Attributes:
        runs: (label, record), as `streamcvit.monitoring.runs.compared` orders them.
        sides: the methods, each of one run or of several seeds.
        family: whose points: `strict` or `strcvit`.
        tasks: of all runs, in the order of the first.
        values: (number, side) -> value with its interval; a number is a metric's name or a `task_key`.
        gaps: (number, side, other side) -> the difference, once for each two sides (one < other).
        curves: side -> AP after every chunk with the ends of a band, [3, T]: the 95 % interval over samples; of several
            seeds, over those (Student's).
        notes: what a reader must know.
    """

    runs: Records
    sides: list[Side]
    family: str
    tasks: list[str]
    values: dict[tuple[str, int], Interval] = field(default_factory=dict)
    gaps: dict[tuple[str, int, int], Gap] = field(default_factory=dict)
    curves: dict[int, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def value(self, number: str, side: int) -> Interval | None:
        """A number of a method."""
        return self.values.get((number, side))

    def gap(self, number: str, one: int, other: int) -> Gap | None:
        """What one method has more than another; None where they cannot be paired."""
        if one > other:
            return found.reversed() if (found := self.gaps.get((number, other, one))) else None
        return self.gaps.get((number, one, other))

    def metrics(self) -> list[str]:
        """The metrics that some method has, in the order of docs/scoring.md."""
        return [name for name in ALL if any((name, side) in self.values for side in range(len(self.sides)))]

    def pairs(self) -> list[tuple[int, int]]:
        """The methods that could be paired, the one of the higher AP first."""
        order = sorted(range(len(self.sides)), key=lambda side: -self.values.get(("ap", side), (0.0, None, None))[0])
        held = {(one, other) for _, one, other in self.gaps}
        return [pair for pair in combinations(order, 2) if pair in held or pair[::-1] in held]

    def rivals(self, number: str) -> list[int]:
        """The methods that compete in a number, the best value first."""
        found = []
        for place, side in enumerate(self.sides):
            learner = not number.startswith(OF_LEARNERS) or not side.record.untrained
            if (number, place) in self.values and side.record.finished and not side.record.upper_bound and learner:
                found.append(place)
        sign = 1 if number.startswith(LOWER_IS_BETTER) else -1
        return sorted(found, key=lambda place: sign * self.values[number, place][0])

    def ranks(self, number: str) -> tuple[int | None, int | None]:
        """The best method and the second in a number: each above every one below it by a decided difference."""
        order = self.rivals(number)
        if len(order) < 2 or not self._above(number, order[0], order[1:]):
            return None, None
        return order[0], order[1] if len(order) > 2 and self._above(number, order[1], order[2:]) else None

    def _above(self, number: str, one: int, others: Sequence[int]) -> bool:
        sign = -1 if number.startswith(LOWER_IS_BETTER) else 1
        gaps = [self.gap(number, one, other) for other in others]
        return all(gap is not None and gap.decided and sign * gap.value > 0 for gap in gaps)

    def numbers(self) -> Iterator[str]:
        """All metrics, then all tasks."""
        yield from self.metrics()
        yield from map(task_key, self.tasks)

    def verdict(self, baselines: dict[str, tuple[float | None, float | None]] | None = None) -> Verdict:
        """The same by runs, as report and terminal show it."""
        best, second, gaps = {}, {}, {}
        for number in self.numbers():
            first, next_ = self.ranks(number)
            if first is not None:
                best[number] = frozenset(self.sides[first].runs)
            if next_ is not None:
                second[number] = frozenset(self.sides[next_].runs)
        for (number, one, other), gap in self.gaps.items():
            for run in self.sides[one].runs:
                for rival in self.sides[other].runs:
                    gaps[number, run, rival], gaps[number, rival, run] = gap, gap.reversed()
        values = {
            (number, side.runs[0]): value
            for (number, place), value in self.values.items()
            if len((side := self.sides[place]).runs) == 1 and (side.record.single or number.startswith("task:"))
        }
        seeds = tuple(Seeds(s.label, s.runs, student(len(s.runs) - 1)) for s in self.sides if len(s.runs) > 1)
        return Verdict(best, second, gaps, values, baselines or {}, tuple(self.notes), seeds)


def compare_runs(
    records: Sequence[RunRecord],
    family: str = "strict",
    draws: int = DRAWS,
    seed: int = 0,
    strict: bool = True,
    paired: bool = True,
) -> Comparison:
    """Hold runs against each other.

    Args:
        records: the runs; those that are not finished are shown, and nothing is decided of them.
        family: whose points.
        draws, seed: of the bootstrap, the same for all runs.
        strict: raise where a run's answers cannot be read; else note it, and decide nothing of that run.
        paired: whether differences are wanted.

    Raises:
        UserError: no runs, or answers that cannot be read.
    """
    if not records:
        raise UserError("there is no run to compare", fix="Give one run folder or more")
    runs = ready(records)
    tasks = list(dict.fromkeys(task for _, record in runs for task in record.tasks))
    found = Comparison(runs, sides_of(runs), family, tasks)
    held: dict[int, Answers] = {}
    for place, (label, record) in enumerate(runs):
        if not record.finished:
            found.notes.append(f"{label} is not finished: nothing is decided of it")
            continue
        try:
            held[place] = read_answers(record)
        except UserError as fault:
            if strict:
                raise
            found.notes.append(f"nothing is decided of {label}: {fault}")
    drawn = {place: sample(points_of(runs[place][1], answers, family), draws, seed) for place, answers in held.items()}
    own = [_values(record, drawn.get(place), held.get(place), family) for place, (_, record) in enumerate(runs)]
    for place, side in enumerate(found.sides):
        for number in dict.fromkeys(number for run in side.runs for number in own[run]):
            known = [own[run][number] for run in side.runs if number in own[run]]
            if len(known) == len(side.runs):
                found.values[number, place] = (
                    known[0] if len(known) == 1 else _interval(over_seeds([v[0] for v in known]))
                )
        if set(side.runs) <= drawn.keys() and len({drawn[run].by_chunk.shape for run in side.runs}) == 1:
            found.curves[place] = _band([drawn[run].by_chunk for run in side.runs])
    for one, other in combinations(range(len(found.sides)), 2) if paired else ():
        _hold_against(found, one, other, held, drawn, draws, seed)
    return found


def _hold_against(
    found: Comparison, one: int, other: int, held: dict[int, Answers], drawn: dict[int, Sampled], draws: int, seed: int
) -> None:
    runs, sides = found.runs, (found.sides[one], found.sides[other])
    names = f"{sides[0].label} and {sides[1].label}"
    pairs = [pair for pair in pairs_of(*sides, runs) if pair[0] in held and pair[1] in held]
    if not pairs:
        if all(side.record.finished for side in sides) and all(set(side.runs) <= held.keys() for side in sides):
            found.notes.append(f"{names} have no seed in common: nothing is decided between them")
        return
    if len(pairs) < max(len(side.runs) for side in sides):
        found.notes.append(f"{names} are paired on {len(pairs)} of their seeds: what is decided holds for those")
    by_pair: list[dict[str, Difference]] = []
    for first, second in pairs:
        why = apart(runs[first][1], runs[second][1])
        if not why and not same_samples(held[first], held[second]):
            why = "they were asked other test samples"
        if why:
            found.notes.append(f"{names} do not compare: {why}. None is called best beside the other")
            return
        like = held[first]
        ours = points_of(runs[first][1], held[first], found.family)
        theirs = points_of(runs[second][1], held[second], found.family, like)
        order_kept = held[second].ids == like.ids
        again = drawn[second] if order_kept else sample(theirs, draws, seed)
        metrics, tasks = differences(ours, theirs, (drawn[first], again))
        by_pair.append(metrics | {task_key(task): gap for task, gap in tasks.items()})
    for number in by_pair[0]:
        if not all(number in gaps for gaps in by_pair) or not all((number, k) in found.values for k in (one, other)):
            continue
        gap = by_pair[0][number] if len(pairs) == 1 else seeds_apart([gaps[number].estimate.value for gaps in by_pair])
        found.gaps[number, one, other] = _gap(gap)


def _values(record: RunRecord, drawn: Sampled | None, answers: Answers | None, family: str) -> dict[str, Interval]:
    """Every number of one run: as its summary has it, else from its answers."""
    found: dict[str, Interval] = {}
    judged = set(answers.tasks(family)) if answers else set()
    learned = record.plan.sum(axis=0) > 0 if record.n_chunks else np.zeros(len(record.tasks), bool)
    averaged = {task for place, task in enumerate(record.tasks) if record.in_average[place] and learned[place]}
    whole = bool(averaged) and averaged <= judged  # an average over some of its tasks is another number
    for name in ALL:
        if record.single and name.startswith(OF_LEARNERS):
            continue
        entry = record.metric(name) if family == record.summary.get("family", "strict") else None
        if (entry is None or entry[1] is None) and drawn is not None and (whole or name == "mif"):
            measured = estimate(drawn.metrics[name])
            entry = entry if math.isnan(measured.value) else _interval(measured)
        if entry is not None:
            found[name] = entry
    if not record.n_chunks:
        return found
    score, low, high = (record.matrix(family, column) for column in ("score", "low", "high"))
    for place, task in enumerate(record.tasks):
        rows = np.flatnonzero(~np.isnan(score[:, place]))
        if len(rows) and (rows[-1] == record.n_chunks - 1 or not record.finished):
            ends = [None if np.isnan(end[rows[-1], place]) else float(end[rows[-1], place]) for end in (low, high)]
            found[task_key(task)] = float(score[rows[-1], place]), ends[0], ends[1]
    return found


def _band(drawn: list[np.ndarray]) -> np.ndarray:
    if len(drawn) > 1:
        return np.array([over_seeds(column) for column in np.array([values[0] for values in drawn]).T]).T
    return np.array([estimate(column) for column in drawn[0].T]).T


def _interval(found: Estimate) -> Interval:
    ends = [None if math.isnan(end) else float(end) for end in (found.low, found.high)]
    return float(found.value), ends[0], ends[1]


def _gap(found: Difference) -> Gap:
    return Gap(*_interval(found.estimate), found.decided, found.pairs)
