"""What the report says in words and tables, computed from run records; the template only lays it out."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from streamcvit.monitoring.latex import escaped, points, tabular
from streamcvit.monitoring.record import Interval, RunRecord
from streamcvit.monitoring.report.charts import number
from streamcvit.monitoring.report.figures import stream_of
from streamcvit.monitoring.runs import LOWER_IS_BETTER, METRICS, TOLD, Records, marked, shown_metrics, told_task
from streamcvit.monitoring.verdict import UNDECIDED, Gap, Verdict, task_key

HEADINGS = {
    "ap": ("AP", "mean score at the end"),
    "map": ("MAP", "mean over all chunks"),
    "bwt_first": ("BWT first", "now − when first learned"),
    "bwt_last": ("BWT last", "now − when last learned"),
    "maf_cross": ("MAF cross", "mean forgetting"),
    "maf_best": ("MAF best", "mean forgetting, raised by noise"),
    "mif": ("MIF", "instruction following"),
}
MAX_ANSWERS = 3
MAX_EVENTS = 50


@dataclass(frozen=True)
class Value:
    """A cell of the headline table; `left`, `middle`, `right` place its interval on the column's scale, in percent."""

    text: str
    interval: str = ""
    best: bool = False
    second: bool = False
    left: float = 0.0
    middle: float = 0.0
    right: float = 0.0


def known(verdict: Verdict, name: str, place: int, record: RunRecord, family: str = "strict") -> Interval | None:
    """A metric of a run: as the comparison, which is one of strict scores, found it, else as its summary has it."""
    return (family == "strict" and verdict.values.get((name, place))) or record.metric(name, family)


def headline(runs: Records, verdict: Verdict = UNDECIDED, family: str = "strict") -> list[dict[str, Any]]:
    """One row a run: its metrics with intervals, drawn on a scale shared within the column."""
    names = shown_metrics([record for _, record in runs], family)
    scale = {}
    for name in names:
        entries = [known(verdict, name, i, record, family) for i, (_, record) in enumerate(runs)]
        ends = [end for entry in entries if entry for end in entry if end is not None]
        scale[name] = (min([*ends, 0.0]), max([*ends, 1e-9]))
    rows = []
    for i, (label, record) in enumerate(runs):
        cells = []
        for name in names:
            entry = known(verdict, name, i, record, family)
            if entry is None:
                cells.append(Value("–"))
                continue
            value, low, high = entry
            floor, roof = scale[name]
            ends = [value if end is None else end for end in (low, value, high)]
            place = [3 + 94 * (end - floor) / (roof - floor) for end in ends]
            span = f"{number(low)} to {number(high)}" if low is not None and high is not None else ""
            ranks = [family == "strict" and told(name, i) for told in (verdict.is_best, verdict.is_second)]
            cells.append(Value(number(value), span, *ranks, *place))
        note = ""
        if record.upper_bound:
            note = "upper bound: sees all tasks at once"
        elif record.untrained:
            note = "learns nothing"
        elif not record.finished:
            note = f"in progress: chunk {record.chunks_done} of {record.n_chunks}"
        note = ", ".join(filter(None, [TOLD if told_task(record) else "", note]))
        rows.append({"run": i, "label": label, "note": note, "cells": cells, "bound": record.upper_bound})
    return rows


def findings(runs: Records, verdict: Verdict = UNDECIDED) -> list[str]:
    """What the numbers say, in sentences; nothing that a paired difference does not carry is called better."""
    rivals = [(i, label, r) for i, (label, r) in enumerate(runs) if not (r.upper_bound or r.untrained)]
    ranked = sorted(
        ((*entry, i, label, r) for i, label, r in rivals if (entry := r.metric("ap"))), key=lambda row: -row[0]
    )
    told = []
    if ranked:
        value, low, high, place, label, record = ranked[0]
        when = "ends" if record.finished else f"stands after chunk {record.chunks_done}"
        text = f"{label} {when} at AP {number(value)}"
        if low is not None and high is not None:
            text += f" (95 % interval {number(low)} to {number(high)})"
        if len(ranked) > 1 and (gap := verdict.gaps.get(("ap", place, ranked[1][3]))) is not None:
            text += ", " + said_gap(gap, f"{ranked[1][4]}")
        told.append(text + ".")
    for *_, label, record in ranked[:4]:
        lost = record.forgetting()
        if lost:
            task = max(lost, key=lambda name: lost[name])
            many = sum(value >= 10 for value in lost.values())
            if lost[task] >= 1:
                told.append(
                    f"{label} forgets {task} most: {number(lost[task])} points below its best; "
                    f"tasks 10 points or more below theirs: {many} of {len(lost)}."
                )
    return told


