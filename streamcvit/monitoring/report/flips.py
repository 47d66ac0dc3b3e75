"""Test samples that went from right to wrong: the picture, the question, and the answers before and now.

Pictures come from the test sets that lie beside a run, by their samples' ids, and are made small: a report stays light
whatever the pictures are.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.data.images import decode_image
from streamcvit.data.locations import is_url
from streamcvit.data.sample import PICTURE, Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.errors import UserError
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.runs import Records

RIGHT = 50.0
"""Points from which an answer counts as right."""
A_TASK, A_RUN = 3, 12
"""Samples shown at most."""
SIDE = 176
"""Pixels of a picture's longer side."""
A_PICTURE, ALL_PICTURES = 16_000, 1_200_000
"""Bytes that a picture, and all of a report, may take; further samples are shown without."""
GONE = "the stream is no longer beside the run"


@dataclass(frozen=True)
class Flip:
    """A test sample whose answer was right at a task's best boundary and is wrong at its last.

    Attributes:
        task, sample: which.
        reference: a right answer.
        before, best: the answer then, and after which chunk (from 1).
        now, last: the answer at the end, and after which chunk.
        question: what was asked; empty where the stream is gone.
        picture: its first one as a `data:` URI; empty where there is none to show.
        size: width and height of that in pixels.
        more: further pictures that the sample has.
    """

    task: str
    sample: str
    reference: str
    before: str
    best: int
    now: str
    last: int
    question: str = ""
    picture: str = ""
    size: tuple[int, int] = (0, 0)
    more: int = 0


def flips(runs: Records) -> tuple[list[tuple[int, str, list[Flip]]], list[str]]:
    """The flipped samples of each run that has some (its number, its label, those lost most first), and why pictures
    are missing, where they are."""
    shown, left = [], ALL_PICTURES
    missing: dict[str, list[str]] = {}
    for place, (label, record) in enumerate(runs):
        found = [] if record.single or record.untrained else flipped(record)
        if not found:
            continue
        rows, why, left = _pictured(record, found, left)
        if why:
            missing.setdefault(why, []).append(label)
        shown.append((place, label, rows))
    whole = [label for _, label, _ in shown]
    notes = []
    for why, labels in missing.items():
        of = "" if labels == whole else f" for {', '.join(labels)}"
        notes.append(f"Pictures are missing{of}: {why}.")
    return shown, notes


def flipped(record: RunRecord) -> list[Flip]:
    """Of each task up to `A_TASK`, of the run up to `A_RUN`, the tasks that forgot most first; without pictures."""
    version = {
        (row["task"], row["chunk"]): row["version"]
        for row in record.scores
        if row["kind"] == "boundary" and row["family"] == "strict"
    }
    table, of_task = record.matrix(), []
    for place, task in enumerate(record.tasks):
        known = np.flatnonzero(~np.isnan(table[:, place]))
        if len(known) < 2:
            continue
        last, best = int(known[-1]), int(known[table[known, place].argmax()])
        if best == last or (task, last) not in version or (task, best) not in version:
            continue
        then = {row["sample_id"]: row for row in record.predictions(version[task, best], task)}
        rows = []
        for row in record.predictions(version[task, last], task):
            before = then.get(row["sample_id"])
            points = [one.get("score") if one else None for one in (before, row)]
            if before and points[0] is not None and points[1] is not None and points[0] >= RIGHT > points[1]:
                rows.append((points[0] - points[1], str(row["sample_id"]), before, row))
        rows.sort(key=lambda found: (-found[0], found[1]))
        flips_of = [
            Flip(
                task, name, str(row["reference"]), str(then_["prediction"]), best + 1, str(row["prediction"]), last + 1
            )
            for _, name, then_, row in rows[:A_TASK]
        ]
        if flips_of:
            of_task.append((float(table[best, place] - table[last, place]), flips_of))
    of_task.sort(key=lambda found: -found[0])
    # One of each task before the second of any.
    turns = [found[turn] for turn in range(A_TASK) for _, found in of_task if turn < len(found)][:A_RUN]
    order = [task for _, found in of_task for task in [found[0].task]]
    return sorted(turns, key=lambda flip: order.index(flip.task))


def _pictured(record: RunRecord, found: list[Flip], left: int) -> tuple[list[Flip], str, int]:
    """The same with questions and pictures, why some have none, and the bytes that are left for others."""
    test, why = _test_sets(record)
    if test is None:
        return found, why, left
    wanted = {(flip.task, flip.sample) for flip in found}
    tasks = np.isin(test.task_of, list({task for task, _ in wanted}))
    places = {
        key: int(place)
        for place in np.flatnonzero(tasks)
        if (key := (str(test.task_of[place]), str(test.sample_id_of[place]))) in wanted
    }
    rows = []
    with ShardReader(test) as reader:
        for flip in found:
            sample, fault = _read(reader, places.get((flip.task, flip.sample)))
            why = why or fault
            if sample is None:
                rows.append(flip)
                continue
            question = sample.question.replace(PICTURE, " ").strip() or sample.prompt.replace(PICTURE, " ").strip()
            data, size = thumbnail(sample) if sample.pictures else (b"", (0, 0))
            if len(data) > left:
                data, why = b"", why or "the report would be too large"
            left -= len(data)
            uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""
            more = max(0, len(sample.pictures) - 1)
            rows.append(Flip(**{**vars(flip), "question": question, "picture": uri, "size": size, "more": more}))
    return rows, why, left


def _test_sets(record: RunRecord) -> tuple[StreamIndex | None, str]:
    """The test sets of a run, and why they cannot be read, if so; nothing is fetched from elsewhere."""
    folder: Path = record.folder.parent / "stream"
    if not folder.is_dir():
        return None, GONE
    try:
        index = StreamIndex.open(folder)
        if record.run.get("index_digest") not in (None, index.digest):
            return None, "the stream beside the run is another one"
        test = index.eval_index()
    except (UserError, OSError, KeyError, ValueError) as fault:
        return None, f"the stream beside the run cannot be read ({fault})"
    if any(is_url(shard) for shard in test.shards):
        return None, "the stream lies behind a URL, and a report fetches nothing"
    return test, ""


def _read(reader: ShardReader, place: int | None) -> tuple[Sample | None, str]:
    if place is None:
        return None, "some samples are no longer in the stream"
    with contextlib.suppress(UserError, OSError, ValueError):
        (sample,) = reader.read([place])
        if isinstance(sample, Sample):
            return sample, ""
    return None, "some samples cannot be read any more"


def thumbnail(sample: Sample) -> tuple[bytes, tuple[int, int]]:
    """A sample's first picture as a small JPEG with its size; empty where it cannot be decoded."""
    try:
        picture = decode_image(sample.pictures[0].data)
    except ValueError:
        return b"", (0, 0)
    picture.thumbnail((SIDE, SIDE))
    small = max(picture.size) <= SIDE // 2
    for quality in (92 if small else 80, 60, 35):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling=0 if small else 2, optimize=True)
        if buffer.tell() <= A_PICTURE:
            return buffer.getvalue(), picture.size
    return b"", (0, 0)


def said(rows: Sequence[tuple[int, str, list[Flip]]]) -> list[dict[str, Any]]:
    """For the template: a panel a run, tasks in order, each with its flips."""
    panels = []
    for run, label, found in rows:
        tasks: dict[str, list[Flip]] = {}
        for flip in found:
            tasks.setdefault(flip.task, []).append(flip)
        panels.append({"run": run, "label": label, "tasks": list(tasks.items())})
    return panels
