"""Tasks as files on disk: rows read and sorted out, pictures left where they lie until they are needed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamcvit.data.files.report import FileReport, ImportReport, TaskReport
from streamcvit.data.files.rows import rows_of
from streamcvit.data.files.spool import Spool
from streamcvit.data.files.taskrows import PictureFile, Row, Rows, look_at
from streamcvit.data.formats import BAD_SHARE, FORMATS, SPARE, Ids, Record
from streamcvit.data.instructions import UNNAMED, Naming, Wording
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Picture, Quarantined, TaskSpec
from streamcvit.data.shards.check import check_task
from streamcvit.errors import UserError


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's rows lie and how it is judged; paths are relative to the data folder.

    Attributes:
        train, test: files of rows, folders or patterns of them (see `rows`); `train` is empty for a task that is only
            tested.
        format, test_format: names in `FORMATS`.
        images: folder that the rows' picture paths start from.
        instructions, wording, instruction_field, guess_instruction: how the instruction is named (see `Naming`).
        split_turns: make one sample of each question of a conversation.
        scorer, strcvit, follow, max_new_tokens, in_average: as in `TaskSpec`.
    """

    train: str
    test: str
    format: str = "llava"
    test_format: str = "qa"
    images: str = ""
    instructions: Sequence[str] = ()
    wording: Wording = "given"
    instruction_field: str = ""
    guess_instruction: bool = False
    split_turns: bool = False
    scorer: str = "exact"
    strcvit: str = ""
    follow: str = "single_word"
    max_new_tokens: int = 16
    in_average: bool = True

    def spec(self, name: str) -> TaskSpec:
        """How the task is answered and judged."""
        return TaskSpec(name, self.scorer, self.follow, self.strcvit, self.max_new_tokens, self.in_average)

    def naming(self) -> Naming:
        """How its instruction is named.

        Raises:
            UserError: settings that contradict each other.
        """
        return Naming(tuple(self.instructions), self.wording, self.instruction_field, self.guess_instruction)


@dataclass(frozen=True)
class TaskData:
    """A task's rows.

    Attributes:
        spec: how it is judged.
        train, test: good rows in file order.
        quarantined: the others; `detail` names file, row and fault.
        report: what was found.
    """

    spec: TaskSpec
    train: Rows
    test: Rows
    quarantined: list[Quarantined]
    report: TaskReport


@dataclass
class Reading:
    """How rows become samples, and what was found on the way.

    Attributes:
        task: the rows' task.
        format: a name in `FORMATS`.
        images: folder that the rows' picture paths start from.
        naming: how the instruction is named.
        split_turns: make one sample of each question of a conversation.
        spool: where pictures go that the rows themselves hold.
        report: counted as the rows are read.
        odd: the first row that had another shape than the format's.
        formats: readers of rows by name.
    """

    task: str
    format: str
    images: Path
    naming: Naming = UNNAMED
    split_turns: bool = False
    spool: Spool = field(default_factory=Spool)
    report: FileReport = field(default_factory=FileReport)
    odd: Any = None
    formats: Mapping[str, Callable[[Any], Record]] = field(default_factory=lambda: FORMATS)

    def __post_init__(self) -> None:
        if self.format not in self.formats:
            fix = f"Choose one of {', '.join(self.formats)}"
            raise UserError(f"unknown format {self.format!r}", where=self.task, fix=fix)

    def rows(self, path: str | os.PathLike) -> Iterator[Row | Quarantined]:
        """Every row of a file (or folder, or pattern), good or bad, in order.

        A second row with the id of an earlier one becomes `id#2`, `id#3` ... if it says something else (LLaVA-style ids
        are often the picture's), and is quarantined if it says the same. Rows without an id are named after file and
        row.

        Raises:
            UserError: no such file, or the file as a whole is of no kind that is read.
        """
        self.report.file = os.fspath(path)
        seen: set[bytes] = set()
        ids = Ids()
        for file, number, raw in rows_of(Path(path)):
            self.report.rows += 1
            name = f"{self.task}/{file.stem}/{number:06d}"
            try:
                if isinstance(raw, ValueError):
                    raise raw
                record = self.formats[self.format](raw)
                records = record.split() if self.split_turns else [record]
                name = record.sample_id or name
                names = [name] if len(records) == 1 else [f"{name}/{turn}" for turn in range(len(records))]
                found = [self._row(*one, ids, seen) for one in zip(records, names, strict=True)]
            except (BadRow, ValueError) as fault:
                reason = fault.reason if isinstance(fault, BadRow) else "json"
                if reason == "shape" and self.odd is None:
                    self.odd = raw
                bad = Quarantined(-1, name, reason, f"{file}: row {number}: {fault}")
                self.report.add_bad(bad)
                yield bad
                continue
            for row, known in found:
                self.report.add(row.sample, len(row.pictures), known, self.naming)
                yield row

    def _row(self, record: Record, name: str, ids: Ids, seen: set[bytes]) -> tuple[Row, bool]:
        """The row, and whether it holds an instruction itself."""
        asked, images = record.count or 0, os.fspath(self.images)
        if len(record.pictures) != asked:
            named = len(record.pictures) or "none"
            raise BadRow("pictures", f"the texts mark the places of {asked} pictures, the row names {named}")
        pictures = tuple(look_at(one, images, self.spool) for one in record.pictures)
        if (said := _digest(record, name)) in seen:
            raise BadRow("duplicate", f"the same as an earlier row with the id {name!r}")
        parts = record.parts(self.naming, unique := ids.free(name))
        sample, text = record.checked(f"{unique}{SPARE}", self.task, [Picture(b"")] * asked, parts)
        seen.add(said)
        ids.take(unique)
        return Row(replace(sample, sample_id=unique, pictures=()), pictures, text, self.spool), parts.found

    def hint(self) -> str:
        """Which other format reads the rows that this one did not; empty: none."""
        for name, read in FORMATS.items():
            try:
                if self.odd is not None and name != self.format:
                    read(self.odd)
                    return f"Format {name!r} reads such rows, {self.format!r} does not"
            except (BadRow, ValueError):
                pass
        return ""


