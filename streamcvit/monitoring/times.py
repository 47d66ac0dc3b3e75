"""Times as run folders have them."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def unix(time: Any) -> float | None:
    """Unix time (seconds) of a line's `time`, a number or ISO 8601; None where it has none that can be read."""
    if isinstance(time, int | float):
        return float(time)
    try:
        return datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return None
