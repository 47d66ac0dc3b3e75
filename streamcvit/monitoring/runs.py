"""Several runs side by side: finding them, naming them apart, putting them on one stream, telling which is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.errors import UserError
from streamcvit.monitoring.record import RunRecord

METRICS = ("ap", "map", "bwt_first", "bwt_last", "maf_cross", "mif")
"""Headline metrics in the order they are shown in."""

LOWER_IS_BETTER = ("maf_cross", "maf_best", "maf_first", "maf_previous")

Records = Sequence[tuple[str, RunRecord]]
"""Runs with their labels, in the order they are shown in."""


def shown_metrics(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """`METRICS`; with `maf_best` for `maf_cross` where runs of an older release have nothing else."""
    cross = any(record.metric("maf_cross") for record in records) or not any(r.metric("maf_best") for r in records)
    return METRICS if cross else tuple("maf_best" if name == "maf_cross" else name for name in METRICS)


def find_runs(folder: Path | str) -> list[Path]:
    """The run folders at a path: itself, or those directly below it, by name.

    Raises:
        UserError: there is none.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError("is a file, not a run's folder", where=str(folder), fix="Give the folder, e.g. runs/NAME")
    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder), fix="Check the path")
    if (folder / "run.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/run.json"))
    if not found:
        raise UserError(
            "no run in this folder", where=str(folder), fix="Give runs/NAME, once its run has begun to learn"
        )
    return found


def compared(records: Sequence[RunRecord]) -> list[tuple[str, RunRecord]]:
    """Records made ready to stand side by side, with distinct labels: untrained first, upper bounds last.

    What is scored only once (before any learning, or after learning all tasks at once) gets the stream of the others:
    its one score of a task stands at every chunk that has seen the task.
    """
    stream = next((r for r in records if r.n_chunks > 1 and not (r.untrained or r.upper_bound)), None)
    ready = [_on_stream(record, stream) if stream is not None else record for record in records]
    ready.sort(key=lambda record: record.upper_bound - record.untrained)
    return list(zip(labels_of(ready), ready, strict=True))


def _on_stream(record: RunRecord, stream: RunRecord) -> RunRecord:
    if not (record.untrained or record.upper_bound) or record.n_chunks > 1 or set(record.tasks) != set(stream.tasks):
        return record
    once = {}
    for row in record.scores:
        if row["kind"] == ("zero" if record.untrained else "boundary"):
            once[row["task"], row["family"]] = row
    seen = stream.seen()
    scores = [
        {**row, "kind": "boundary", "chunk": chunk}
        for (task, _), row in once.items()
        if task in stream.tasks
        for chunk in np.flatnonzero(seen[:, stream.tasks.index(task)]).tolist()
    ]

    def kept(whole: dict[str, Any]) -> dict[str, Any]:
        return {"metrics": {name: value for name, value in whole.get("metrics", {}).items() if name in ("ap", "mif")}}

    summary = kept(record.summary)
    if published := record.summary.get("published"):
        summary["published"] = kept(published)
    return replace(
        record,
        tasks=stream.tasks,
        plan=stream.plan,
        in_average=stream.in_average,
        scores=scores,
        summary=summary,
        single=True,
    )


def labels_of(records: Sequence[RunRecord]) -> list[str]:
    """A distinct label for each record: its method, with seed or folder name where methods repeat."""

    def repeated(labels: list[str]) -> bool:
        return len(set(labels)) < len(labels)

    labels = [record.method for record in records]
    if repeated(labels):
        labels = [f"{record.method} (seed {record.run.get('seed', '?')})" for record in records]
    if repeated(labels):
        labels = [f"{record.method} ({record.folder.name})" for record in records]
    if repeated(labels):
        labels = [f"{record.method} ({record.folder})" for record in records]
    return labels


def best_of(metric: str, records: Sequence[RunRecord], family: str = "strict") -> set[int]:
    """Which records hold the best value of a metric: upper bounds never do, untrained ones not where forgetting counts.

    A comparison needs two: with fewer candidates nothing is best.
    """
    kind = metric.split("_")[0]
    values = {}
    for i, record in enumerate(records):
        if record.upper_bound or (record.untrained and kind in ("bwt", "maf")):
            continue
        entry = record.metric(metric, family)
        if entry is not None and record.finished:
            values[i] = round(-entry[0] if metric in LOWER_IS_BETTER else entry[0], 2)
    if len(values) < 2:
        return set()
    return {i for i, value in values.items() if value == max(values.values())}
