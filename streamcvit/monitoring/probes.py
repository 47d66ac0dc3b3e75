"""Reading `probes.jsonl`: scores of tasks between chunk ends, as a run that goes on writes them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

PROBES = "probes.jsonl"

_KINDS: dict[str, tuple[type, ...]] = {
    "version": (int,),
    "chunk": (int,),
    "cursor": (int,),
    "n": (int,),
    "task": (str,),
    "family": (str,),
    "score": (int, float),
    "low": (int, float),
    "high": (int, float),
}


def read_probes(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of a method's run folder in the order in which they were written.

    A learner that was replaced takes steps again: of rows with one version, task and family the newest is taken.

    Returns:
        The rows, and what cannot be read, empty where there is nothing of that. The last line may be in the writing.
    """
    try:
        lines = (folder / PROBES).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return [], f"{PROBES} cannot be read ({error.strerror})"
    found: dict[tuple[int, str, str], dict[str, Any]] = {}
    bad = []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None:
            if number < len(lines):
                bad.append(number)
            continue
        key = row["version"], row["task"], row["family"]
        found.pop(key, None)
        found[key] = row
    more = f", nor are {len(bad) - 1} more" if len(bad) > 1 else ""
    return list(found.values()), f"{PROBES} line {bad[0]} is no row of a probe{more}" if bad else ""


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or row.get("kind") != "live":
        return None
    for name, kinds in _KINDS.items():
        value = row.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return None
    return row
