"""What of a run is shown to who watches it, as plain JSON values that page and terminal draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from streamcvit.monitoring.metrics import entropy_nats
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.runs import shown_metrics
from streamcvit.monitoring.states import RunState
from streamcvit.monitoring.watch.told import happenings

COLUMNS = 60
"""Chunks that are shown one by one; of a longer stream every k-th and the newest."""
BINS = 240
"""Points of the prequential curve, and of a task's probes."""

Fresh = Mapping[tuple[int, str], float]


def rounded(value: Any, digits: int = 1) -> float | None:
    """A number for JSON; None where it is none, or not finite."""
    if value is None or isinstance(value, bool) or not math.isfinite(number := float(value)):
        return None
    return round(number, digits) + 0.0  # no -0.0


def columns(chunks: int) -> list[int]:
    """Which chunks are shown: all, or of more than `COLUMNS` every k-th, the last among them."""
    step = max(1, math.ceil(chunks / COLUMNS))
    return sorted(range(chunks - 1, -1, -step))


def method_view(record: RunRecord, fresh: Fresh) -> dict[str, Any]:
    """One method, from its run folder.

    Args:
        record: its folder.
        fresh: points of boundaries that are being scored (`watch.fresh`).

    Returns:
        `tasks`, `cols` (the chunks that are shown), by task and column `plan`, `score`, `low`, `high` and `fresh`
        (whether its row is still to come), by column `ap`; `lost`: a row a task, the worst first; `loss`: place in
        chunks, nats and accuracy; `experts`, `drift`, `probes`, `waits`, `metrics`, `events`.
    """
    table, low, high = (record.matrix(column=column) for column in ("score", "low", "high"))
    new = np.zeros(table.shape, bool)
    place = {task: i for i, task in enumerate(record.tasks)}
    for (chunk, task), points in fresh.items():
        if np.isnan(table[chunk, place[task]]):
            table[chunk, place[task]], new[chunk, place[task]] = points, True
    cols = columns(record.n_chunks)
    shown = _newest_in(table, cols)  # of chunks that are left out the newest score stands in the next that is shown
    probes = _probes(record)
    names = shown_metrics([record])
    return {
        "name": record.method,
        "kind": "untrained" if record.untrained else "bound" if record.upper_bound else "",
        "tasks": record.tasks,
        "chunks": record.n_chunks,
        "cols": cols,
        "ends": np.cumsum(record.plan.sum(axis=1)).tolist() if len(cols) == record.n_chunks else [],
        "plan": _plan(record, cols),
        "score": _grid(_take(table, shown)),
        "low": _grid(_take(low, shown)),
        "high": _grid(_take(high, shown)),
        "fresh": _take(new, shown).T.astype(int).tolist(),
        "ap": [rounded(record.ap_by_chunk()[chunk]) for chunk in cols],
        "lost": _lost(record.tasks, table, low, high, probes),
        "metrics": {name: [rounded(v) for v in entry] for name in names if (entry := record.metric(name))},
        "loss": _loss(record),
        "experts": _experts(record, cols),
        "drift": _drift(record),
        "probes": probes,
        "waits": _waits(record),
        "zero": _zero(record),
        "events": happenings(record),
        "problems": record.problems[:5],
    }


def run_view(state: RunState, names: list[str], views: Mapping[str, dict[str, Any]], report: bool) -> dict[str, Any]:
    """The run as a whole, without its methods.

    Args:
        state: of the run.
        names: the folder of each of its methods that have begun.
        views: of them, by folder.
        report: whether its report lies in its folder.
    """
    return {
        "name": state.name,
        "folder": state.folder,
        "state": state.state,
        "why": state.why,
        "go_on": state.go_on,
        "pid": state.pid,
        "host": state.host,
        "since": state.since,
        "report": report,
        "methods": [
            {
                "name": name,
                "state": method.state,
                "chunk": method.chunk,
                "chunks": method.chunks,
                "total": method.total,
                "ap": rounded(method.ap),
                "skipped": method.steps_skipped,
                "kind": views[name]["kind"],
            }
            for name, method in zip(names, state.methods, strict=True)
        ],
    }


