"""How often the 95 % intervals of a summary hold the truth, on simulated streams: `python benchmarks/coverage.py`.

Each stream has 4 to 11 tasks in 5 to 25 chunks, learned as `generate` mixes them or one after another. Its true scores
follow one of the `KINDS`. Every test sample has a difficulty that it keeps over chunks, and noise that lasts a while:
scores of one task are correlated from chunk to chunk as a model's are; the true mean of each cell is known. The
intervals come from the code that a run uses (`streamcvit.evaluation.matrix.intervals`), for many streams at once.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from streamcvit.evaluation import bootstrap, forgetting
from streamcvit.evaluation.interval import score_interval
from streamcvit.evaluation.matrix import METRICS, Plan, drawn_metrics, intervals, metrics

CELLS = ((5, 4), (15, 8), (25, 11))
"""(chunks, tasks)."""
SIZES = (20, 100)
KINDS = {
    "mixed": "each task of a stream is one of the next three",
    "keeps": "a score stays where learning brought it: nothing is forgotten",
    "forgets": "a score falls by a third of the way to a floor in every chunk without the task",
    "drifts": "a score falls by one point in every chunk without the task",
    "grows": "a score rises with every chunk of the task",
    "jumps": "nothing is forgotten, but every score moves by 3 points at random in every chunk",
}
STEADY, LASTS = 0.7, 0.6
"""Share of a sample's variance that it keeps over all chunks; correlation of the rest from chunk to chunk."""


def plan_of(chunks: int, tasks: int, rng: np.random.Generator) -> np.ndarray:
    """Which task is learned in which chunk: two or three a chunk after its first one."""
    counts = np.zeros((chunks, tasks), int)
    first = np.arange(tasks) * max(1, chunks - 1) // tasks
    counts[first, np.arange(tasks)] = 1
    for chunk in range(chunks):
        known = np.flatnonzero(first < chunk)
        counts[chunk, rng.permutation(known)[: rng.integers(0, 3)]] = 1
    return counts


