"""How often a true difference of two runs is found: by their paired interval, and by intervals that do not overlap.

    python benchmarks/pairing.py

Two runs answer the same test sets. Most samples are easy for both or hard for both, and the better run gets some right
that the other has wrong. A difference of 0 that is found is a false one: 5 in 100 are expected of the paired interval.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamcvit.evaluation.paired import Points, differences, sample

TASKS, SAMPLES, DRAWS = 5, 100, 300
GAINS = (0.0, 1.0, 2.0, 3.0, 5.0)


def trial(rng: np.random.Generator, gain: float, same: float = 0.85) -> tuple[bool, bool]:
    """One pair of runs: whether the paired interval, and whether the overlap of two intervals, tells them apart.

    Args:
        rng: of the answers.
        gain: points of AP by which the better run is better, in expectation.
        same: share of the samples on which luck plays no part.
    """
    chance = np.where(rng.random((TASKS, SAMPLES)) < same, rng.random((TASKS, SAMPLES)) < 0.5, 0.5)
    one, other = (100.0 * (rng.random((TASKS, SAMPLES)) < chance) for _ in range(2))
    one = np.where((one == 0) & (rng.random((TASKS, SAMPLES)) < gain / 50), 100.0, one)
    runs = [_points(answers) for answers in (one, other)]
    drawn = sample(runs[0], DRAWS), sample(runs[1], DRAWS)
    paired = differences(runs[0], runs[1], drawn)[0]["ap"].decided
    (low, high), (floor, roof) = (np.quantile(run.metrics["ap"][1:], [0.025, 0.975]) for run in drawn)
    return bool(paired), bool(low > roof or floor > high)


def _points(answers: np.ndarray) -> Points:
    scores = {f"task{k}": row[None] for k, row in enumerate(answers)}
    forms = {task: np.ones_like(row) for task, row in scores.items()}
    return Points(scores, forms, np.ones((1, TASKS), int), list(scores), {})


def rates(gain: float, trials: int, seed: int = 0) -> tuple[float, float]:
    """Shares of pairs that are told apart: by the paired interval, by the overlap."""
    rng = np.random.default_rng([seed, round(100 * gain)])
    found = np.array([trial(rng, gain) for _ in range(trials)])
    return float(found[:, 0].mean()), float(found[:, 1].mean())


def table(trials: int = 400) -> Iterator[str]:
    """The rates by true difference, as Markdown."""
    yield f"{TASKS} tasks of {SAMPLES} samples, {trials} pairs of runs a row"
    yield ""
    yield "| true difference, points of AP | found by the paired interval | found where intervals do not overlap |"
    yield "|---:|---:|---:|"
    for gain in GAINS:
        paired, apart = rates(gain, trials)
        yield f"| {gain:g} | {100 * paired:.0f} % | {100 * apart:.0f} % |"


if __name__ == "__main__":
    for line in table():
        print(line)
