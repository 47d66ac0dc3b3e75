"""Run folders made up for tests of what reads them: no model, no learning, the same bytes for the same arguments.

The numbers are invented (a curve that rises when a task is trained and falls when others are). They look like a run's
so that a report drawn from them shows what a reader will meet; they are no measurement.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

TASKS = ("shape", "scene", "yesno", "count", "colour", "ocr", "caption", "grounding", "chart", "land", "digit")
RETENTION = {"zero-shot": 1.0, "lora": 0.62, "moelora": 0.68, "smolora": 0.93, "replay": 0.9, "joint": 1.0}
ROUTED = ("moelora", "smolora")


def synthetic_plan(chunks: int, tasks: int, per_chunk: int, seed: int = 0) -> np.ndarray:
    """Counts [chunks, tasks]: a few tasks a chunk, every task at least once."""
    rng = np.random.default_rng(seed)
    plan = np.zeros((chunks, tasks), dtype=int)
    for k in range(chunks):
        chosen = {k % tasks, *rng.choice(tasks, size=int(rng.integers(1, 4)), replace=False).tolist()}
        members = sorted(chosen)
        plan[k, members] = rng.multinomial(per_chunk, rng.dirichlet(np.full(len(members), 2.0)))
        plan[k, k % tasks] += per_chunk - plan[k].sum()
    return plan


def synthetic_matrix(method: str, plan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scores [chunks, tasks] in points."""
    chunks, tasks = plan.shape
    base, ceiling = rng.uniform(0, 12, tasks), rng.uniform(45, 97, tasks)
    level, rows = base.copy(), []
    for k in range(chunks):
        if method == "joint":
            level = base + (ceiling - base) * (1 - np.exp(-1.2 * (k + 1) / 3))
        elif method != "zero-shot":
            share = plan[k] / plan[k].sum()
            level = np.where(share > 0, level, base + (level - base) * RETENTION[method])
            level = level + (ceiling - level) * (1 - np.exp(-3.5 * share))
        rows.append(np.clip(level + rng.normal(0, 1.2, tasks), 0, 100))
    return np.array(rows)


def write_run(
    folder: Path,
    method: str = "smolora",
    *,
    chunks: int = 15,
    tasks: tuple[str, ...] = TASKS,
    per_chunk: int = 64,
    done: int | None = None,
    prediction: str = "",
    seed: int = 0,
    once: bool = False,
    answers: bool = True,
) -> Path:
    """Write one run folder.

    Args:
        done: chunks learned so far; fewer than `chunks` leaves the run unfinished.
        prediction: text put into predictions, for tests of escaping.
        answers: write predictions too.
        once: learn the whole stream as one chunk (`joint`), or nothing at all (`zero-shot`), and score once.
    """
    done = chunks if done is None else done
    rng = np.random.default_rng([seed, zlib.crc32(method.encode())])
    plan = synthetic_plan(chunks, len(tasks), per_chunk)
    matrix = synthetic_matrix(method, plan, rng)[:done]
    if once:
        plan = plan.sum(axis=0, keepdims=True)[: int(method != "zero-shot")]
        matrix, done = matrix[-1:][: len(plan)], len(plan)
    seen = np.cumsum(plan, axis=0) > 0
    folder.mkdir(parents=True)
    _write_documents(folder, method, tasks, plan, seed, finished=done == len(plan))
    _write_scores(folder, tasks, plan, matrix, seen, prediction if answers else None, rng)
    _write_ledger(folder, method, tasks, plan, matrix, rng)
    _write_events(folder, method, plan, done, rng)
    if done:
        _write_summary(folder, tasks, matrix, seen[:done], rng)
    return folder


