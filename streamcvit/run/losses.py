"""What of a stream cannot be used: listed beside it, said, and refused past a share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.data.files.report import SHOWN, ImportReport
from streamcvit.data.sample import Quarantined
from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError

REPORT = "import.json"
"""In a stream folder made of files: what was found in them."""


def unusable(index: StreamIndex) -> list[Quarantined]:
    """Samples of which the index says that a picture does not decode."""
    faults, position = index.texts("image_fault"), index.table["position"].to_numpy()
    first = {int(position[row]): str(faults[row]) for row in np.flatnonzero(faults != "")[::-1]}
    return [Quarantined(place, str(index.sample_id_of[place]), "image", first[place]) for place in sorted(first)]


def check_losses(index: StreamIndex, tests: StreamIndex, bad_share: float, report: ImportReport | None = None) -> None:
    """Raise UserError where more of a task's samples, or test samples, cannot be used than `bad_share`.

    Args:
        index, tests: the stream and its test sets; what they lose is noted in the report.
        bad_share: the share that is borne.
        report: what the import of files found, whose bad rows count too; None: there was none.
    """
    over = []
    for place, (kind, part) in enumerate((("samples", index), ("test samples", tests))):
        lost: dict[str, list[Quarantined]] = {}
        for one in unusable(part):
            lost.setdefault(str(part.task_of[one.position]), []).append(one)
        for task, count in Counter(part.task_of.tolist()).items():
            gone, file = lost.get(task, []), None
            if report:
                found = report.tasks[task]
                found.lost[place] = len(gone)
                file = (found.train, found.test)[place]
            share = 1 - (1 - len(gone) / count) * (1 - (file.share if file else 0))
            if gone and share > bad_share:
                beside = f", beside {sum(file.bad.values())} of {file.rows} rows" if file and file.bad else ""
                shown = "; ".join(f"{one.sample_id}: {one.detail}" for one in gone[:SHOWN])
                over.append(f"{len(gone)} of {count} {kind} of task {task!r} cannot be used{beside}: {shown}")
    if over:
        fix = f"Mend the pictures, or leave their rows out; at most {bad_share:.0%} may be bad (stream.bad_share)"
        raise UserError(". ".join(over), fix=fix)


def lost_list(folder: Path) -> Path:
    """Where all that cannot be used is listed, one JSON object a line: beside the stream folder."""
    return folder.with_name(f"{folder.name}.quarantined.jsonl")


def list_lost(folder: Path, index: StreamIndex, rows: Iterable[Quarantined] = ()) -> None:
    """List beside a stream folder what cannot be used: rows of files, samples and test samples."""
    found = [("row", row) for row in rows]
    for what, part in (("sample", index), ("test sample", index.eval_index())):
        found += [(what, one) for one in unusable(part)]
    lines = [
        json.dumps({"what": what, "sample_id": one.sample_id, "reason": one.reason, "detail": one.detail})
        for what, one in found
    ]
    if lines:
        lost_list(folder).write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        lost_list(folder).unlink(missing_ok=True)


def save_report(folder: str | Path, report: ImportReport) -> None:
    """Keep what an import found in the stream folder."""
    Path(folder, REPORT).write_text(json.dumps(report.to_json()), encoding="utf-8")


def import_report(folder: Path) -> ImportReport | None:
    """What the import of a stream folder's files found; None: it was made of none, or that is not known."""
    try:
        record: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        return ImportReport.from_json(record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def stream_lines(folder: Path, index: StreamIndex) -> list[str]:
    """What is to be said of a stream before it is learned: its import, and what cannot be used of it."""
    report = import_report(folder)
    lines = report.lines() if report else []
    lost = [(len(unusable(part)), what) for part, what in ((index, "samples"), (index.eval_index(), "test samples"))]
    if any(count for count, _ in lost):
        said = " and ".join(f"{count} {what}" for count, what in lost if count)
        lines.append(f"{said} have pictures that cannot be used and are left out")
    if lost_list(folder).exists():
        lines.append(f"all that cannot be used is listed in {lost_list(folder)}")
    lines += index.fault_lines() + index.eval_index().fault_lines()
    return lines
