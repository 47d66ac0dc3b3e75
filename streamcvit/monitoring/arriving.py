"""What a stream that goes on says of itself for those who watch: what arrived, what waits, what was set aside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ARRIVALS = "arrivals.json"
"""In a run's stream folder: how things stood a moment ago."""


def read_arrivals(folder: Path) -> dict[str, Any]:
    """The newest word on the arrivals of the run that a method's folder belongs to; empty where its stream is whole."""
    try:
        word = json.loads((folder.parent / "stream" / ARRIVALS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return word if isinstance(word, dict) else {}


def gauges(word: Mapping[str, Any]) -> list[tuple[str, float, tuple[str, ...]]]:
    """Metric, value and labels for what a word says."""
    if not word:
        return []
    found: list[tuple[str, float, tuple[str, ...]]] = [
        ("arrivals_taken_total", float(word.get("taken", 0)), ()),
        ("arrivals_waiting", float(word.get("waiting", 0)), ()),
        ("arrivals_held_back", float(bool(word.get("full"))), ()),
        ("oldest_arrival_timestamp_seconds", float(word.get("oldest") or 0), ()),
    ]
    aside = word.get("aside")
    for reason, count in aside.items() if isinstance(aside, dict) else ():
        found.append(("arrivals_set_aside_total", float(count), (str(reason),)))
    return found
