"""Scores of a boundary that is being scored: from the predictions of each task, before the rows of all are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamcvit.monitoring.record import RunRecord

AHEAD = 3
"""Chunks that are looked at; evaluators seldom are at more than one."""


class Fresh:
    """Mean points of tasks whose predictions are there and whose rows are not yet.

    A file is read once: it is written whole and never changed.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int], tuple[str, float] | None] = {}

    def scores(self, record: RunRecord) -> dict[tuple[int, str], float]:
        """(chunk, task) -> points of the strict scorer, of boundaries without rows."""
        rows = {(row["chunk"], row["task"]) for row in record.scores if row["kind"] == "boundary"}
        seen, found, looked = record.seen(), {}, 0
        for event in record.chunk_events():
            chunk = event["chunk"]
            if not 0 <= chunk < record.n_chunks or looked == AHEAD:
                continue
            missing = [t for t, here in zip(record.tasks, seen[chunk], strict=True) if here and (chunk, t) not in rows]
            looked += bool(missing)
            for task in missing:
                path = record.folder / "predictions" / f"{int(event.get('step') or 0):08d}" / f"{task}.parquet"
                if Path(task).name == task and (one := self._read(path)) and one[0] == event.get("digest"):
                    found[chunk, task] = one[1]
        return found

    def _read(self, path: Path) -> tuple[str, float] | None:
        """Digest of the weights, and points."""
        try:
            key = path, path.stat().st_mtime_ns
            if key not in self._known:
                file = pq.ParquetFile(pa.BufferReader(path.read_bytes()))
                meta: dict[str, Any] = json.loads(file.schema_arrow.metadata[b"streamcvit"])
                mean = pc.mean(file.read(["score"], use_threads=False)["score"]).as_py()
                self._known[key] = (str(meta["digest"]), float(mean)) if _finite(mean) else None
            return self._known[key]
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None  # in the writing, or damaged: what is read from the rows names that


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