def read_rows(
    path: str | os.PathLike, format: str, task: str, images: str | os.PathLike, naming: Naming = UNNAMED
) -> Iterator[Row | Quarantined]:
    """As `Reading.rows`, for who wants the rows alone."""
    return Reading(task, format, Path(images), naming).rows(path)


def load_tasks(
    root: str | os.PathLike,
    tasks: Mapping[str, TaskFiles | Mapping[str, Any]],
    bad_share: float = BAD_SHARE,
    spool: Spool | None = None,
    formats: Mapping[str, Callable[[Any], Record]] = FORMATS,
) -> dict[str, TaskData]:
    """Read every task's files.

    An id that several tasks use becomes `task/id` in each of them, so that ids are unique within the stream.

    Args:
        root: data folder; all paths are relative to it.
        tasks: name -> where its files are (a mapping holds the fields of `TaskFiles`).
        bad_share: more bad rows than this share of a file stop the import.
        spool: where the rows go, and the pictures that they hold.
        formats: readers of rows by name.

    Raises:
        UserError: a file is missing or no rows, too many bad rows, no test set, an unknown key or format.
    """
    spool = Spool() if spool is None else spool
    known = {}
    for name, given in tasks.items():
        try:
            files = given if isinstance(given, TaskFiles) else TaskFiles(**given)
            check_task(files.spec(name))
            files.naming()
        except TypeError as fault:
            raise UserError(f"task {name!r}: {fault}", fix="Name the fields of TaskFiles") from None
        except ValueError as fault:
            fix = "Rename it, or mend its settings"
            raise UserError(str(fault), where="stream.tasks", fix=fix) from None
        except UserError as fault:
            raise UserError(fault.what, where=f"task {name!r}", fix=fault.fix) from None
        if not files.test:
            raise UserError(f"task {name!r} has no test set", fix="Name a test file")
        known[name] = files
    _check_root(root, known)
    loaded = {}
    for name, files in known.items():
        train, trained, bad = _read(Path(root), files, files.train, files.format, name, bad_share, spool, formats)
        test, tested, bad_test = _read(
            Path(root), files, files.test, files.test_format, name, bad_share, spool, formats
        )
        if not len(test):
            raise UserError(f"the test set of task {name!r} is empty", where=str(Path(root, files.test)))
        report = TaskReport(trained if files.train else None, tested, len(test))
        loaded[name] = TaskData(files.spec(name), train, test, bad + bad_test, report)
    _make_unique({name: data.train for name, data in loaded.items()})
    _make_unique({name: data.test for name, data in loaded.items()})
    return loaded


