"""What each figure of the report shows, computed from run records; `charts` draws it, the template lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamcvit.monitoring.guarded import put_back_after
from streamcvit.monitoring.metrics import entropy_nats
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.bands import gathered
from streamcvit.monitoring.report.bars import dumbbells, stacked_bars
from streamcvit.monitoring.report.charts import Cell, Chart, Heat, Series, line_chart, number, shorten, tip
from streamcvit.monitoring.runs import Records
from streamcvit.monitoring.verdict import Seeds

WAITS = (
    ("learn", "learning", "busy_s"),
    ("ingest", "waiting for ingest", "wait_ingest_s"),
    ("evaluate", "waiting for evaluation", "wait_evaluation_s"),
    ("commit", "commit", "commit_s"),
)
WENT_BACK = "↶"
"""Behind the number of a chunk after which earlier weights were put back."""
MAX_PROBED = 5
"""With more runs than this, probes between chunk ends would hide the lines and are left out."""
MAX_DOTS = 60
"""Probes of a task and run in its chart: of more, so many, evenly spread."""

Pair = tuple[np.ndarray, np.ndarray]


def plan_heat(record: RunRecord) -> Heat:
    """Samples of each task in each chunk."""
    top = max(1, int(record.plan.max())) if record.plan.size else 1
    rows = []
    occur = np.flatnonzero(record.plan.sum(axis=0)) if record.plan.any() else range(len(record.tasks))
    for i, task in ((i, record.tasks[i]) for i in occur):
        cells = [
            Cell(f"{n}", 100 * n / top, tip(f"{task}, chunk {k + 1}", ("", "samples", str(n)))) if n else Cell()
            for k, n in enumerate(record.plan[:, i].tolist())
        ]
        rows.append((task, cells))
    totals = [[f"{n:,}"] for n in record.plan.sum(axis=0)[occur].tolist()]
    return Heat("task", [str(k + 1) for k in range(record.n_chunks)], rows, ["total"], totals)


def same_plan(runs: Records) -> bool:
    """Whether all runs learn the same stream."""
    first = stream_of(runs)
    digests = {record.run.get("index_digest") for _, record in runs} - {None}
    plans = all(np.array_equal(r.plan, first.plan) and r.tasks == first.tasks for _, r in runs)
    return plans and len(digests) <= 1


def stream_of(runs: Records) -> RunRecord:
    """The run whose plan stands for all: the first that learned the stream as it comes."""
    records = [record for _, record in runs]
    return next((r for r in records if len(r.plan) and not (r.untrained or r.upper_bound)), records[0])


def score_heat(record: RunRecord) -> Heat:
    """A[t, i] with chunks as columns; chunks that train the task are marked, scores of unseen tasks bracketed."""
    table, low, high = (record.matrix(column=name, unseen=True) for name in ("score", "low", "high"))
    lost, seen = record.forgetting(), record.seen()
    rows, tails = [], []
    occurs = record.plan.any(axis=0) | ~np.isnan(table).all(axis=0) if record.plan.size else np.ones(0, bool)
    for i, task in enumerate(record.tasks):
        if record.plan.size and not occurs[i]:
            continue
        cells = []
        for k in range(record.n_chunks):
            trained = bool(record.plan[k, i]) and not record.single
            facts = [("", "trained here", f"{record.plan[k, i]} samples")] if trained else []
            if np.isnan(table[k, i]):
                cells.append(Cell(tip=tip(f"{task}, chunk {k + 1}", *facts) if facts else "", marked=trained))
                continue
            facts.insert(0, ("", "score", number(table[k, i])))
            if not (np.isnan(low[k, i]) or np.isnan(high[k, i])):
                facts.insert(1, ("", "95 % interval", f"{number(low[k, i])} to {number(high[k, i])}"))
            text = number(table[k, i], 0)
            if not seen[k, i]:
                text = f"({text})"
                facts.append(("", "not learned", "yet" if seen[:, i].any() else "tested only"))
            cells.append(Cell(text, float(table[k, i]), tip(f"{task} after chunk {k + 1}", *facts), trained))
        rows.append((task, cells))
        known = table[seen[:, i] & ~np.isnan(table[:, i]), i]
        best = known.max() if len(known) else None
        tails.append([number(best, 0), number(-lost[task] if task in lost else None, 0, signed=True)])
    back = put_back_after(record)
    columns = [f"{k + 1}{' ' + WENT_BACK if k in back else ''}" for k in range(record.n_chunks)]
    return Heat("task", columns, rows, ["best", "change"], tails)


def _after_chunks(record: RunRecord, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, len(values) + 1, dtype=float), values


def forgetting_by_chunk(record: RunRecord) -> np.ndarray:
    """Mean over tasks seen before chunk t of (best score before t, less the score now), in points; NaN where none."""
    table, seen = record.matrix(), record.seen()
    curve = np.full(len(table), np.nan)
    for k in range(1, len(table)):
        members = seen[k - 1] & ~np.isnan(table[k]) & ~np.isnan(table[:k]).all(axis=0)
        if members.any():
            curve[k] = float((np.nanmax(table[:k, members], axis=0) - table[k, members]).mean())
    return curve


def stream_charts(runs: Records, seeds: Sequence[Seeds] = ()) -> list[Chart]:
    """AP and forgetting over chunks; seeds of one method as a band."""
    chunks = max(record.n_chunks for _, record in runs)
    learners = [(i, label, r) for i, (label, r) in enumerate(runs) if not (r.untrained or r.single)]
    back = [[chunk + 1.5 for chunk in put_back_after(record)] for _, record in runs]
    ap = [Series(i, label, *_after_chunks(r, r.ap_by_chunk()), breaks=back[i]) for i, (label, r) in enumerate(runs)]
    lost = [Series(i, label, *_after_chunks(r, forgetting_by_chunk(r)), breaks=back[i]) for i, label, r in learners]
    ap, lost = gathered(ap, seeds, 0, _top(ap)), gathered(lost, seeds, -_top(lost), _top(lost))
    charts = [line_chart(ap, title="AP over the seen tasks", unit="points", chunks=chunks)]
    if any(np.isfinite(line.y).any() for line in lost):
        charts.append(line_chart(lost, title="Mean forgetting so far", unit="points", chunks=chunks, y_min=None))
    return charts


def _top(lines: Sequence[Series]) -> float:
    """100 points, or the highest value where some pass them (CIDEr)."""
    return max([100.0, *(float(np.nanmax(line.y)) for line in lines if np.isfinite(line.y).any())])


def prequential_charts(runs: Records, seeds: Sequence[Seeds] = ()) -> list[Chart]:
    """Loss and accuracy on samples before learning from them, a few points a chunk and never of few samples."""
    chunks = max(record.n_chunks for _, record in runs)
    loss, accuracy = [], []
    finest = 4 if len(runs) <= 3 else 2 if len(runs) <= 5 else 1  # many jagged lines hide each other
    for i, (label, record) in enumerate(runs):
        if not len(record.ledger) or record.single:
            continue
        per_chunk = len(record.ledger) / len(np.unique(record.ledger.chunk))
        places, losses, hits = record.ledger.curve(max(1, min(finest, int(per_chunk // 100))))
        loss.append(Series(i, label, places + 0.5, losses))
        accuracy.append(Series(i, label, places + 0.5, 100 * hits))
    if not loss:
        return []
    loss, accuracy = gathered(loss, seeds, 0, np.inf), gathered(accuracy, seeds, 0, 100)
    return [
        line_chart(
            loss, title="Loss before learning", unit="nats per answer token", chunks=chunks, digits=3, markers=False
        ),
        line_chart(accuracy, title="Right before learning", unit="% of samples", chunks=chunks, markers=False),
    ]


def task_charts(runs: Records, seeds: Sequence[Seeds] = ()) -> list[Chart]:
    """Each task's score over chunks, all runs; live probes as dots, training as bars below the axis."""
    charts = []
    first = stream_of(runs)
    chunks = max(record.n_chunks for _, record in runs)
    tables = [record.matrix() for _, record in runs]
    top = max([100.0, *(float(np.nanmax(t)) for t in tables if np.isfinite(t).any())])
    shares = first.plan / np.maximum(first.plan.sum(axis=1, keepdims=True), 1)
    shown = [i for i in range(len(first.tasks)) if _shown(runs, first, i)]
    for i, task in ((i, first.tasks[i]) for i in shown):
        series: list[Series] = []
        for run, (label, record) in enumerate(runs):
            if task in record.tasks:
                column = tables[run][:, record.tasks.index(task)]
                dots = _live(record, task) if len(runs) <= MAX_PROBED else (None, None)
                series.append(Series(run, label, *_after_chunks(record, column), *dots))
        chart = line_chart(
            gathered(series, seeds, 0, top),
            title=task,
            unit="points",
            chunks=chunks,
            y_max=top,
            size=(340, 190),
            trained=shares[:, i].tolist(),
            markers=False,
        )
        charts.append(chart)
    return charts


