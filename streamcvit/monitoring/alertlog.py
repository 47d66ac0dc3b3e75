"""The alerts that fired in a run and those that ended: `alerts.jsonl` in its folder, a line each."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamcvit.monitoring.alerts import Alert

log = logging.getLogger(__name__)

ALERTS = "alerts.jsonl"
FIRING, RESOLVED = STATUSES = ("firing", "resolved")
TEXTS = ("time", "alertname", "severity", "summary")


def read_alerts(folder: Path) -> list[dict[str, Any]]:
    """What a run folder tells of its alerts, in order.

    Each has `time` (UTC, ISO 8601), `alertname`, `severity`, `status` (`firing` or `resolved`), `labels` and `summary`;
    a line that lacks one of them, as one that is in the writing, is left out.
    """
    try:
        lines = (folder / ALERTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        whole = isinstance(row, dict) and isinstance(row.get("labels"), dict) and row.get("status") in STATUSES
        if whole and all(isinstance(row.get(key), str) for key in TEXTS):
            found.append(row)
    return found


class AlertLog:
    """Appends to a run's alerts; a folder that takes no more is no reason to stop anything.

    Args:
        folder: of the whole run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ALERTS

    def firing(self) -> list[Alert]:
        """Those that began to fire and have not ended by the last word on them."""
        last: dict[tuple[Any, ...], tuple[str, Alert]] = {}
        for row in read_alerts(self.path.parent):
            labels = {str(key): str(value) for key, value in row["labels"].items()}
            alert = Alert(row["alertname"], row["severity"], labels, row["summary"])
            last[alert.key] = row["status"], alert
        return [alert for status, alert in last.values() if status == FIRING]

    def write(self, alert: Alert, status: str, at: float) -> None:
        """Add a line.

        Args:
            alert: which.
            status: one of `STATUSES`.
            at: Unix time.
        """
        row = {
            "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
            "alertname": alert.name,
            "severity": alert.severity,
            "status": status,
            "labels": dict(alert.labels),
            "summary": alert.summary,
        }
        try:
            # One write: the run's driver and its monitor may both have something to say.
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(file).st_size
                torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # by a kill
                os.write(file, (b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
            finally:
                os.close(file)
        except OSError as fault:
            log.warning("%s cannot be written (%s)", self.path, fault.strerror)