def said_gap(gap: Gap, other: str) -> str:
    """A difference in words."""
    span = f"paired difference {number(gap.value, signed=True)}"
    if gap.low is not None and gap.high is not None:
        span += f", 95 % interval {number(gap.low, signed=True)} to {number(gap.high, signed=True)}"
    span += f", over {gap.pairs} seeds" if gap.pairs > 1 else ""
    if gap.decided:
        return f"{'above' if gap.value > 0 else 'below'} {other} ({span})"
    return f"not to be told from {other} ({span})"


def final_scores(runs: Records, verdict: Verdict = UNDECIDED) -> list[dict[str, Any]]:
    """One row a task: each run's last score with its interval, and what answers without a look would get."""
    rows, told = [], False
    for task in stream_of(runs).tasks:
        cells: list[Value] = []
        for place in range(len(runs)):
            entry = verdict.values.get((task_key(task), place))
            if entry is None and any(place in group.runs for group in verdict.seeds):
                entry = runs[place][1].last(task)  # the comparison holds the mean of its seeds alone
            if entry is None:
                cells.append(Value("–"))
                continue
            value, low, high = entry
            told = True
            span = f"{number(low)} to {number(high)}" if low is not None and high is not None else ""
            ranks = verdict.is_best(task_key(task), place), verdict.is_second(task_key(task), place)
            cells.append(Value(number(value), span, *ranks))
        bases = [number(value) for value in verdict.baselines.get(task, (None, None))]
        if any(cell.text != "–" for cell in cells):  # a task that never occurs has nothing to show
            rows.append({"task": task, "cells": cells, "bases": bases})
    return rows if told else []


def scorer_table(runs: Records) -> list[dict[str, Any]]:
    """Newest strict and published score of each task in each run, with the answers they judge differently."""
    rows = []
    for task in stream_of(runs).tasks:
        cells: list[dict[str, Any] | None] = []
        for _, record in runs:
            newest: dict[str, dict] = {}
            for row in record.scores:
                if row["kind"] == "boundary" and row["task"] == task:
                    held = newest.get(row["family"])
                    if held is None or row["chunk"] >= held["chunk"]:
                        newest[row["family"]] = row
            strict, published = newest.get("strict"), newest.get("strcvit")
            if strict is None or published is None or published["score"] is None:
                cells.append(None)
                continue
            differ = strict.get("disagreements") or published.get("disagreements") or 0
            cells.append(
                {
                    "strict": number(strict["score"]),
                    "published": number(published["score"]),
                    "differ": differ,
                    "n": strict.get("n"),
                    "share": 100 * differ / strict["n"] if strict.get("n") else 0.0,
                }
            )
        if any(row["task"] == task for _, record in runs for row in record.scores):
            rows.append({"task": task, "cells": cells})
    return rows if any(cell for row in rows for cell in row["cells"]) else []


def following_tables(runs: Records) -> list[dict[str, Any]]:
    """MIF of each instruction form, and how far the wordings of a task lie apart, a row a run and form."""
    rows = []
    for label, record in runs:
        told = record.summary.get("following", {})
        for form, entry in told.get("forms", {}).items():
            if entry.get("value") is None:
                continue
            spread = told.get("spread", {}).get(form)
            span = f"{number(entry['low'])} to {number(entry['high'])}" if entry.get("low") is not None else ""
            wide = {f"{key}_apart": number(spread[key]["range"]) for key in ("mif", "score")} if spread else {}
            rows.append({"label": label, "form": form, "mif": number(entry["value"]), "span": span, **wide})
    return rows


