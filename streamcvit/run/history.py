"""What was true at each chunk boundary of a run, from its folder alone: the same whenever it is asked, and by whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.evaluation.matrix import metrics
from streamcvit.evaluation.plan import Plan
from streamcvit.monitoring.definitions import Source
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.sinks import Point, points_of, tag_of
from streamcvit.monitoring.times import unix
from streamcvit.run.unseen import scored_at

NEWEST_ONLY = ("maf_cross",)
"""Metrics that need every answer: told of a boundary while it is the newest, like those of one's own."""


def scored_boundaries(config: RunConfig, record: RunRecord) -> int:
    """So many boundaries, from the first on, are learned and scored on every task that is scored there."""
    wanted = scored_at(config, record.plan)[1:]
    there: dict[int, set[str]] = {}
    for row in record.scores:
        if row["kind"] in ("boundary", "unseen"):
            there.setdefault(row["chunk"], set()).add(row["task"])
    learned = {event["chunk"] for event in record.chunk_events()}
    for chunk, row in enumerate(wanted):
        tasks = {task for task, here in zip(record.tasks, row, strict=True) if here}
        if chunk not in learned or not tasks <= there.get(chunk, set()):
            return chunk
    return len(wanted)


def boundary_points(config: RunConfig, record: RunRecord, source: Source, chunk: int) -> list[Point]:
    """All metrics as they stood when a chunk was learned and scored, at the optimizer steps of its end.

    Args:
        config: the run.
        record: of the method.
        source: whose they are.
        chunk: one of `scored_boundaries`.
    """
    event = next(event for event in record.chunk_events() if event["chunk"] == chunk)
    store = MetricStore()
    store.load(_as_of(config, record, chunk), source)
    return points_of(store.collect(), source, int(event.get("step") or 0), unix(event.get("time")) or 0.0)


def probe_points(record: RunRecord) -> list[Point]:
    """The scores between boundaries, each at the steps of the weights that were probed."""
    names = {"score": "task_probe_points", "low": "task_probe_low_points", "high": "task_probe_high_points"}
    return [
        Point(tag_of(name, {"task": row["task"]}), row["version"], float(row[column]), unix(row.get("time")) or 0.0)
        for row in record.probes
        if row["family"] == "strict"
        for column, name in names.items()
    ]


def _as_of(config: RunConfig, record: RunRecord, chunk: int) -> RunRecord:
    """A record as it was at a boundary; what happened meanwhile (restarts) counts to the boundary it came before."""
    end = next(number for number, e in enumerate(record.events) if e.get("event") == "chunk" and e["chunk"] == chunk)
    events = [e for e in record.events[: end + 1] if e.get("event") != "chunk" or e.get("chunk", 0) <= chunk]
    ledger, there = record.ledger, record.ledger.chunk <= chunk
    parts = (column[there] for column in (ledger.position, ledger.chunk, ledger.task, ledger.loss, ledger.correct))
    return replace(
        record,
        run={**record.run, "finished": None},
        events=events,
        scores=[row for row in record.scores if row["kind"] in ("boundary", "unseen") and row["chunk"] <= chunk],
        ledger=type(ledger)(*parts),
        evaluation_seconds={},
        summary=_summary(config, record, chunk),
        probes=[],  # each is a point of its own
    )


def _summary(config: RunConfig, record: RunRecord, chunk: int) -> dict[str, Any]:
    """The metrics of a boundary in the form of `summary.json`, without intervals."""
    counted = np.isin(record.tasks, config.evaluation.mif_tasks or record.tasks)
    found = metrics(
        record.matrix()[: chunk + 1],
        Plan(record.plan[: chunk + 1]),
        record.in_average,
        100 * record.matrix(column="following")[: chunk + 1],
        judged=counted,
    )
    values = {name: float(value) for name, value in found.items() if not np.isnan(value)}
    told, own = record.summary.get("metrics", {}), record.summary.get("own_metrics", ())
    if record.summary.get("chunks", [])[-1:] == [chunk]:
        here = {name: told.get(name, {}).get("value") for name in (*NEWEST_ONLY, *own)}
        values |= {name: value for name, value in here.items() if value is not None}
    return {"metrics": {name: {"value": value} for name, value in values.items()}, "own_metrics": list(own)}
