"""What the report says of metrics of one's own, and of answers that were given again one by one."""

from __future__ import annotations

from typing import Any

from streamcvit.monitoring.report.charts import number
from streamcvit.monitoring.runs import Records


def own_metrics(runs: Records) -> dict[str, Any] | None:
    """Names of the metrics of one's own, and a row a run with their values and intervals; None where there are none."""
    names = sorted({str(name) for _, record in runs for name in record.summary.get("own_metrics") or ()})
    if not names:
        return None
    rows = []
    for label, record in runs:
        cells = []
        for name in names:
            entry = record.metric(name) if name in record.summary.get("metrics", {}) else None
            value, low, high = entry or (None, None, None)
            span = f"{number(low)} to {number(high)}" if low is not None and high is not None else ""
            cells.append((number(value) if value is not None else "–", span))
        rows.append({"label": label, "cells": cells})
    return {"names": names, "rows": rows}


def audited(runs: Records) -> list[dict[str, Any]]:
    """One row a run with an audit: how many answers it asked for again, and those that differ."""
    rows = []
    for label, record in runs:
        newest = {str(event.get("task")): event for event in record.events_of("audit")}
        if not newest:
            continue
        differ = [
            {"task": task, **{name: str(one.get(name, "")) for name in ("sample_id", "batched", "alone")}}
            for task, event in newest.items()
            for one in event.get("differ") or ()
        ]
        asked = sum(int(event.get("asked") or 0) for event in newest.values())
        rows.append({"label": label, "asked": asked, "differ": differ})
    return rows
