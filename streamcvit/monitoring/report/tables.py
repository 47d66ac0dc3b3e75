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

from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.charts import number
from streamcvit.monitoring.report.figures import stream_of
from streamcvit.monitoring.runs import LOWER_IS_BETTER, Records, best_of, shown_metrics

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
    left: float = 0.0
    middle: float = 0.0
    right: float = 0.0


def headline(runs: Records, family: str = "strict") -> list[dict[str, Any]]:
    """One row a run: its metrics with intervals, drawn on a scale shared within the column."""
    records = [record for _, record in runs]
    names = shown_metrics(records)
    scale = {}
    for name in names:
        ends = [end for r in records if (entry := r.metric(name, family)) for end in entry if end is not None]
        scale[name] = (min([*ends, 0.0]), max([*ends, 1e-9]))
    best = {name: best_of(name, records, family) for name in names}
    rows = []
    for i, (label, record) in enumerate(runs):
        cells = []
        for name in names:
            entry = record.metric(name, family)
            if entry is None:
                cells.append(Value("–"))
                continue
            value, low, high = entry
            floor, roof = scale[name]
            ends = [value if end is None else end for end in (low, value, high)]
            place = [3 + 94 * (end - floor) / (roof - floor) for end in ends]
            span = f"{number(low)} to {number(high)}" if low is not None and high is not None else ""
            cells.append(Value(number(value), span, i in best[name], *place))
        note = ""
        if record.upper_bound:
            note = "upper bound: sees all tasks at once"
        elif record.untrained:
            note = "learns nothing"
        elif not record.finished:
            note = f"in progress: chunk {record.chunks_done} of {record.n_chunks}"
        rows.append({"run": i, "label": label, "note": note, "cells": cells, "bound": record.upper_bound})
    return rows


def findings(runs: Records) -> list[str]:
    """What the numbers say, in sentences; nothing that an interval does not carry is called better."""
    compared = [(label, r) for label, r in runs if not (r.upper_bound or r.untrained) and r.metric("ap")]
    told = []
    ranked = sorted(((*r.metric("ap"), label, r) for label, r in compared), key=lambda row: -row[0])  # type: ignore[misc]
    if ranked:
        value, low, high, label, record = ranked[0]
        when = "ends" if record.finished else f"stands after chunk {record.chunks_done}"
        text = f"{label} {when} at AP {number(value)}"
        if low is not None and high is not None:
            text += f" (95 % interval {number(low)} to {number(high)})"
        # Runs at different places of the stream have seen different tasks: their APs do not compare.
        if len(ranked) > 1 and len({row[-1].chunks_done for row in ranked}) == 1:
            second, _, above, other, _ = ranked[1]
            apart = low is not None and above is not None and low > above
            text += f", {number(value - second)} points above {other}"
            text += "" if apart else "; their intervals overlap, so take the order with care"
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
    usual = {"chunk", "started", "finished", "quarantine", "stream"}
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


def latex_table(runs: Records) -> str:
    """The headline table for a paper (booktabs), best in bold, half the interval's width behind each value."""
    escapes = {c: rf"\{c}" for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    names = shown_metrics([record for _, record in runs])
    arrows = [r"$\downarrow$" if name in LOWER_IS_BETTER else r"$\uparrow$" for name in names]
    lines = [r"\begin{tabular}{l" + "r" * len(names) + "}", r"\toprule"]
    titles = [f"{HEADINGS[name][0]} {arrow}" for name, arrow in zip(names, arrows, strict=True)]
    lines += [" & ".join(["Method", *titles]) + r" \\", r"\midrule"]
    best = {name: best_of(name, [record for _, record in runs]) for name in names}
    for i, (label, record) in enumerate(runs):
        cells = ["".join(escapes.get(c, c) for c in label)]
        for name in names:
            entry = record.metric(name)
            if entry is None:
                cells.append("--")
                continue
            value, low, high = entry
            text = f"{value:.1f}".replace("-", "$-$")
            text = rf"\textbf{{{text}}}" if i in best[name] else text
            half = rf" {{\tiny $\pm${(high - low) / 2:.1f}}}" if low is not None and high is not None else ""
            cells.append(text + half)
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def csv_table(runs: Records) -> str:
    """All metrics of all runs, one a line: run, metric, value, low, high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "metric", "value", "low", "high"])
    for label, record in runs:
        # A spreadsheet would run a cell that starts like a formula.
        safe = "'" + label if label[:1] in "=+-@\t\r" else label
        for family, start in (("strict", ""), ("strcvit", "published_")):
            whole = record.summary if family == "strict" else record.summary.get("published", {})
            for name in whole.get("metrics", {}):
                if entry := record.metric(name, family):
                    numbers = ("" if end is None else f"{end:.4f}" for end in entry)
                    writer.writerow([safe, start + name, *numbers])
    return out.getvalue()
