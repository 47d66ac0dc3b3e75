"""What the report says of drift: of routes and experts over the stream, and what missing points were lost to.

A task's missing points, 100 less its score, are split by the samples of its probe (`learner.drift_samples`). A sample's
best score at the ends of chunks since its task was last learned, less its score now, is what was lost. The share of its
route that moved since then (`routes_moved`, `streamcvit.learning.drift`) of that is put down to the router, the rest to
the experts, where these changed at all. What was missing at its best was never there: capacity was short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.charts import Chart, Series, line_chart, number
from streamcvit.monitoring.runs import Records

MAX_ENDS = 8
"""Ends of chunks, spread evenly, at which a sample's best score is looked for; the first and the newest are two."""
ALL = "all tasks"
_KINDS = (("router", "Routes moved", "% of the probe"), ("expert", "Experts changed", "% of their output"))


@dataclass(frozen=True)
class Missing:
    """What the points that a task is short of were lost to, on average over the samples of its probe.

    Attributes:
        task: its name, or `ALL`.
        samples: of the probe.
        score: now, in points.
        router, expert: points lost since the task was last learned, as the sample's route moved, or its experts.
        neither: lost while route and experts stayed: to what else learns (a projector, a strategy's own weights).
        capacity: points that were at no end of a chunk there since.
    """

    task: str
    samples: int
    score: float
    router: float
    expert: float
    neither: float
    capacity: float


def drift_charts(runs: Records) -> list[Chart]:
    """Drift over chunks: a chart a bank and measure, a line a run; charts of one measure share their axis."""
    told = [(i, label, _by_bank(record)) for i, (label, record) in enumerate(runs)]
    banks = dict.fromkeys(bank for *_, found in told for bank in found)
    chunks = max(record.n_chunks for _, record in runs)
    charts = []
    for kind, title, unit in _KINDS:
        lines = {
            bank: [Series(i, label, own[bank]["chunk"], 100 * own[bank][kind]) for i, label, own in told if bank in own]
            for bank in banks
            if (kind, bank) != ("router", "adapter")  # one expert: there is nowhere else to go
        }
        top = max((float(line.y.max()) for own in lines.values() for line in own), default=0.0) or 1.0
        charts += [
            line_chart(
                own, title=f"{title}, {bank}", unit=unit, chunks=chunks, y_max=top, size=(340, 190), markers=False
            )
            for bank, own in lines.items()
        ]
    return charts


def _by_bank(record: RunRecord) -> dict[str, dict[str, np.ndarray]]:
    rows: dict[str, list[tuple[float, float, float]]] = {}
    if record.n_chunks > 1:  # one chunk has no earlier one to drift from
        for event in record.chunk_events():
            for bank, moved in (event.get("drift") or {}).items():
                rows.setdefault(bank, []).append((event["chunk"] + 1.0, moved["router"], moved["expert"]))
    tables = {bank: np.array(own, dtype=float).T for bank, own in rows.items()}
    return {bank: dict(zip(("chunk", "router", "expert"), table, strict=True)) for bank, table in tables.items()}


def missing_points(record: RunRecord) -> list[Missing]:
    """A row a task that was learned and has a probe, and one of their mean; empty where no drift was measured."""
    events = {event["chunk"]: event for event in record.chunk_events()}
    version = {
        (row["task"], row["chunk"]): row["version"]
        for row in record.scores
        if row["kind"] == "boundary" and row["family"] == "strict"
    }
    found = []
    for i, task in enumerate(record.tasks):
        ends = sorted(chunk for name, chunk in version if name == task)
        learned = [chunk for chunk in np.flatnonzero(record.plan[:, i]).tolist() if ends and chunk <= ends[-1]]
        newest = max(events, default=0) if record.single else ends[-1] if ends else 0
        event = events.get(newest, {})
        moved = event.get("routes_moved", {}).get(task)
        if not moved or not learned:
            continue
        since = ends[-1:] if record.single else [chunk for chunk in ends if chunk >= learned[-1]]
        chosen = {since[int(k)] for k in np.linspace(0, len(since) - 1, min(len(since), MAX_ENDS)).round()}
        scores = [_scores(record, version[task, chunk], task) for chunk in sorted(chosen)]
        changed = any(own["tasks"].get(task, {}).get("expert", 0.0) > 0 for own in event.get("drift", {}).values())
        rows = [
            (*split(share, [known[name] for known in scores], changed), scores[-1][name])
            for name, share in moved.items()
            if all(name in known for known in scores)
        ]
        if rows:
            router, expert, neither, capacity, now = np.mean(rows, axis=0).tolist()
            found.append(Missing(task, len(rows), now, router, expert, neither, capacity))
    if found:
        names = ("score", "router", "expert", "neither", "capacity")
        means = [float(np.mean([getattr(row, name) for row in found])) for name in names]
        found.append(Missing(ALL, sum(row.samples for row in found), *means))
    return found


def split(moved: float, scores: list[float], changed: bool) -> tuple[float, float, float, float]:
    """What a sample's missing points were lost to: (router, expert, neither, capacity), in points.

    Args:
        moved: share of its route that moved since its task was last learned, 0 to 1.
        scores: at ends of chunks since then, the newest last.
        changed: whether its experts changed since then.
    """
    best = max(scores)
    lost = best - scores[-1]
    router, rest = moved * lost, (1 - moved) * lost
    return router, rest * changed, rest * (not changed), max(0.0, 100.0 - best)


def _scores(record: RunRecord, version: int, task: str) -> dict[str, float]:
    rows = record.predictions(version, task)
    return {row["sample_id"]: float(row["score"]) for row in rows if row.get("score") is not None}


def missing_tables(runs: Records) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """`missing_points` of each run that has them, as the page shows them."""
    tables = []
    for i, (label, record) in enumerate(runs):
        rows = [
            {
                "task": row.task,
                "samples": row.samples,
                "all": row.task == ALL,
                "cells": [number(value) for value in (row.score, row.router, row.expert, row.neither, row.capacity)],
            }
            for row in missing_points(record)
        ]
        if rows:
            tables.append((i, label, rows))
    return tables


def without_probe(runs: Records) -> list[str]:
    """Seen tasks of which no drift can be measured, as they have no test samples that can be used."""
    return sorted(
        {str(task) for _, r in runs for event in r.chunk_events() for task in event.get("drift_without") or ()}
    )