def lag(record: RunRecord, step: int | None) -> dict[str, int | None]:
    """How far scores are behind the learner.

    Returns:
        `chunks`: learned to their end and not scored on every seen task; `steps`: optimizer steps between the learner
        and the newest score, None before the first; `scored`: chunks that are scored.
    """
    events = record.chunk_events()
    learned = len(events)
    known = ~np.isnan(record.ap_by_chunk())
    scored = int(np.flatnonzero(known).max(initial=-1)) + 1
    versions = [row["version"] for row in (*record.scores, *record.probes) if row["kind"] != "zero"]
    newest = max(step or 0, int(events[-1].get("step") or 0) if events else 0)
    steps = max(0, newest - max(versions)) if versions else None
    return {"chunks": max(0, learned - scored), "steps": steps, "scored": scored}


def _newest_in(table: np.ndarray, cols: list[int]) -> np.ndarray:
    """Row to show for each column and task, int [columns, tasks]."""
    rows = np.repeat(np.array(cols, int)[:, None], table.shape[1], axis=1)
    before = -1
    for k, chunk in enumerate(cols):
        for i in range(table.shape[1]) if chunk - before > 1 else ():
            known = np.flatnonzero(~np.isnan(table[before + 1 : chunk + 1, i]))
            if len(known):
                rows[k, i] = before + 1 + known[-1]
        before = chunk
    return rows