def _shown(runs: Records, first: RunRecord, place: int) -> bool:
    """Whether there is anything to be seen of a task: it is trained, or scored."""
    task = first.tasks[place]
    return bool(first.plan[:, place].any()) or any(row["task"] == task for _, record in runs for row in record.scores)


def _live(record: RunRecord, task: str) -> tuple[Pair, Pair] | tuple[None, None]:
    """Scores between chunk ends, placed by the samples behind their weights, and their intervals."""
    rows = [row for row in record.probes if row["family"] == "strict" and row["task"] == task]
    if not rows:
        return None, None
    rows.sort(key=lambda row: row["version"])
    if len(rows) > MAX_DOTS:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, MAX_DOTS).round().astype(int)]
    cursor, score, low, high = np.array([[row[n] for n in ("cursor", "score", "low", "high")] for row in rows], float).T
    ends = np.concatenate([[0], np.cumsum(record.plan.sum(axis=1))])
    return (np.interp(cursor, ends, np.arange(len(ends))), score), (low, high)


def forgetting_charts(runs: Records) -> list[Chart]:
    """Best and present score of each task, a panel a run."""
    charts = []
    for i, (label, record) in enumerate(runs):
        table, low, high = (record.matrix(column=name) for name in ("score", "low", "high"))
        rows = []
        for j, task in enumerate(record.tasks):
            known = np.flatnonzero(~np.isnan(table[:, j]))
            if len(known):
                last = known[-1]
                ends = [None if np.isnan(end[last, j]) else float(end[last, j]) for end in (low, high)]
                rows.append((task, float(table[known, j].max()), float(table[last, j]), ends[0], ends[1]))
        if rows and not (record.untrained or record.single):
            charts.append(dumbbells(i, label, rows, x_max=max(100.0, *(row[1] for row in rows))))
    return charts


