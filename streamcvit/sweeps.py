"""What the runs of a sweep scored, value by value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from streamcvit.evaluation.paired import over_seeds
from streamcvit.monitoring.record import Interval, RunRecord
from streamcvit.variants import Variant

SHOWN = ("ap", "map", "maf_cross", "bwt_last", "mif")
"""Metrics that a table of a sweep holds."""


@dataclass(frozen=True)
class Row:
    """One method at one value of what is swept.

    Attributes:
        method: its name.
        values: swept key -> value.
        seeds: how many runs it is of.
        metrics: name -> mean over the seeds with Student's 95 % interval; of a single run its own interval.
        best: whether its AP is the highest of its method's.
    """

    method: str
    values: dict[str, str]
    seeds: int
    metrics: dict[str, Interval]
    best: bool = False


def rows_of(found: Sequence[Variant]) -> list[Row]:
    """A row for each method and value, method by method; runs that are not finished are left out."""
    by_point: dict[tuple[str, ...], list[Variant]] = {}
    for variant in found:
        by_point.setdefault(tuple(variant.values.values()), []).append(variant)
    rows = []
    for method in dict.fromkeys(name for variant in found for name in variant.config.methods):
        own = []
        for same in by_point.values():
            records = [RunRecord.load(variant.config.folder(method)) for variant in same]
            records = [record for record in records if record.finished]
            if records:
                own.append(Row(method, same[0].values, len(records), _metrics(records)))
        top = max((row.metrics["ap"][0] for row in own if "ap" in row.metrics), default=math.inf)
        rows += [replace(row, best=len(own) > 1 and row.metrics.get("ap", (None,))[0] == top) for row in own]
    return rows


def _metrics(records: Sequence[RunRecord]) -> dict[str, Interval]:
    told: dict[str, Interval] = {}
    for name in SHOWN:
        values = [value for record in records if (value := record.metric(name)) is not None]
        if len(values) == len(records) == 1:
            told[name] = values[0]
        elif len(values) == len(records):
            mean, low, high = over_seeds([value[0] for value in values])
            told[name] = (mean, low, high)
    return told