def _take(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.take_along_axis(table, rows, axis=0) if len(rows) else table[:0]


def _grid(table: np.ndarray) -> list[list[float | None]]:
    """By task and column."""
    return [[rounded(value) for value in column] for column in table.T]


def _plan(record: RunRecord, cols: list[int]) -> list[list[float]]:
    """Share of the samples of a column's chunks that each task has."""
    edges = [0, *(chunk + 1 for chunk in cols)]
    sums = np.array([record.plan[a:b].sum(axis=0) for a, b in zip(edges, edges[1:], strict=False)])
    if not len(sums):
        return [[] for _ in record.tasks]
    return np.round(sums / np.maximum(sums.sum(axis=1, keepdims=True), 1), 2).T.tolist()


def _lost(
    tasks: list[str], table: np.ndarray, low: np.ndarray, high: np.ndarray, probes: dict[str, list[list[Any]]]
) -> list[dict[str, Any]]:
    """What each task stands below its best earlier score, the worst first.

    The interval takes the two scores as independent, which is wider than the paired one of the report.
    """
    rows: list[dict[str, Any]] = []
    for i, task in enumerate(tasks):
        known = np.flatnonzero(~np.isnan(table[:, i]))
        if not len(known):
            rows.append({"task": task, "i": i})
            continue
        now = int(known[-1])
        best = int(known[:-1][np.argmax(table[known[:-1], i])]) if len(known) > 1 else now
        lost = table[best, i] - table[now, i]
        down = math.hypot(table[best, i] - low[best, i], high[now, i] - table[now, i])
        up = math.hypot(high[best, i] - table[best, i], table[now, i] - low[now, i])
        sure = bool(len(known) > 1 and math.isfinite(down) and lost - down > 0)
        row = {
            "task": task,
            "i": i,
            "best": rounded(table[best, i]),
            "at": best,
            "now": rounded(table[now, i]),
            "chunk": now,
            "lost": rounded(lost),
            "low": rounded(lost - down) if len(known) > 1 else None,
            "high": rounded(lost + up) if len(known) > 1 else None,
            "sure": sure,
        }
        if (newest := probes.get(task, [])[-1:]) and newest[0][0] > now + 1:
            row["probe"] = newest[0][1:]
        rows.append(row)
    return sorted(rows, key=lambda row: (row.get("lost") is None, -(row.get("lost") or 0.0), row["i"]))


def _probes(record: RunRecord) -> dict[str, list[list[Any]]]:
    """Scores between boundaries: place in chunks, points, low, high; the newest `BINS` of each task."""
    ends = np.cumsum(record.plan.sum(axis=1)) if len(record.plan) else np.zeros(0, int)
    found: dict[str, dict[float, list[Any]]] = {}
    for row in record.probes if len(ends) else ():
        if row["family"] != "strict" or row["task"] not in record.tasks:
            continue
        chunk = min(int(np.searchsorted(ends, row["cursor"], side="right")), len(ends) - 1)
        first = int(ends[chunk - 1]) if chunk else 0
        place = round(chunk + min(1.0, (row["cursor"] - first) / max(1, int(ends[chunk]) - first)), 3)
        found.setdefault(row["task"], {})[place] = [place, *(rounded(row[key]) for key in ("score", "low", "high"))]
    return {task: [of[place] for place in sorted(of)][-BINS:] for task, of in found.items()}


def _zero(record: RunRecord) -> dict[str, float | None]:
    """Scores before any learning."""
    rows = (row for row in record.scores if row["kind"] == "zero" and row["family"] == "strict")
    return {row["task"]: rounded(row["score"]) for row in rows}


def _loss(record: RunRecord) -> list[list[float | None]]:
    """The prequential curve in at most `BINS` parts: place in chunks, nats, share right before learning."""
    chunks = len(np.unique(record.ledger.chunk))
    if not chunks:
        return []
    where, loss, right = record.ledger.curve(max(1, min(12, BINS // 2 // chunks)))
    step = max(1, math.ceil(len(where) / BINS))
    return [[rounded(x, 3), rounded(y, 4), rounded(z, 3)] for x, y, z in zip(where, loss, right, strict=True)][::step]


def _experts(record: RunRecord, cols: list[int]) -> dict[str, dict[str, Any]]:
    """Shares of the experts of each bank by chunk, and the entropy of the newest as a share of its most."""
    found: dict[str, dict[str, Any]] = {}
    shares = {event["chunk"]: event.get("expert_share") or {} for event in record.chunk_events()}
    for chunk in cols:
        for bank, values in shares.get(chunk, {}).items() if isinstance(shares.get(chunk), dict) else ():
            if isinstance(values, list) and values:
                found.setdefault(bank, {"chunks": [], "share": []})
                found[bank]["chunks"].append(chunk)
                found[bank]["share"].append([rounded(value, 3) or 0.0 for value in values])
    for one in found.values():
        newest = one["share"][-1]
        most = math.log(len(newest)) if len(newest) > 1 else 1.0
        one["evenness"] = rounded(entropy_nats(newest) / most, 2)
        one["used"] = sum(value >= 0.005 for value in newest)
    return found


def _drift(record: RunRecord) -> dict[str, dict[str, list[list[float | None]]]]:
    """Of each bank and measure: chunk and share, where chunk events have it."""
    found: dict[str, dict[str, list[list[float | None]]]] = {}
    for event in record.chunk_events():
        drift = event.get("drift")
        for bank, measures in drift.items() if isinstance(drift, dict) else ():
            for measure, value in measures.items() if isinstance(measures, dict) else ():
                if isinstance(value, int | float) and (number := rounded(value, 4)) is not None:
                    found.setdefault(bank, {}).setdefault(str(measure), []).append([event["chunk"], number])
    return {bank: {measure: rows[-BINS:] for measure, rows in of.items()} for bank, of in found.items()}


def _waits(record: RunRecord) -> dict[str, float]:
    """Where the time of the newest chunk went, seconds."""
    newest: Iterable[dict[str, Any]] = record.chunk_events()[-1:]
    keys = {"learn": "busy_s", "ingest": "wait_ingest_s", "evaluate": "wait_evaluation_s", "commit": "commit_s"}
    return {name: rounded(event.get(key), 2) or 0.0 for event in newest for name, key in keys.items()}
