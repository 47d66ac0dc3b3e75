"""What the runs of a sweep scored, value by value, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamcvit.comparison.sheets import Cell, Sheet
from streamcvit.evaluation.paired import over_seeds
from streamcvit.monitoring.record import Interval, RunRecord
from streamcvit.monitoring.runs import TOLD, heading, told_task
from streamcvit.variants import Variant

SHOWN = ("ap", "map", "maf_cross", "bwt_last", "mif")
"""Metrics of the table."""


def sweep_sheet(found: Sequence[Variant]) -> Sheet:
    """A row for each method and value, method by method, each one's best AP bold; unfinished runs are left out."""
    by_value: dict[tuple[str, ...], list[Variant]] = {}
    for variant in found:
        by_value.setdefault(tuple(variant.values.values()), []).append(variant)
    blocks = []
    for method in dict.fromkeys(name for variant in found for name in variant.config.methods):
        rows: list[tuple[str, str, list[Interval | None]]] = []
        for seeds in by_value.values():
            records = [RunRecord.load(variant.config.folder(method)) for variant in seeds]
            records = [record for record in records if record.finished]
            if records:
                said = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in seeds[0].values.items())
                seeded = f"{len(records)} seeds" if len(records) > 1 else ""
                note = ", ".join(filter(None, [TOLD if told_task(records[0]) else "", seeded]))
                rows.append((f"{method}, {said}", note, [_over(records, name) for name in SHOWN]))
        top = max((entries[0][0] for _, _, entries in rows if entries[0] is not None), default=math.nan)
        best = [len(rows) > 1 and entries[0] is not None and entries[0][0] == top for _, _, entries in rows]
        blocks.append(
            [
                (name, note, [Cell(entry, best=first and not place) for place, entry in enumerate(entries)])
                for (name, note, entries), first in zip(rows, best, strict=True)
            ]
        )
    notes = [
        "points, with 95 % intervals: of several seeds Student's, of one the bootstrap's; bold: a method's best AP"
    ]
    return Sheet("sweep", "Each method at each value", "method", [heading(name) for name in SHOWN], blocks, notes)


def _over(records: Sequence[RunRecord], metric: str) -> Interval | None:
    """A metric's mean over seeds with Student's 95 % interval, of a single run its own; None where a run lacks it."""
    values = [value for record in records if (value := record.metric(metric)) is not None]
    if len(values) < len(records):
        return None
    if len(values) == 1:
        return values[0]
    mean, low, high = over_seeds([value[0] for value in values])
    return mean, low, high
