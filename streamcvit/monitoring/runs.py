"""Several runs side by side: finding them, naming them apart, putting them on one stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.errors import UserError
from streamcvit.monitoring.record import RunRecord

METRICS = ("ap", "map", "bwt_first", "bwt_last", "maf_cross", "mif")
"""Headline metrics in the order they are shown in."""

LOWER_IS_BETTER = "maf_"
"""What begins so is better the lower it is."""

TOLD = "told the task"
"""What stands beside the name of a method that was."""


def heading(name: str) -> str:
    """What a metric is called in a table, with the way in which it is better."""
    kind, _, variant = name.partition("_")
    return " ".join(filter(None, [kind.upper(), variant, "↓" if name.startswith(LOWER_IS_BETTER) else "↑"]))


Records = Sequence[tuple[str, RunRecord]]
"""Runs with their labels, in the order they are shown in."""


def shown_metrics(records: Sequence[RunRecord], family: str = "strict") -> tuple[str, ...]:
    """`METRICS`; with `maf_best` for `maf_cross` where runs of an older release have nothing else.

    Of the published family, whose rules fit some tasks and forms only, those that a run has.
    """
    if family != "strict":
        return tuple(name for name in METRICS if any(record.metric(name, family) for record in records))
    cross = any(record.metric("maf_cross") for record in records) or not any(r.metric("maf_best") for r in records)
    return METRICS if cross else tuple("maf_best" if name == "maf_cross" else name for name in METRICS)


def find_runs(folder: Path | str, deep: bool = False) -> list[Path]:
    """The run folders at a path: itself, or those directly below it, by name.

    Args:
        folder: of one method's run, or of a run.
        deep: where there are none, those of the runs below it (the folder `runs`) too.

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
    for pattern in ("*/run.json", "*/*/run.json")[: 1 + deep]:
        if found := sorted(path.parent for path in folder.glob(pattern)):
            return found
    raise UserError("no run in this folder", where=str(folder), fix="Give runs/NAME, once its run has begun to learn")


def compared(records: Sequence[RunRecord]) -> list[tuple[str, RunRecord]]:
    """Records made ready to stand side by side, with distinct labels: untrained first, upper bounds last.

    What is scored only once (before any learning, or after learning all tasks at once) gets the stream of those
    that learned the same samples: its one score of a task stands at every chunk that has seen the task.
    """
    streams = [r for r in records if r.n_chunks > 1 and not (r.untrained or r.upper_bound)]
    ready = []
    for record in records:
        own = (r for r in streams if r.run.get("index_digest") == record.run.get("index_digest"))
        stream = next(own, None)
        ready.append(record if stream is None else _on_stream(record, stream))
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


def told_task(record: RunRecord) -> bool:
    """Whether a method was told the task of samples, to train or to answer, which others had to do without."""
    return record.run.get("told_task") is True


def marked(label: str, record: RunRecord) -> str:
    """A record's label in a table that has no place for a note beside it."""
    return f"{label} ({TOLD})" if told_task(record) else label


def labels_of(records: Sequence[RunRecord]) -> list[str]:
    """A distinct label for each record: its method, with the seed, folder or run it belongs to where methods repeat."""
    labels = [record.method for record in records]
    for method, count in Counter(labels).items():
        if count > 1:
            same = [place for place, record in enumerate(records) if record.method == method]
            for place, apart in zip(same, _apart([records[k] for k in same]), strict=True):
                labels[place] = f"{method} ({apart})"
    return labels


def _apart(records: Sequence[RunRecord]) -> list[str]:
    """What tells records of one method apart."""
    ways: tuple[Callable[[RunRecord], str], ...] = (
        lambda record: f"seed {record.run.get('seed', '?')}",
        lambda record: record.folder.name,
        lambda record: record.folder.parent.name,
        lambda record: f"{record.folder.parent.name}, seed {record.run.get('seed', '?')}",
    )
    for way in ways:
        if len(set(names := [way(record) for record in records])) == len(records):
            return names
    return [str(record.folder) for record in records]
