"""What was found when runs were held against each other, as report and terminal show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamcvit.monitoring.record import Interval


@dataclass(frozen=True)
class Gap:
    """A number of one run less that of another, in points.

    Attributes:
        value: the difference.
        low, high: ends of its 95 % interval; None where there is none.
        decided: whether the interval leaves zero out, on samples enough to say so.
        pairs: seeds that were paired; 1: the paired bootstrap over samples, else Student's interval over seeds.
    """

    value: float
    low: float | None
    high: float | None
    decided: bool
    pairs: int = 1

    def reversed(self) -> Gap:
        """The other run less the one."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Gap(-self.value, low, high, self.decided, self.pairs)


@dataclass(frozen=True)
class Seeds:
    """Runs that differ by their seed alone.

    Attributes:
        label: of the method.
        runs: their places, two or more.
        quantile: 97.5 % quantile of Student's t, of one degree of freedom less than there are runs.
    """

    label: str
    runs: tuple[int, ...]
    quantile: float


@dataclass(frozen=True)
class Verdict:
    """Runs held against each other by `streamcvit.comparison`, counted in the order of `monitoring.runs.compared`.

    Attributes:
        best, second: number of a metric, or `task_key` of a task -> the runs that are best, and second, in it. A run is
            best where its paired difference to every other one leaves zero out, second where only the best is above it
            and its difference to each of the rest does.
        gaps: (number, run, other run) -> their difference; of runs on the same stream alone.
        values: (number, run) -> a value that the run's own summary does not hold.
        baselines: task -> points of answers without a look at the picture: (by chance, by the majority answer).
        notes: what a reader must know of the comparison.
        seeds: which runs are seeds of one method.
    """

    best: Mapping[str, frozenset[int]] = field(default_factory=dict)
    second: Mapping[str, frozenset[int]] = field(default_factory=dict)
    gaps: Mapping[tuple[str, int, int], Gap] = field(default_factory=dict)
    values: Mapping[tuple[str, int], Interval] = field(default_factory=dict)
    baselines: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seeds: tuple[Seeds, ...] = ()

    def is_best(self, number: str, run: int) -> bool:
        return run in self.best.get(number, ())

    def is_second(self, number: str, run: int) -> bool:
        return run in self.second.get(number, ())


UNDECIDED = Verdict()
"""Of runs that nobody has compared: none is best."""


def task_key(task: str) -> str:
    """The number that a task's score after the last chunk is, apart from all names of metrics."""
    return f"task:{task}"
