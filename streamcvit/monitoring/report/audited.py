"""What the report says of answers that were given again one by one."""

from __future__ import annotations

from typing import Any

from streamcvit.monitoring.runs import Records


def audited(runs: Records) -> list[dict[str, Any]]:
    """One row a run with an audit: how many answers it asked for again, and those that differ."""
    rows = []
    for label, record in runs:
        audit = record.summary.get("audit")
        if isinstance(audit, dict) and isinstance(audit.get("differ"), list):
            names = ("task", "sample_id", "batched", "alone")
            differ = [{name: str(one.get(name, "")) for name in names} for one in audit["differ"]]
            rows.append({"label": label, "asked": audit.get("asked", 0), "differ": differ})
    return rows
