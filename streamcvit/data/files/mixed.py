"""Files of rows of several tasks, one a chunk, as a published stream has them: rows by task, and their order."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.data.files.report import FileReport
from streamcvit.data.files.spool import Spool
from streamcvit.data.files.taskrows import Rows
from streamcvit.data.files.tasks import Amend, Reading, make_unique
from streamcvit.data.formats import BAD_SHARE, FORMATS, Ids, Record
from streamcvit.data.instructions import UNNAMED, Naming
from streamcvit.data.plan import Plan
from streamcvit.data.sample import Quarantined
from streamcvit.errors import UserError


@dataclass(frozen=True)
class Mixed:
    """What files of mixed rows hold.

    Attributes:
        rows: those of each task in stream order.
        reports: what was found of each task.
        report: of all files, with the rows that cannot be used.
        quarantined: those.
        plan: which task gives how many rows to which chunk, and in which order (`labels`): a chunk a file.
    """

    rows: dict[str, Rows]
    reports: dict[str, FileReport]
    report: FileReport
    quarantined: list[Quarantined]
    plan: Plan


def load_mixed(
    root: str | os.PathLike,
    files: Sequence[str],
    tasks: Sequence[str],
    task_of: Callable[[Record], str],
    images: str = "",
    format: str = "swift",
    bad_share: float = BAD_SHARE,
    naming: Naming = UNNAMED,
    spool: Spool | None = None,
    amend: Amend | None = None,
    formats: Mapping[str, Callable[[Any], Record]] = FORMATS,
) -> Mixed:
    """Read them.

    Args:
        root: data folder.
        files: one a chunk, in stream order, relative to it.
        tasks: names, the plan's columns.
        task_of: the task of a row; empty: none, and the row cannot be used.
        images: folder that the rows' picture paths start from.
        format: a name in `FORMATS`.
        bad_share: more bad rows than this share of all files stop the import.
        naming: how the instruction is named.
        spool: where the rows go.
        amend: what is done to a row before its format reads it.
        formats: readers of rows by name.

    Raises:
        UserError: as `load_tasks`.
    """
    spool = Spool() if spool is None else spool
    rows, reports = {task: Rows(spool) for task in tasks}, {task: FileReport(_among(files)) for task in tasks}
    column = {task: place for place, task in enumerate(tasks)}
    total, bad, ids = FileReport(_among(files)), list[Quarantined](), Ids()
    chunks, labels = array("i"), array("i")
    for chunk, file in enumerate(files):
        path = Path(root, file)
        reading = Reading(path.stem, format, Path(root, images), naming, False, spool, amend, task_of, formats=formats)
        for row in reading.rows(path, ids):
            if isinstance(row, Quarantined):
                total.add_bad(row)
                bad.append(row)
                continue
            task = row.sample.task
            rows[task].append(row)
            reports[task].rows += 1
            reports[task].add(row.sample, len(row.pictures), bool(row.sample.instruction), naming)
            chunks.append(chunk)
            labels.append(column[task])
        total.rows += reading.report.rows
    total.check(bad_share)
    if not len(labels):
        raise UserError("no row can be used", where=total.file, fix="Check the files")
    make_unique(rows)
    counts = np.zeros((len(files), len(tasks)), dtype=np.int64)
    np.add.at(counts, (np.array(chunks), np.array(labels)), 1)
    return Mixed(rows, reports, total, bad, Plan(tuple(tasks), counts, np.array(labels)))


def _among(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} ... {files[-1]}" if files else ""
