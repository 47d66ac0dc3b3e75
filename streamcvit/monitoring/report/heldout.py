"""Prequential beside held-out: what a chunk's samples were worth before they were learned, and their tasks after."""

from __future__ import annotations

import numpy as np

from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.charts import Chart, Series, line_chart
from streamcvit.monitoring.runs import Records


def held_out(record: RunRecord) -> np.ndarray:
    """Held-out score after each chunk of the tasks that it trained, in the shares that it trained them, [T] in points.

    NaN where one of them has no score.
    """
    table = record.matrix()
    total = record.plan.sum(axis=1, keepdims=True)
    shares = record.plan / np.maximum(total, 1)
    known = (~np.isnan(table) | (record.plan == 0)).all(axis=1) & (total[:, 0] > 0)
    return np.where(known, (np.nan_to_num(table) * shares).sum(axis=1), np.nan)


def right_before(record: RunRecord) -> np.ndarray:
    """Share of each chunk's samples that were right before they were learned, [T] in %; NaN where none is known."""
    curve = np.full(record.n_chunks, np.nan)
    chunk, correct = record.ledger.chunk, record.ledger.correct
    inside = (chunk >= 0) & (chunk < record.n_chunks)
    counts = np.bincount(chunk[inside], minlength=record.n_chunks)[: record.n_chunks]
    hits = np.bincount(chunk[inside], weights=correct[inside], minlength=record.n_chunks)[: record.n_chunks]
    curve[counts > 0] = 100 * hits[counts > 0] / counts[counts > 0]
    return curve


def charts(runs: Records) -> list[Chart]:
    """A panel a run that learned in chunks: prequential accuracy, and the held-out score beside it (dashed)."""
    found = []
    for place, (label, record) in enumerate(runs):
        if record.single or record.untrained or record.n_chunks < 2 or not len(record.ledger):
            continue
        before, after = right_before(record), held_out(record)
        if not (np.isfinite(before).any() and np.isfinite(after).any()):
            continue
        x = np.arange(1, record.n_chunks + 1, dtype=float)
        lines = [Series(place, "before learning", x, before), Series(place, "held-out, after", x, after, dashed=True)]
        top = max(100.0, float(np.nanmax(after)))
        found.append(
            line_chart(
                lines, title=label, unit="% right, points", chunks=record.n_chunks, y_max=top, size=(340, 190),
                markers=False,
            )
        )  # fmt: skip
    return found
