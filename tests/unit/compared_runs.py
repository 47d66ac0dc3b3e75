"""Finished run folders with given points: files as a run writes them, no model and no learning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from streamcvit.evaluation import bootstrap_mean, summarise
from streamcvit.run.predictions import write_predictions


def write_points(
    folder: Path,
    points: Mapping[str, np.ndarray],
    *,
    plan: np.ndarray | None = None,
    seed: int = 0,
    digest: str = "ab",
    published: Mapping[str, np.ndarray] | None = None,
    follows: float = 0.5,
    finished: bool = True,
    settings: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    ids: str = "q",
    backwards: bool = False,
) -> Path:
    """Write one method's run folder; the method is the folder's name.

    Args:
        points: task -> points [T, n], a row of nan where it was not evaluated.
        plan: samples [T, tasks]; each task in one chunk, in turn, unless given.
        published: points of the published scorers, of the tasks that have them.
        follows: share of the answers in the demanded form, the first of each task.
        settings: of the method.
        config: more of config.yaml.
        ids: what the test samples' ids begin with; `{task}` in it is the task.
        backwards: write the test samples in the opposite order.
    """
    tasks, chunks = list(points), len(next(iter(points.values())))
    plan = np.eye(chunks, len(tasks), dtype=int) * 8 if plan is None else plan
    plan[-1, len(plan) :] = 8
    folder.mkdir(parents=True)
    rows = []
    for task, table in points.items():
        for chunk, values in enumerate(table):
            if np.isnan(values).any():
                continue
            n, extra = len(values), (published or {}).get(task)
            order = slice(None, None, -1 if backwards else 1)
            meta = {
                "chunk": chunk, "version": chunk + 1, "digest": "0" * 64, "seconds": 0.1, "task": task,
                "metric": "exact", "published": "vqav2" if extra is not None else "",
            }  # fmt: skip
            columns = {
                "sample_id": [f"{ids.format(task=task)}{k}" for k in range(n)][order],
                "prediction": ["a"] * n,
                "reference": ["b"] * n,
                "score": values.tolist()[order],
                "score_strcvit": [None] * n if extra is None else extra[chunk].tolist()[order],
                "follows": [k < follows * n for k in range(n)][order],
            }
            write_predictions(folder / "predictions" / f"{chunk + 1:08d}" / f"{task}.parquet", columns, meta)
            for family, given in (("strict", values), ("strcvit", None if extra is None else extra[chunk])):
                if given is not None:
                    low, high = bootstrap_mean(given, draws=100)
                    rows.append(
                        {"version": chunk + 1, "digest": "0" * 64, "chunk": chunk, "task": task, "kind": "boundary",
                         "metric": "exact", "family": family, "score": float(np.mean(given)), "following": follows,
                         "n": n, "low": low, "high": high, "seconds": 0.1, "disagreements": 0}
                    )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    forms = {task: np.where(np.isnan(table), np.nan, np.arange(table.shape[1]) < follows * table.shape[1])
             for task, table in points.items()}  # fmt: skip
    summary = summarise(points, forms, plan, tasks, draws=100, seed=seed).to_json()
    run = {"method": folder.name, "seed": seed, "index_digest": digest, "finished": "2026" if finished else None}
    tree = {"seed": seed, "methods": {folder.name: dict(settings or {"adapter": "lora"})}, **(config or {})}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "plan.json").write_text(json.dumps({"tasks": tasks, "chunks": plan.tolist(), "in_average": tasks}))
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    events = [{"event": "chunk", "chunk": chunk, "samples": 8, "busy_s": 1.0} for chunk in range(chunks)]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def right(shares: Mapping[str, list[float | None]], n: int = 40) -> dict[str, np.ndarray]:
    """Points [T, n] of tasks of whose n samples these shares are right after each chunk, always the first ones."""
    tables = {}
    for task, row in shares.items():
        rows = [np.full(n, np.nan) if share is None else 100.0 * (np.arange(n) < share * n) for share in row]
        tables[task] = np.array(rows)
    return tables