def following(runs: Records, seeds: Sequence[Seeds] = ()) -> tuple[Chart | None, Heat | None]:
    """Share of answers in the demanded form: over chunks, and by task at the end."""
    chunks = max(record.n_chunks for _, record in runs)
    tables = [100 * record.matrix(column="following") for _, record in runs]
    told = [i for i, table in enumerate(tables) if np.isfinite(table).any()]
    if not told:
        return None, None
    series = [Series(i, runs[i][0], *_after_chunks(runs[i][1], runs[i][1].mean_over_seen(tables[i]))) for i in told]
    rows = []
    for task in stream_of(runs).tasks:
        cells = []
        for i in told:
            label, record = runs[i]
            column = tables[i][:, record.tasks.index(task)] if task in record.tasks else np.zeros(0)
            known = column[np.isfinite(column)]
            if not len(known):
                cells.append(Cell())
                continue
            newest = float(known[-1])
            where = tip(f"{label}, {task}", ("", "follows", f"{number(newest)} %"))
            cells.append(Cell(number(newest, 0), newest, where))
        if any(cell.heat is not None for cell in cells):
            rows.append((task, cells))
    series = gathered(series, seeds, 0, 100)
    chart = line_chart(series, title="Over the stream", unit="% of answers", chunks=chunks, y_max=100)
    return chart, Heat("task", [shorten(runs[i][0], 12) for i in told], rows, column_title="newest, in %")


def experts(record: RunRecord) -> list[tuple[str, Heat]]:
    """Share of the routes of each expert in each chunk, a heat map a bank, with the entropy beneath."""
    events = [event for event in record.chunk_events() if event.get("expert_share")]
    banks = dict.fromkeys(bank for event in events for bank in event["expert_share"])
    heats = []
    for bank in banks:
        count = max(len(event["expert_share"].get(bank, [])) for event in events)
        rows, unused = [], 0
        for expert in range(count):
            if not any(event["expert_share"].get(bank, [])[expert : expert + 1] > [0.0005] for event in events):
                unused += 1
                continue
            cells = []
            for event in events:
                shares = event["expert_share"].get(bank, [])
                if expert >= len(shares):
                    cells.append(Cell())
                    continue
                percent = 100 * shares[expert]
                where = tip(f"expert {expert}, chunk {event['chunk'] + 1}", ("", "share", f"{number(percent)} %"))
                cells.append(Cell(number(percent, 0) if percent >= 0.5 else "", percent, where))
            rows.append((f"expert {expert}", cells))
        if unused:
            rows.append((f"{unused} never used", [Cell() for _ in events]))
        effective = []
        for event in events:
            used = float(np.exp(entropy_nats(event["expert_share"].get(bank, []))))
            where = tip(f"chunk {event['chunk'] + 1}", ("", "experts in effect", number(used, 2)))
            effective.append(Cell(number(used), None, where))
        rows.append(("in effect", effective))
        heats.append((str(bank), Heat("expert", [str(event["chunk"] + 1) for event in events], rows)))
    return heats


def timing(runs: Records) -> tuple[list[Chart], list[dict[str, Any]]]:
    """Where the learner's time went: a bar a chunk, and the totals of each run."""
    charts, totals = [], []
    for i, (label, record) in enumerate(runs):
        events = [event for event in record.chunk_events() if event.get("busy_s") is not None]
        if not events:
            continue
        parts = np.array([[float(event.get(key) or 0.0) for event in events] for _, _, key in WAITS])
        whole = float(parts.sum())
        if whole <= 0:
            continue
        charts.append(
            stacked_bars(label, "seconds", [(css, name, parts[j]) for j, (css, name, _) in enumerate(WAITS)], run=i)
        )
        samples = sum(int(event.get("samples") or 0) for event in events)
        shares = [(css, name, f"{100 * parts[j].sum() / whole:.1f} %") for j, (css, name, _) in enumerate(WAITS)]
        totals.append({"label": label, "run": i, "seconds": whole, "rate": samples / whole, "shares": shares})
    return charts, totals