def truth_of(kind: str, counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """True shares of right answers, [T, tasks], and before any learning, [tasks]."""
    chunks, tasks = counts.shape
    kinds = rng.choice(["keeps", "forgets", "drifts"], tasks) if kind == "mixed" else np.full(tasks, kind)
    top, start = rng.uniform(0.35, 0.97, tasks), rng.uniform(0.02, 0.3, tasks)
    floor = top * rng.uniform(0.2, 0.7, tasks)
    level, table = start.copy(), np.zeros((chunks, tasks))
    for chunk in range(chunks):
        known = counts[:chunk].any(axis=0)
        fallen = np.where(kinds == "forgets", floor + (level - floor) * 2 / 3, level)
        fallen = np.where(kinds == "drifts", np.maximum(level - 0.01, 0.02), fallen)
        reached = np.where(kinds == "grows", level + (top - level) / 2, top)
        level = np.where(counts[chunk] > 0, reached, np.where(known, fallen, level))
        table[chunk] = level
    table += np.where(kinds == "jumps", rng.normal(0, 0.03, table.shape), 0.0)
    return np.clip(table, 0.01, 0.99), np.clip(start, 0.01, 0.99)


def answers(shares: np.ndarray, n: int, streams: int, rng: np.random.Generator) -> np.ndarray:
    """Points, 0 or 100, [streams, T, n] of one task whose true shares are [T]."""
    cut = np.array([NormalDist().inv_cdf(share) for share in shares], np.float32)
    noise = rng.standard_normal((len(shares), streams, n), np.float32)
    for chunk in range(1, len(shares)):
        noise[chunk] = LASTS * noise[chunk - 1] + np.sqrt(1 - LASTS**2, dtype=np.float32) * noise[chunk]
    ease = STEADY**0.5 * rng.standard_normal((streams, n), np.float32) + (1 - STEADY) ** 0.5 * noise
    return np.where(ease < cut[:, None, None], 100.0, 0.0).astype(np.float32).swapaxes(0, 1)


def cell(kind: str, chunks: int, tasks: int, n: int, streams: int, draws: int, seed: int) -> dict[str, Any]:
    """Coverage, bias and half the mean width of every metric's interval, over `streams` streams of one true matrix."""
    rng = np.random.default_rng([seed, chunks, tasks, n, *kind.encode()])
    counts = plan_of(chunks, tasks, rng)
    counts[:, -1] = 0 if tasks > 4 else counts[:, -1]  # a task that is only tested
    shares, start = truth_of(kind, counts, rng)
    forms = np.clip(1 - (1 - shares) * rng.uniform(0.1, 0.5, tasks), 0, 0.985)
    plan, counted = Plan(counts), np.ones(tasks, bool)
    true = metrics(100 * shares, plan, counted, 100 * forms, 100 * start)
    true["maf_cross"] = true["maf_best"]
    whole = [np.concatenate([start[None], shares])[:, task] for task in range(tasks)]
    points = [answers(share, n, streams, rng) for share in whole]
    follows = {f"t{task}": answers(forms[:, task], n, streams, rng) / 100 for task in range(tasks)}
    drawn = drawn_metrics(
        {f"t{task}": rows[:, 1:] for task, rows in enumerate(points)},
        follows,
        plan,
        counted,
        draws,
        seed,
        {f"t{task}": rows[:, 0] for task, rows in enumerate(points)},
    )
    found = intervals(drawn)
    told = {}
    for name in METRICS:
        value, low, high = found[name]
        if np.isnan(true[name]):
            continue
        held = (low <= true[name] + 1e-9) & (true[name] - 1e-9 <= high)
        told[name] = {
            "covered": round(100 * float(held.mean()), 1),
            "bias": round(float((value - true[name]).mean()), 2),
            "half": round(float((high - low).mean()) / 2, 2),
        }
    return told


def single(n: int, trials: int, seed: int = 0) -> dict[str, float]:
    """Coverage of the interval of one task's score (`score_interval`), by its true share in percent."""
    rng = np.random.default_rng([seed, n])
    found = {}
    for share in (2, 5, 10, 30, 50, 70, 90, 95, 98):
        held = {}
        right = rng.binomial(n, share / 100, trials)
        for count in np.unique(right).tolist():
            _, low, high = score_interval(np.repeat([100.0, 0.0], [count, n - count]))[0]
            held[count] = low <= share <= high
        found[str(share)] = round(100 * float(np.mean([held[count] for count in right.tolist()])), 1)
    return found


def simulate(
    kinds: list[str], matrices: int, streams: int, draws: int, cells: Any = CELLS, first: int = 0
) -> dict[str, Any]:
    """Coverage by kind, then by (chunks, n): the mean over `matrices` true matrices, the seeds from `first` on, of
    `streams` streams each."""
    result: dict[str, Any] = {}
    for kind in kinds:
        result[kind] = {}
        for chunks, tasks in cells:
            for n in SIZES:
                parts = [cell(kind, chunks, tasks, n, streams, draws, seed) for seed in range(first, first + matrices)]
                names = [name for name in METRICS if any(name in part for part in parts)]
                result[kind][f"{chunks} chunks, {tasks} tasks, n = {n}"] = {
                    name: {
                        key: round(float(np.mean([part[name][key] for part in parts if name in part])), 2)
                        for key in ("covered", "bias", "half")
                    }
                    for name in names
                }
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a metric, a column a cell."""
    lines = []
    for kind, cells in result.items():
        lines += [f"\n{kind}: {KINDS[kind]}\n", "| metric | " + " | ".join(cells) + " |", "|---|" + "---|" * len(cells)]
        for name in METRICS:
            if any(name in found for found in cells.values()):
                row = [f"{found[name]['covered']:.1f}" if name in found else "" for found in cells.values()]
                lines.append(f"| `{name}` | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--matrices", type=int, default=10, help="true matrices a cell")
    parser.add_argument("--streams", type=int, default=200, help="streams of each true matrix")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first matrix")
    parser.add_argument("--out", type=Path, help="file of results; other kinds in it are kept")
    args = parser.parse_args()
    began = time.perf_counter()
    bootstrap.BLOCK = 5_000_000  # many streams at once: a block of draws of all of them
    result = simulate(args.kind or list(KINDS), args.matrices, args.streams, args.draws, first=args.first)
    print(table(result))
    alone = {f"n = {n}": single(n, 4000) for n in SIZES}
    print("\none task's score, by its true value in points:", json.dumps(alone))
    print(f"{args.matrices * args.streams} streams a cell, {args.draws} draws, {time.perf_counter() - began:.0f} s")
    if args.out:
        how = {"matrices": args.matrices, "streams": args.streams, "draws": args.draws, "splits": forgetting.SPLITS}
        held = json.loads(args.out.read_text()) if args.out.exists() else {"how": {}, "kinds": {}}
        held["how"] |= dict.fromkeys(result, how | {"first": args.first})
        held["kinds"] |= result
        args.out.write_text(json.dumps(held | {"single": alone}, indent=1) + "\n")


if __name__ == "__main__":
    main()
