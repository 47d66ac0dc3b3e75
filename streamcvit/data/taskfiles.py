"""Tasks as files on disk: rows read and sorted out, pictures left where they lie until they are needed."""

from __future__ import annotations

import errno
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

from streamcvit.data import strictjson
from streamcvit.data.formats import BAD_SHARE, FORMATS, SPARE, BadRow, Ids, Record
from streamcvit.data.images import sniff
from streamcvit.data.locations import NotRegular, open_regular
from streamcvit.data.sample import Picture, Quarantined, Sample, TaskSpec
from streamcvit.data.tarscan import MAX_MEMBER
from streamcvit.errors import UserError

MAX_FILE = 2 << 30
"""Bytes of a file of rows, which is read as a whole (LLaVA's mix of 665,000 rows has half of it)."""


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's rows lie and how it is judged; paths are relative to the data folder.

    Attributes:
        train, test: JSON files (a list of rows, or one row a line); `train` is empty for a task that is only tested.
        format, test_format: names in `FORMATS`.
        images: folder that the rows' picture paths start from.
        instructions: the task's wordings, where the last line of a prompt is not the instruction (see `formats`).
        wording: `given` keeps each row's wording; `single` gives all rows `instructions[0]`; `drawn` gives each one of
            `instructions`, drawn by its id.
        scorer, strcvit, follow, max_new_tokens, in_average: as in `TaskSpec`.
    """

    train: str
    test: str
    format: str = "llava"
    test_format: str = "qa"
    images: str = ""
    instructions: Sequence[str] = ()
    wording: Literal["given", "single", "drawn"] = "given"
    scorer: str = "exact"
    strcvit: str = ""
    follow: str = "single_word"
    max_new_tokens: int = 16
    in_average: bool = True

    def spec(self, name: str) -> TaskSpec:
        """How the task is answered and judged."""
        return TaskSpec(name, self.scorer, self.follow, self.strcvit, self.max_new_tokens, self.in_average)


@dataclass(frozen=True)
class Row:
    """A sample whose picture still lies on disk (`image_path`; it was there and a PNG, JPEG or WebP when looked at)."""

    sample_id: str
    task: str
    question: str
    instruction: str
    answers: tuple[str, ...]
    image_path: str
    image_ext: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Sample:
        """The sample with its picture's bytes as they are.

        Raises:
            UserError: the picture is gone.
        """
        try:
            with os.fdopen(open_regular(self.image_path), "rb") as stream:
                image = stream.read(MAX_MEMBER + 1)
        except OSError as fault:
            raise UserError(f"the picture cannot be read: {fault.strerror}", where=self.image_path) from None
        texts = (self.sample_id, self.task, self.question, self.instruction)
        return Sample(*texts, answers=self.answers, pictures=(Picture(image, self.image_ext),), meta=self.meta)


class Rows(Sequence[Sample]):
    """Rows as a sequence of samples; each picture is read when its sample is asked for, and not kept."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> Rows: ...

    def __getitem__(self, place: int | slice) -> Sample | Rows:
        return Rows(self.rows[place]) if isinstance(place, slice) else self.rows[place].load()


@dataclass(frozen=True)
class TaskData:
    """A task's rows.

    Attributes:
        spec: how it is judged.
        train, test: good rows in file order.
        quarantined: the others; `detail` names file, row and fault.
    """

    spec: TaskSpec
    train: Rows
    test: Rows
    quarantined: list[Quarantined]