def forgotten_answers(record: RunRecord) -> list[dict[str, Any]]:
    """Answers that were right when the task was at its best and are wrong now; where there are none, the worst now."""
    version = {
        (row["task"], row["chunk"]): row["version"]
        for row in record.scores
        if row["kind"] == "boundary" and row["family"] == "strict"
    }
    table, found = record.matrix(), []
    for i, task in enumerate(record.tasks):
        known = np.flatnonzero(~np.isnan(table[:, i]))
        if not len(known) or (task, int(known[-1])) not in version:
            continue
        last, best = int(known[-1]), int(known[table[known, i].argmax()])
        now = record.predictions(version[task, last], task)
        then = {}
        if best != last and (task, best) in version:
            then = {row["sample_id"]: row for row in record.predictions(version[task, best], task)}
        worst = [row for row in now if row.get("score") is not None]
        drop = {row["sample_id"]: (then.get(row["sample_id"]) or row)["score"] - row["score"] for row in worst}
        worst.sort(key=lambda row: (-drop[row["sample_id"]], row["score"], str(row["sample_id"])))
        for row in worst[:MAX_ANSWERS]:
            before = then.get(row["sample_id"])
            if row["score"] >= 50 and drop[row["sample_id"]] <= 0:
                continue
            found.append(
                {
                    "task": task,
                    "sample": str(row["sample_id"]),
                    "reference": str(row["reference"]),
                    "before": str(before["prediction"]) if before and drop[row["sample_id"]] > 0 else None,
                    "chunk": best + 1,
                    "now": str(row["prediction"]),
                    "score": number(row["score"], 0),
                }
            )
    return found


def happenings(record: RunRecord) -> dict[str, Any]:
    """Restarts, quarantined samples by reason, and other events worth a line."""
    usual = {"audit", "chunk", "started", "finished", "quarantine", "stream", "guard"}  # told elsewhere
    lines = [event for event in record.events if event.get("event") not in usual]
    bad = record.events_of("quarantine")
    return {
        "lines": [
            {
                "time": str(event.get("time", "")),
                "event": str(event.get("event", "")),
                "detail": ", ".join(f"{k} {_said(value)}" for k, value in event.items() if k not in ("time", "event")),
            }
            for event in lines[:MAX_EVENTS]
        ],
        "reasons": Counter(str(event.get("reason", "unknown")) for event in bad).most_common(),
        "quarantined": bad[:MAX_EVENTS],
        "skipped": sum(record.skipped.values()),
        "more": max(0, len(lines) - MAX_EVENTS) + max(0, len(bad) - MAX_EVENTS),
        "problems": record.problems,
    }


def _said(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    rest = f"; and {len(value) - MAX_EVENTS} more" if len(value) > MAX_EVENTS else ""
    return "; ".join(f"{key}: {why}" for key, why in islice(value.items(), MAX_EVENTS)) + rest


def differing_settings(runs: Records) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs."""
    flat = []
    for _, record in runs:
        # One file may configure all methods of a comparison: of those, a run's own alone.
        shared = {key: value for key, value in record.config.items() if not (key == "methods" and record.settings)}
        flat.append(_flatten(shared) | _flatten(record.settings, "method"))
    keys = sorted({key for one in flat for key in one})
    rows = [(key, [json.dumps(one[key]) if key in one else "–" for one in flat]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return {
        key: value if isinstance(value, (int, float, bool, type(None))) else str(value) for key, value in flat.items()
    }


def latex_table(runs: Records, verdict: Verdict = UNDECIDED) -> str:
    """The headline table for a paper (booktabs): best bold, second underlined, the interval's two ends apart."""
    names = shown_metrics([record for _, record in runs])
    arrows = [r"$\downarrow$" if name.startswith(LOWER_IS_BETTER) else r"$\uparrow$" for name in names]
    titles = [f"{HEADINGS[name][0]} {arrow}" for name, arrow in zip(names, arrows, strict=True)]
    rows = []
    for i, (label, record) in enumerate(runs):
        entries = [known(verdict, name, i, record) for name in names]
        ranks = [(verdict.is_best(name, i), verdict.is_second(name, i)) for name in names]
        rows.append(
            [
                escaped(marked(label, record)),
                *(points(entry, *rank) for entry, rank in zip(entries, ranks, strict=True)),
            ]
        )
    return tabular(["Method", *titles], [rows])


def csv_table(runs: Records, verdict: Verdict = UNDECIDED) -> str:
    """All metrics of all runs, one a line: run, metric, value, low, high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "metric", "value", "low", "high"])
    for place, (label, record) in enumerate(runs):
        for family, start in (("strict", ""), ("strcvit", "published_")):
            whole = record.summary if family == "strict" else record.summary.get("published", {})
            # What is scored once has a MAP on the stream of the others, which its own summary does not hold.
            more = METRICS if family == "strict" else ()
            for name in dict.fromkeys([*more, *whole.get("metrics", {})]):
                if entry := known(verdict, name, place, record, family):
                    ends = ("" if end is None else f"{end:.4f}" for end in entry)
                    writer.writerow([unformula(marked(label, record)), start + name, *ends])
    return out.getvalue()


def unformula(text: str) -> str:
    """Text that a spreadsheet does not run as a formula."""
    return "'" + text if text[:1] in "=+-@\t\r" else text