def _check_root(root: str | os.PathLike, tasks: Mapping[str, TaskFiles]) -> None:
    fix = "Name the data folder with --data FOLDER (stream.data)"
    if os.fspath(root) and not os.path.isdir(root):
        raise UserError("there is no such folder", where=os.fspath(root), fix=fix)
    for files in tasks.values():
        for file in filter(None, (files.train, files.test)):
            if not os.fspath(root) and "*" not in file and not os.path.exists(file):
                raise UserError("there is no such file, and no data folder is named", where=file, fix=fix)


def report_of(tasks: Mapping[str, TaskData]) -> ImportReport:
    """What was found in the files of all tasks."""
    return ImportReport({name: data.report for name, data in tasks.items()})


def load_chunks(
    root: str | os.PathLike,
    files: Sequence[str],
    images: str,
    tasks: Mapping[str, str],
    format: str = "swift",
    bad_share: float = BAD_SHARE,
    naming: Naming = UNNAMED,
) -> tuple[list[tuple[int, Row]], list[Quarantined]]:
    """A published stream whose chunks are files of mixed tasks (StrCVIT's `data_001.json` ...): its rows in order.

    Args:
        root: data folder.
        files: one a chunk, in stream order.
        images: folder that the rows' picture paths start from.
        tasks: start of a path of the row's first picture -> task; the longest start that fits counts.
        format: a name in `FORMATS`.
        bad_share: more bad rows than this share stop the import.
        naming: how the instruction is named.

    Returns:
        (chunk, row) in stream order, and what was quarantined.

    Raises:
        UserError: as `load_tasks`.
    """
    rows: list[tuple[int, Row]] = []
    bad: list[Quarantined] = []
    starts = sorted(tasks, key=len, reverse=True)
    report, spool = FileReport(), Spool()
    for chunk, file in enumerate(files):
        path = Path(root, file)
        for row in Reading(path.stem, format, Path(root, images), naming, spool=spool).rows(path):
            if isinstance(row, Quarantined):
                bad.append(row)
                continue
            first = row.pictures[0] if row.pictures else None
            picture = first.path if isinstance(first, PictureFile) else ""
            picture = Path(picture).relative_to(Path(root, images)).as_posix() if picture else ""
            start = next((start for start in starts if picture.startswith(start)), None)
            if start is None:
                detail = f"{path}: the picture {picture!r} belongs to no task"
                bad.append(Quarantined(-1, row.sample_id, "task", detail))
                continue
            rows.append((chunk, replace(row, sample=replace(row.sample, task=tasks[start]))))
    report.rows = len(rows) + len(bad)
    for one in bad:
        report.add_bad(one)
    report.check(bad_share)
    unique = _apart([row.sample_id for _, row in rows], [chunk for chunk, _ in rows])
    return [
        (chunk, replace(row, sample=replace(row.sample, sample_id=name)))
        for (chunk, row), name in zip(rows, unique, strict=True)
    ], bad


def _digest(record: Record, name: str) -> bytes:
    """Of all that a row says."""
    texts = (name, record.prompt, record.question, record.instruction, record.whole, record.answers, record.system)
    digest = hashlib.blake2b(repr((texts, record.turns, sorted(record.meta.items()))).encode(), digest_size=16)
    for picture in record.pictures:
        digest.update(b"\0" + (picture if isinstance(picture, bytes) else picture.encode()))
    return digest.digest()


def _make_unique(tasks: Mapping[str, Rows]) -> None:
    names = [name for rows in tasks.values() for name in rows.ids]
    unique = iter(_apart(names, [task for task, rows in tasks.items() for _ in rows.ids]))
    for rows in tasks.values():
        rows.ids = [next(unique) for _ in rows.ids]


def _apart(names: Sequence[str], fronts: Sequence[object]) -> list[str]:
    """The ids, those that are shared with `front/` before them."""
    users, ids = Counter(names), Ids()
    return [ids.take(f"{front}/{name}" if users[name] > 1 else name) for name, front in zip(names, fronts, strict=True)]


def _read(
    root: Path,
    files: TaskFiles,
    file: str,
    format: str,
    task: str,
    bad_share: float,
    spool: Spool,
    formats: Mapping[str, Callable[[Any], Record]],
) -> tuple[Rows, FileReport, list[Quarantined]]:
    rows, bad = Rows(spool), []
    reading = Reading(task, format, root / files.images, files.naming(), files.split_turns, spool, formats=formats)
    if file:
        for row in reading.rows(root / file):
            if isinstance(row, Quarantined):
                bad.append(row)
            else:
                rows.append(row)
        reading.report.check(bad_share, reading.hint())
    return rows, reading.report, bad