def read_rows(
    path: str | os.PathLike, format: str, task: str, images: str | os.PathLike, instructions: Sequence[str] = ()
) -> Iterator[Row | Quarantined]:
    """Every row of a file, good or bad, in order.

    A second row with the id of an earlier one becomes `id#2`, `id#3` ... if it says something else (LLaVA-style ids are
    often the picture's), and is quarantined if it says the same. Rows without an id are named after file and row.

    Args:
        path: JSON (a list of rows) or JSON lines.
        format: a name in `FORMATS`.
        task: the rows' task.
        images: folder that the rows' picture paths start from.
        instructions: the task's wordings (see `formats.split_prompt`).

    Raises:
        UserError: no such file or format, or the file as a whole is too long or no JSON.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}", where=task, fix=f"Choose one of {', '.join(FORMATS)}")
    path = Path(path)
    seen: dict[str, Row] = {}
    ids = Ids()
    for number, raw in enumerate(_rows_of(path)):
        name = f"{task}/{path.stem}/{number:06d}"
        try:
            if isinstance(raw, ValueError):
                raise raw
            record = FORMATS[format](raw)
            name = record.sample_id or name
            row = _resolve(record, name, task, Path(images), instructions)
            if seen.get(name) == row:
                raise BadRow("duplicate", f"the same as an earlier row with the id {name!r}")
            seen.setdefault(name, row)
            yield replace(row, sample_id=ids.take(name))
        except BadRow as fault:
            yield Quarantined(-1, name, fault.reason, f"{path}: row {number}: {fault}")
        except ValueError as fault:
            yield Quarantined(-1, name, "json", f"{path}: row {number}: {fault}")


def _rows_of(path: Path) -> Iterator[Any]:
    """Rows; those that are no sound JSON come as the ValueError that says so."""
    try:
        with os.fdopen(open_regular(path), encoding="utf-8") as stream:
            if (size := os.fstat(stream.fileno()).st_size) > MAX_FILE:
                raise UserError(f"{size} bytes; at most {MAX_FILE} are read", where=str(path), fix="Split the file")
            text = stream.read()
    except OSError as fault:
        raise UserError(f"cannot be read: {fault.strerror}", where=str(path), fix="Check the path") from None
    except UnicodeDecodeError as fault:
        raise UserError(f"is not UTF-8: {fault}", where=str(path), fix="Convert the file to UTF-8") from None
    if path.suffix == ".jsonl":
        for line in filter(str.strip, text.split("\n")):
            try:
                yield strictjson.loads(line)
            except ValueError as fault:
                yield fault
        return
    try:
        yield from strictjson.rows(text)
    except ValueError as fault:
        fix = "Fetch the file again, or name JSON lines *.jsonl"
        raise UserError(f"is no JSON list of rows: {fault}", where=str(path), fix=fix) from None


def _resolve(record: Record, name: str, task: str, images: Path, instructions: Sequence[str]) -> Row:
    if not record.pictures:
        raise BadRow("shape", "the row names no picture")
    image = record.pictures[0]
    picture = images / image
    try:
        with os.fdopen(open_regular(picture), "rb") as stream:
            size, head = os.fstat(stream.fileno()).st_size, stream.read(12)
    except (FileNotFoundError, NotADirectoryError, NotRegular) as fault:
        raise BadRow("missing", f"the picture {image!r:.200} cannot be opened: {fault.strerror}") from None
    except OSError as fault:
        if fault.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise BadRow("missing", f"the picture {image!r:.200} cannot be opened: {fault.strerror}") from None
        # Anything else says something of this machine, not of the row.
        raise UserError(f"the picture cannot be read: {fault.strerror}", where=str(picture)) from None
    ext = sniff(head)
    if not ext:
        raise BadRow("image", f"the picture {image!r:.200} is neither PNG, JPEG nor WebP")
    if size > MAX_MEMBER:
        raise BadRow("image", f"the picture {image!r:.200} has {size} bytes; at most {MAX_MEMBER} are allowed")
    row = record.sample(f"{name}{SPARE}", task, instructions=instructions)
    return Row(name, task, row.question, row.instruction, row.answers, str(picture), ext, row.meta)


def load_tasks(
    root: str | os.PathLike, tasks: Mapping[str, TaskFiles | Mapping[str, Any]], bad_share: float = BAD_SHARE
) -> dict[str, TaskData]:
    """Read every task's files.

    An id that several tasks use becomes `task/id` in each of them, so that ids are unique within the stream.

    Args:
        root: data folder; all paths are relative to it.
        tasks: name -> where its files are (a mapping holds the fields of `TaskFiles`).
        bad_share: more bad rows than this share of a file stop the import.

    Raises:
        UserError: a file is missing or no JSON, too many bad rows, no test set, an unknown key or format.
    """
    root = Path(root)
    loaded = {}
    for name, given in tasks.items():
        try:
            files = given if isinstance(given, TaskFiles) else TaskFiles(**given)
        except TypeError as fault:
            raise UserError(f"task {name!r}: {fault}", fix="Name the fields of TaskFiles") from None
        if not files.test:
            raise UserError(f"task {name!r} has no test set", fix="Name a test file")
        train, bad_train = (
            _read_file(root, files, files.train, files.format, name, bad_share) if files.train else ([], [])
        )
        test, bad_test = _read_file(root, files, files.test, files.test_format, name, bad_share)
        if not test:
            raise UserError(f"the test set of task {name!r} is empty", where=str(root / files.test))
        loaded[name] = TaskData(files.spec(name), Rows(train), Rows(test), bad_train + bad_test)
    _make_unique([data.train.rows for data in loaded.values()])
    _make_unique([data.test.rows for data in loaded.values()])
    return loaded


def load_chunks(
    root: str | os.PathLike,
    files: Sequence[str],
    images: str,
    tasks: Mapping[str, str],
    format: str = "swift",
    bad_share: float = BAD_SHARE,
) -> tuple[list[tuple[int, Row]], list[Quarantined]]:
    """A published stream whose chunks are files of mixed tasks (StrCVIT's `data_001.json` ...): its rows in order.

    Args:
        root: data folder.
        files: one a chunk, in stream order.
        images: folder that the rows' picture paths start from.
        tasks: start of a picture's path -> task; the longest start that fits counts.

    Returns:
        (chunk, row) in stream order, and what was quarantined.

    Raises:
        UserError: as `load_tasks`.
    """
    rows: list[tuple[int, Row]] = []
    bad: list[Quarantined] = []
    starts = sorted(tasks, key=len, reverse=True)
    for chunk, file in enumerate(files):
        path = Path(root, file)
        for row in read_rows(path, format, path.stem, Path(root, images)):
            if isinstance(row, Quarantined):
                bad.append(row)
                continue
            picture = Path(row.image_path).relative_to(Path(root, images)).as_posix()
            start = next((start for start in starts if picture.startswith(start)), None)
            if start is None:
                detail = f"{path}: the picture {picture!r} belongs to no task"
                bad.append(Quarantined(-1, row.sample_id, "task", detail))
                continue
            rows.append((chunk, replace(row, task=tasks[start])))
    check_share(len(rows), bad, bad_share)
    unique = _apart([row for _, row in rows], [chunk for chunk, _ in rows])
    return [(chunk, row) for (chunk, _), row in zip(rows, unique, strict=True)], bad


def _make_unique(tasks: Sequence[list[Row]]) -> None:
    rows = [row for one in tasks for row in one]
    unique = iter(_apart(rows, [row.task for row in rows]))
    for one in tasks:
        one[:] = islice(unique, len(one))


def _apart(rows: Sequence[Row], fronts: Sequence[object]) -> list[Row]:
    """The rows, those that share their id with `front/` before it."""
    users, ids = Counter(row.sample_id for row in rows), Ids()
    return [
        replace(row, sample_id=ids.take(f"{front}/{row.sample_id}" if users[row.sample_id] > 1 else row.sample_id))
        for row, front in zip(rows, fronts, strict=True)
    ]


def _read_file(
    root: Path, files: TaskFiles, file: str, format: str, task: str, bad_share: float
) -> tuple[list[Row], list[Quarantined]]:
    rows: list[Row] = []
    bad: list[Quarantined] = []
    if not file:
        return rows, bad
    for row in read_rows(root / file, format, task, root / files.images, files.instructions):
        if isinstance(row, Quarantined):
            bad.append(row)
        else:
            rows.append(_reworded(row, files))
    check_share(len(rows), bad, bad_share)
    return rows, bad


def _reworded(row: Row, files: TaskFiles) -> Row:
    if files.wording == "given":
        return row
    if not files.instructions:
        raise UserError(f"task {row.task!r} has no instruction wordings", fix="List them under `instructions`")
    drawn = zlib.crc32(row.sample_id.encode()) % len(files.instructions) if files.wording == "drawn" else 0
    return replace(row, instruction=files.instructions[drawn])


def check_share(good: int, bad: Sequence[Quarantined], bad_share: float = BAD_SHARE) -> None:
    """Raise UserError where more than `bad_share` of the rows are bad; the message tells the first and the kinds."""
    if len(bad) > bad_share * (good + len(bad)):
        kinds = ", ".join(f"{count} {reason}" for reason, count in Counter(row.reason for row in bad).most_common())
        raise UserError(
            f"{len(bad)} of {good + len(bad)} rows cannot be read ({kinds}); the first: {bad[0].detail}",
            fix=f"Check format and image folder; at most {bad_share:.0%} may be bad",
        )