def _write_documents(folder: Path, method: str, tasks: tuple, plan: np.ndarray, seed: int, finished: bool) -> None:
    run = {
        "name": folder.name,
        "method": method,
        "seed": seed,
        "versions": {"streamcvit": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "machine": "synthetic test fixture",
        "device": "cpu",
        "base_digest": "ab" * 32,
        "index_digest": "cd" * 32,
        "started": "2026-01-01T10:00:00+00:00",
        "finished": "2026-01-01T10:12:30+00:00" if finished else None,
    }
    (folder / "run.json").write_text(json.dumps(run))
    config = {
        "seed": seed,
        "methods": {
            "zero-shot": {"adapter": "none"},
            "lora": {"adapter": "lora", "lr": 3e-4},
            "smolora": {"adapter": "smolora", "lr": 2e-3, "options": {"router": "prototype"}},
            "joint": {"adapter": "lora", "lr": 2e-3, "order": "joint"},
        },
        "data": {"stream": "embedded", "batch_size": 8},
        "evaluation": {"batch_size": 64},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "plan.json").write_text(json.dumps({"tasks": list(tasks), "chunks": plan.tolist()}))


def _write_scores(
    folder: Path, tasks: tuple, plan: np.ndarray, matrix: np.ndarray, seen: np.ndarray, text: str | None, rng
) -> None:
    rows, probes = [], []

    def add(version: int, chunk: int, task: str, kind: str, score: float, n: int) -> None:
        for family, bonus in (("strict", 0.0), ("strcvit", 4.0 if task in ("scene", "land", "count") else 0.5)):
            value = float(np.clip(score + bonus, 0, 100))
            (probes if kind == "live" else rows).append(
                {
                    "version": version,
                    "digest": f"{version:064x}",
                    "chunk": chunk,
                    "task": task,
                    "kind": kind,
                    "metric": "cider" if task == "caption" else "exact",
                    "family": family,
                    "score": value,
                    "following": min(1.0, 0.55 + value / 200),
                    "n": n,
                    "low": max(0.0, value - 6.0),
                    "high": min(100.0, value + 6.0),
                    "seconds": 0.8,
                    "disagreements": int(bonus * n / 100),
                }
            )

    for i, task in enumerate(tasks):
        add(0, -1, task, "zero", float(matrix[0, i]) * 0.2 if len(matrix) else 0.0, 100)
    for k in range(len(matrix)):
        for i, task in enumerate(tasks):
            if seen[k, i]:
                add((k + 1) * 8, k, task, "boundary", float(matrix[k, i]), 100)
                add((k + 1) * 8 - 4, k, task, "live", float(matrix[k, i] + rng.normal(0, 4)), 20)
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    lines = [json.dumps(row | {"cursor": 8 * row["version"], "time": "2026-01-01T10:00:00+00:00"}) for row in probes]
    (folder / "probes.jsonl").write_text("".join(line + "\n" for line in lines))
    for k in range(len(matrix) if text is not None else 0):
        out = folder / "predictions" / f"{(k + 1) * 8:08d}"
        out.mkdir(parents=True)
        for i, task in enumerate(tasks):
            if seen[k, i] and "/" not in task:
                right = np.arange(20) < matrix[k, i] / 5
                answers = [
                    {
                        "sample_id": f"{task}-{j}",
                        "prediction": f"answer {j}" if right[j] else (text or f"another {(j * 7 + k) % 5}"),
                        "reference": f"answer {j}",
                        "score": 100.0 * float(right[j]),
                        "score_strcvit": 100.0 * float(right[j]),
                        "follows": True,
                    }
                    for j in range(20)
                ]
                pq.write_table(pa.Table.from_pylist(answers), out / f"{task}.parquet")


def _write_ledger(folder: Path, method: str, tasks: tuple, plan: np.ndarray, matrix: np.ndarray, rng) -> None:
    (folder / "ledger").mkdir()
    position = 0
    for k in range(len(matrix)):
        drawn = rng.permutation(np.repeat(np.arange(len(tasks)), plan[k]))
        before = matrix[k - 1, drawn] if k else 0.3 * matrix[0, drawn]
        learned = np.linspace(0.0, 1.0, len(drawn))
        ease = (before * (1 - learned) + matrix[k, drawn] * learned) / 100
        rows = {
            "position": np.arange(position, position + len(drawn)),
            "sample_id": [f"s{position + j}" for j in range(len(drawn))],
            "task": [tasks[i] for i in drawn],
            "chunk": np.full(len(drawn), k),
            "step": k * 8 + np.arange(len(drawn)) // 8,
            "loss": (2.6 * np.exp(-2.2 * ease) + rng.gamma(1.5, 0.12, len(drawn))).astype(np.float32),
            "correct": rng.random(len(drawn)) < ease,
        }
        pq.write_table(pa.table(rows), folder / "ledger" / f"{(k + 1) * 8}.parquet")
        position += len(drawn)


def _write_events(folder: Path, method: str, plan: np.ndarray, done: int, rng) -> None:
    def at(second: float) -> str:
        return f"2026-01-01T10:{int(second) // 60:02d}:{int(second) % 60:02d}+00:00"

    events: list[dict] = [{"time": at(0), "event": "started"}]
    for k in range(done):
        share = {}
        if method in ROUTED:
            share = {
                bank: rng.dirichlet(np.full(size, 1.5)).tolist() for bank, size in (("visual", 4), ("instruction", 8))
            }
        events.append(
            {
                "time": at(40 * (k + 1)),
                "event": "chunk",
                "chunk": k,
                "step": (k + 1) * 8,
                "samples": int(plan[k].sum()),
                "busy_s": float(rng.uniform(14, 18)),
                "wait_ingest_s": float(rng.gamma(2, 0.15)),
                "wait_evaluation_s": float(rng.gamma(1, 0.05)),
                "commit_s": float(rng.uniform(0.1, 0.3)),
                "loss": float(rng.uniform(0.4, 1.6)),
                "correct": float(rng.uniform(0.2, 0.6)),
                "expert_share": share,
            }
        )
    if done > 3 and method == "smolora":
        events.append({"time": at(130), "event": "restart", "actor": "learner"})
        for position in (70, 171, 300):
            events.append(
                {
                    "time": at(131),
                    "event": "quarantine",
                    "position": position,
                    "sample_id": f"s{position}",
                    "reason": "image" if position < 300 else "json",
                    "detail": "shard 00001.tar, byte 4096: cut short",
                }
            )
    if done == len(plan):
        events.append({"time": at(750), "event": "finished"})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def _write_summary(folder: Path, tasks: tuple, matrix: np.ndarray, seen: np.ndarray, rng) -> None:
    known = np.where(seen, matrix, np.nan)
    ap = np.nanmean(known, axis=1)
    now, best = known[-1], np.nanmax(known, axis=0, initial=-np.inf, where=~np.isnan(known))
    first = np.array([known[~np.isnan(known[:, i]), i][0] if seen[-1, i] else np.nan for i in range(len(tasks))])

    def interval(value: float, half: float) -> dict[str, float]:
        return {"value": float(value), "low": float(value - half), "high": float(value + half)}

    earlier = np.nanmax(known[:-1], axis=0, initial=-np.inf, where=~np.isnan(known[:-1]))
    forgotten = {
        task: float(earlier[i] - now[i]) if np.isfinite(earlier[i]) else 0.0
        for i, task in enumerate(tasks)
        if seen[-1, i]
    }
    summary = {
        "family": "strict",
        "tasks": list(tasks),
        "chunks": list(range(len(matrix))),
        "matrix": [[None if np.isnan(v) else float(v) for v in row] for row in known],
        "ap_by_chunk": ap.tolist(),
        "seen": [[task for i, task in enumerate(tasks) if row[i]] for row in seen],
        "metrics": {
            "ap": interval(ap[-1], 2.6),
            "map": interval(ap.mean(), 1.4),
            "bwt_first": interval(np.nanmean(now - first), 3.1),
            "bwt_last": interval(np.nanmean(now - best) * 0.8, 2.7),
            "maf_best": interval(np.mean(list(forgotten.values())), 1.9),
            "mif": interval(55 + ap[-1] / 2, 1.2),
        },
        "forgetting": forgotten,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def write_runs(folder: Path, methods: tuple[str, ...] = ("zero-shot", "lora", "smolora"), **options) -> list[Path]:
    """One run folder a method, below `folder`."""
    return [write_run(folder / method, method, **options) for method in methods]
