"""Tasks as files on disk: rows read and sorted out, pictures left where they lie until they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.data.files.origins import origins_of
from streamcvit.data.files.report import FileReport, ImportReport, TaskReport
from streamcvit.data.files.rows import rows_of
from streamcvit.data.files.spool import Spool
from streamcvit.data.files.taken import Taken, checksum
from streamcvit.data.files.taskrows import Row, Rows, look_at
from streamcvit.data.formats import BAD_SHARE, FORMATS, SPARE, Ids, Record
from streamcvit.data.instructions import UNNAMED, Naming, Wording
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Picture, Quarantined, TaskSpec
from streamcvit.data.shards.check import check_task
from streamcvit.errors import UserError

Amend = Callable[[dict[str, Any]], dict[str, Any]]
"""A row as its file has it -> the row as its format reads it; raises `BadRow` where it cannot be mended."""


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's rows lie and how it is judged; paths are relative to the data folder.

    Attributes:
        train, test: files of rows, folders or patterns of them (see `rows`); `train` is empty for a task that is only
            tested.
        format, test_format: names in `FORMATS`.
        images, test_images: folder that the rows' picture paths start from; of the test file, where it is another.
        instructions, wording, instruction_field, guess_instruction: how the instruction is named (see `Naming`).
        split_turns: make one sample of each question of a conversation.
        scorer, strcvit, follow, max_new_tokens, in_average: as in `TaskSpec`.
    """

    train: str
    test: str
    format: str = "llava"
    test_format: str = "qa"
    images: str = ""
    test_images: str = ""
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
        amend: what is done to a row before its format reads it.
        task_of: the task of a row, where a file holds rows of several; empty: of none.
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
    amend: Amend | None = None
    task_of: Callable[[Record], str] | None = None
    report: FileReport = field(default_factory=FileReport)
    odd: Any = None
    formats: Mapping[str, Callable[[Any], Record]] = field(default_factory=lambda: FORMATS)

    def __post_init__(self) -> None:
        if self.format not in self.formats:
            fix = f"Choose one of {', '.join(self.formats)}"
            raise UserError(f"unknown format {self.format!r}", where=self.task, fix=fix)

    def rows(self, path: str | os.PathLike, ids: Ids | None = None) -> Iterator[Row | Quarantined]:
        """Every row of a file (or folder, or pattern), good or bad, in order.

        A second row with the id of an earlier one becomes `id#2`, `id#3` ... if it says something else (LLaVA-style ids
        are often the picture's), and is quarantined if it says the same. Rows without an id are named after file and
        row.

        Args:
            path: of the file.
            ids: those that are taken, where several files are read that share them.

        Raises:
            UserError: no such file, or the file as a whole is of no kind that is read.
        """
        self.report.file = os.fspath(path)
        seen = Taken()
        ids = Ids() if ids is None else ids
        current, origins = None, None
        for file, number, raw in rows_of(Path(path)):
            if file != current:
                current, origins = file, origins_of(file)
                self.report.file = origins.files[0] if origins and origins.files else self.report.file
            self.report.rows += 1
            name = f"{self.task}/{file.stem}/{number:06d}"
            try:
                if isinstance(raw, ValueError):
                    raise raw
                readable = self.amend(raw) if self.amend and isinstance(raw, dict) else raw
                record = self.formats[self.format](readable)
                records = record.split() if self.split_turns else [record]
                name = record.sample_id or name
                names = [name] if len(records) == 1 else [f"{name}/{turn}" for turn in range(len(records))]
                found = [self._row(*one, ids, seen) for one in zip(records, names, strict=True)]
            except (BadRow, ValueError) as fault:
                reason = fault.reason if isinstance(fault, BadRow) else "json"
                if reason == "shape" and self.odd is None:
                    self.odd = raw
                where, row_number = origins.of(number) if origins else (file, number)
                bad = Quarantined(-1, name, reason, f"{where}: row {row_number}: {fault}")
                self.report.add_bad(bad)
                yield bad
                continue
            for row, known in found:
                self.report.add(row.sample, len(row.pictures), known, self.naming)
                yield row

    def _row(self, record: Record, name: str, ids: Ids, seen: Taken) -> tuple[Row, bool]:
        """The row, and whether it holds an instruction itself."""
        asked, images = record.count or 0, os.fspath(self.images)
        if len(record.pictures) != asked:
            named = len(record.pictures) or "none"
            raise BadRow("pictures", f"the texts mark the places of {asked} pictures, the row names {named}")
        pictures = tuple(look_at(one, images, self.spool) for one in record.pictures)
        if (said := _digest(record, name)) in seen:
            raise BadRow("duplicate", f"the same as an earlier row with the id {name!r}")
        if not (task := self.task_of(record) if self.task_of else self.task):
            raise BadRow("task", f"neither its picture ({_named(record)}) nor its answer tells the row's task")
        parts = record.parts(self.naming, unique := ids.free(name))
        sample = record.sample(f"{unique}{SPARE}", task, [Picture(b"")] * asked, parts)
        seen.add(said)
        ids.take(unique)
        sample = replace(sample, sample_id=unique)
        return Row(replace(sample, pictures=()), pictures, sample.text_bytes(), self.spool), parts.found

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
    amend: Callable[[str, str], Amend | None] = lambda task, part: None,
    formats: Mapping[str, Callable[[Any], Record]] = FORMATS,
) -> dict[str, TaskData]:
    """Read every task's files.

    An id that several tasks use becomes `task/id` in each of them, so that ids are unique within the stream.

    Args:
        root: data folder; all paths are relative to it.
        tasks: name -> where its files are (a mapping holds the fields of `TaskFiles`).
        bad_share: more bad rows than this share of a file stop the import.
        spool: where the rows go, and the pictures that they hold.
        amend: what is done to the rows of a task's `train` or `test` file before their format reads them.
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
        reading = Reading(
            name, files.format, Path(root, files.images), files.naming(), files.split_turns, spool, formats=formats
        )
        images = Path(root, files.test_images or files.images)
        tests = replace(
            reading, format=files.test_format, images=images, amend=amend(name, "test"), report=FileReport()
        )
        train, trained, bad = _read(
            replace(reading, amend=amend(name, "train")), files.train and Path(root, files.train), bad_share
        )
        test, tested, bad_test = _read(tests, Path(root, files.test), bad_share)
        if not len(test):
            raise UserError(f"the test set of task {name!r} is empty", where=str(Path(root, files.test)))
        report = TaskReport(trained if files.train else None, tested, len(test))
        loaded[name] = TaskData(files.spec(name), train, test, bad + bad_test, report)
    make_unique({name: data.train for name, data in loaded.items()})
    make_unique({name: data.test for name, data in loaded.items()})
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


def _digest(record: Record, name: str) -> int:
    """Of all that a row says."""
    texts = (name, record.prompt, record.question, record.instruction, record.whole, record.answers, record.system)
    said = [repr((texts, record.turns, sorted(record.meta.items()))).encode()]
    said += [picture if isinstance(picture, bytes) else picture.encode() for picture in record.pictures]
    return checksum(b"\0".join(said))


def make_unique(tasks: Mapping[str, Rows]) -> None:
    """Put the task in front of ids that several tasks use."""
    kept = [np.frombuffer(rows.checksums, np.uint64) for rows in tasks.values()]
    if len(kept) < 2 or not all(rows.spool.keeps for rows in tasks.values()):
        return
    values, users = np.unique(np.concatenate(kept), return_counts=True)
    if not len(shared := values[users > 1]):
        return
    both = [np.isin(one, shared) for one in kept]
    for (task, rows), known in zip(tasks.items(), both, strict=True):
        rows.put_in_front(f"{task}/", known)
    if len(np.unique(np.concatenate([np.frombuffer(rows.checksums, np.uint64) for rows in tasks.values()]))) < sum(
        len(rows) for rows in tasks.values()
    ):  # such a name is another row's own
        ids = Ids()
        for rows in tasks.values():
            for place, name in enumerate(rows.ids):
                rows.rename(place, ids.take(name))


def _read(reading: Reading, path: Path | str, bad_share: float) -> tuple[Rows, FileReport, list[Quarantined]]:
    rows, bad = Rows(reading.spool), []
    if path:
        for row in reading.rows(path):
            if isinstance(row, Quarantined):
                bad.append(row)
            else:
                rows.append(row)
        reading.report.check(bad_share, reading.hint())
    return rows, reading.report, bad


def _named(record: Record) -> str:
    first = record.pictures[0] if record.pictures else None
    return "none" if first is None else f"{first!r:.80}" if isinstance(first, str) else "in the row"
