"""What a benchmark's layout says: which files lie where beneath one data folder, and how their rows become samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamcvit.data import strictjson
from streamcvit.data.files.mixed import Mixed, load_mixed
from streamcvit.data.files.report import TaskReport
from streamcvit.data.files.rows import MAX_FILE
from streamcvit.data.files.spool import Spool
from streamcvit.data.files.tasks import Amend, TaskData, TaskFiles, load_tasks
from streamcvit.data.formats import BAD_SHARE, FORMATS, Record
from streamcvit.data.instructions import UNNAMED, Naming
from streamcvit.data.references import BadRow
from streamcvit.errors import UserError

SHOWN = 4
"""Missing files that are named."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Join:
    """What other files say of a task's test rows: official annotations beside a benchmark's questions.

    Attributes:
        files: relative to the data folder; each one JSON value.
        read: makes of their values what is done to a row (`Amend`).
        needed: whether the benchmark cannot be read without them; else rows keep what they say themselves.
    """

    files: tuple[str, ...]
    read: Callable[..., Amend]
    needed: bool = True


@dataclass(frozen=True)
class Layout:
    """A benchmark as its repository lays it out.

    Attributes:
        name: as a pipeline and the command line name it.
        title: for a person.
        home: where its files are to be had.
        tasks: where each task's files lie, and how it is asked and judged, in the order they are learned. A task
            without a training file is only tested.
        write_small: (folder, rows of each task) writes small synthetic files in this layout, the same bytes each time.
        joins: by task, what is done to its test rows.
        amend: what is done to every row before its format reads it.
        folders: other names that a folder or file of the layout may have, the layout's own first.
        chunks: where training rows of all tasks are mixed: the files, one a chunk, in stream order. They have one
            format and image root (those of the first task), and each task's `train` names their pattern.
        task_of: the task of such a row.
        naming: of such rows' instructions.
    """

    name: str
    title: str
    home: str
    tasks: Mapping[str, TaskFiles]
    write_small: Callable[[Path, int], None]
    joins: Mapping[str, Join] = field(default_factory=dict)
    amend: Amend | None = None
    folders: Sequence[tuple[str, ...]] = ()
    chunks: tuple[str, ...] = ()
    task_of: Callable[[Record], str] | None = None
    naming: Naming = UNNAMED

    def place(self, root: str | os.PathLike, path: str) -> str:
        """A path of the layout as it lies in this data folder, which may call some folders otherwise."""
        named = [path]
        for own, *others in self.folders:
            for one in [one for one in named if one == own or one.startswith(f"{own}/")]:
                named += [other + one[len(own) :] for other in others]
        return next((one for one in named if os.path.exists(os.path.join(root, one))), path)

    def placed(self, root: str | os.PathLike, files: TaskFiles) -> TaskFiles:
        """A task's paths, likewise."""
        train, test = (one and self.place(root, one) for one in (files.train, files.test))
        images, tested = (one and self.place(root, one) for one in (files.images, files.test_images))
        return replace(files, train=train, test=test, images=images, test_images=tested)

    def check(self, root: str | os.PathLike, tasks: Mapping[str, TaskFiles]) -> None:
        """Raise UserError where files of the benchmark are missing; it names them, and where they are to be had."""
        if not os.fspath(root) or not os.path.isdir(root):
            what = f"there is no such folder: {os.fspath(root)}" if os.fspath(root) else "no data folder is named"
            raise UserError(what, where=self.name, fix=f"Name the folder of {self.title}: {self.home}")
        wanted = [*self.chunks]
        for name, files in tasks.items():
            wanted += [files.test] if self.chunks else filter(None, (files.train, files.test))
            if (join := self.joins.get(name)) and join.needed:
                wanted += join.files
        wanted = [self.place(root, one) for one in dict.fromkeys(wanted)]
        if absent := [one for one in wanted if "*" not in one and not os.path.exists(os.path.join(root, one))]:
            more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
            what = (
                f"{len(absent)} of {len(wanted)} files of {self.title} are missing: {', '.join(absent[:SHOWN])}{more}"
            )
            raise UserError(what, where=os.fspath(root), fix=f"{self.home}; docs/data.md shows where they belong")


@dataclass(frozen=True)
class Loaded:
    """A benchmark's rows.

    Attributes:
        tasks: by name.
        mixed: what was found in files of mixed rows, whose plan is the stream's; None: every task has its own.
        notes: what a person should know of the answers.
    """

    tasks: dict[str, TaskData]
    mixed: Mixed | None
    notes: list[str]


