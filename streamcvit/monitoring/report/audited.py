"""What the report says of answers that were given again one by one."""

from __future__ import annotations

from typing import Any

from streamcvit.monitoring.runs import Records


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