def load_layout(
    layout: Layout,
    root: str | os.PathLike,
    tasks: Mapping[str, TaskFiles],
    bad_share: float = BAD_SHARE,
    spool: Spool | None = None,
    formats: Mapping[str, Callable[[Any], Record]] = FORMATS,
) -> Loaded:
    """Read a benchmark's files.

    Args:
        layout: of the benchmark.
        root: data folder.
        tasks: as the layout's, perhaps with other settings.
        bad_share: more bad rows than this share of a file stop the import.
        spool: where rows go.
        formats: readers of rows by name.

    Raises:
        UserError: files are missing (the message names them), or as `load_tasks`.
    """
    spool = Spool() if spool is None else spool
    layout.check(root, tasks)
    tasks = {name: layout.placed(root, files) for name, files in tasks.items()}
    notes: list[str] = []
    joins = {name: _joining(layout, root, name, notes) for name in tasks}

    def amend(task: str, part: str) -> Amend | None:
        return _both(layout.amend, joins[task] if part == "test" else None)

    if not layout.chunks:
        return Loaded(load_tasks(root, tasks, bad_share, spool, amend, formats), None, notes)
    assert layout.task_of is not None
    first = next(iter(tasks.values()))
    mixed = load_mixed(
        root, [layout.place(root, one) for one in layout.chunks], list(tasks), layout.task_of, first.images,
        first.format, bad_share, layout.naming, spool, layout.amend, formats,
    )  # fmt: skip
    tests = {name: replace(one, train="") for name, one in tasks.items()}
    data = load_tasks(root, tests, bad_share, spool, amend, formats)
    return Loaded(
        {
            name: replace(one, train=mixed.rows[name], report=TaskReport(mixed.reports[name], one.report.test))
            for name, one in data.items()
        },
        mixed,
        notes,
    )


def _joining(layout: Layout, root: str | os.PathLike, task: str, notes: list[str]) -> Amend | None:
    """What a task's join does to its test rows; notes whose answers they have."""
    if (join := layout.joins.get(task)) is None:
        return None
    paths = [layout.place(root, one) for one in join.files]
    absent = [one for one in paths if not os.path.isfile(os.path.join(root, one))]
    if absent and not join.needed:
        notes.append(f"{task}: the test rows' own answers are used, as {', '.join(absent)} is not there")
        return None
    notes.append(f"{task}: answers to test rows come from {', '.join(paths)}")
    return join.read(*(read_json(Path(root, one)) for one in paths))


def read_json(path: Path) -> Any:
    """The value of a JSON file of annotations.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    fix = "Fetch the file again"
    try:
        if (size := path.stat().st_size) > MAX_FILE:
            raise UserError(f"{size} bytes; at most {MAX_FILE} are read", where=str(path), fix=fix)
        return strictjson.loads(path.read_text(encoding="utf-8-sig"), MAX_FILE)
    except OSError as fault:
        raise UserError(f"cannot be read: {fault.strerror or fault}", where=str(path), fix=fix) from None
    except ValueError as fault:
        raise UserError(f"is no JSON: {fault}", where=str(path), fix=fix) from None


def _both(first: Amend | None, second: Amend | None) -> Amend | None:
    if first is None or second is None:
        return first or second
    return lambda row: second(first(row))


def by_id(rows: Any, where: str, key: str = "question_id") -> dict[str, Row]:
    """Annotations by their id as text.

    Args:
        rows: a list of objects with ids, or an object whose keys are the ids.
        where: what they are called in a message.
        key: of the ids.

    Raises:
        UserError: they are neither.
    """
    if isinstance(rows, dict):
        found = rows
    elif isinstance(rows, list) and all(isinstance(row, dict) and key in row for row in rows):
        found = {str(row[key]): row for row in rows}
    else:
        raise UserError(f"holds no annotations by {key!r}", where=where, fix="Fetch the file again")
    return {str(name): row for name, row in found.items() if isinstance(row, dict)}


def annotation(annotations: Mapping[str, Row], row: Row, key: str = "question_id") -> Row:
    """Of a row.

    Raises:
        BadRow: there is none.
    """
    name = row.get(key, row.get("id"))
    if (found := annotations.get(str(name))) is None:
        raise BadRow("annotation", f"there is no annotation of {key} {name!r:.80}")
    return found


def answers_by_id(field: str, where: str, answer: str = "answer") -> Callable[[Any], Amend]:
    """A join that takes a row's answer from the annotation of its id.

    Args:
        field: of the file's value that holds the annotations; empty: the value itself.
        where: what they are called in a message.
        answer: key of the annotation.
    """

    def read(value: Any) -> Amend:
        found = by_id(value.get(field) if field and isinstance(value, dict) else value, where)

        def amend(row: Row) -> Row:
            said = annotation(found, row)
            if said.get(answer) is None:
                raise BadRow("annotation", f"the annotation of {row.get('question_id')!r:.80} has no {answer!r}")
            return {**row, "answer": said[answer]}

        return amend

    return read
