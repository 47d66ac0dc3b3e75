"""Samples appended to a followed folder from the command line: a shard with its index, there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcvit.data.files.rows import rows_of
from streamcvit.data.files.spool import Spool
from streamcvit.data.files.tasks import Reading
from streamcvit.data.sample import Quarantined, TaskSpec
from streamcvit.data.shards.grow import has_one_each, renumbered
from streamcvit.data.shards.index import StreamIndex, index_of
from streamcvit.data.shards.write import Writable, part_folder, sweep, sync_folder, write_shards
from streamcvit.data.sources.base import INDEXED
from streamcvit.data.sources.folder import END, MANIFEST, SHARD, STREAM, TEST, FolderSource
from streamcvit.errors import UserError
from streamcvit.learning.durable import write_text
from streamcvit.questions import format_of
from streamcvit.run.arrivals import Refused, Wait, check_tests, read_manifest, read_shard

LOCK = ".push.lock"
_OURS = re.compile(r"push-(\d+)\.tar$")


@dataclass
class Pushed:
    """What was appended.

    Attributes:
        shards: names, in order.
        samples: by task.
        tests: test samples, where a task came with them.
        ended: whether the end was marked.
    """

    shards: list[str] = field(default_factory=list)
    samples: dict[str, int] = field(default_factory=dict)
    tests: int = 0
    ended: bool = False


def push(
    files: Sequence[Path],
    to: Path,
    *,
    task: str = "",
    form: str | None = None,
    images: Path | None = None,
    test: Path | None = None,
    rules: Mapping[str, Any] | None = None,
    samples_per_shard: int = 2000,
    create: bool = False,
    end: bool = False,
) -> Pushed:
    """Append rows of files to a folder that is, or will be, followed (`streamcvit.data.sources.folder`).

    Nothing is appended where a row cannot be used. Several may push at a time: shards are numbered as they come.

    Args:
        files: of rows, each of any kind that is read (docs/data.md).
        to: the folder.
        task: of all rows; empty: each says its own.
        form: of the rows, a name in `FORMATS`; None: told by their keys.
        images: folder that picture paths start from; None: each file's own.
        test: file of the test set of `task`, which the stream does not have yet.
        rules: how `task` is judged (fields of `TaskSpec`).
        samples_per_shard: a new shard begins after so many.
        create: make the folder where there is none.
        end: say that nothing follows.

    Raises:
        UserError: there is no such folder, the stream has ended, a file or row cannot be used, or the task is there.
    """
    if not to.is_dir() and create:
        to.mkdir(parents=True, exist_ok=True)
    if not to.is_dir():
        raise UserError("there is no such stream folder", where=str(to), fix="Check the path, or make it with --create")
    if (to / END).exists():
        raise UserError("this stream has ended", where=str(to / END), fix="Push to another, or remove that file")
    if not files and test is None and not end:
        raise UserError("there is nothing to push", fix="Name files of rows, or --end")
    if (test is not None or rules) and not task:
        raise UserError("a test set, and how it is judged, is of one task", fix="Name it with --task")
    if rules and test is None:
        raise UserError(
            "a task is judged as its manifest says, which comes with its test set", fix="Name it with --test"
        )
    found, spool = Pushed(), Spool(to)
    sweep(to / "push")
    with part_folder(to / "push", False) as part:
        name, known = _stream_name(to), _rules_of(to)
        manifest = ""
        if test is not None:
            if task in known:
                fix = "Leave --test out: its test set stays as it is"
                raise UserError(f"the task {task!r} is there already", where=str(to), fix=fix)
            manifest = json.dumps(
                {"task": task, "test": f"{task}{TEST}", **(rules or {})}, indent=1, ensure_ascii=False
            )
            known[task], found.tests = _tests(part, manifest, _rows(test, task, form, images, spool), name)
        rows = (row for file in files for row in _rows(file, task, form, images, spool))
        made = _shards(part, part / "samples", rows, name, samples_per_shard, known) if files else []
        if manifest:  # all of it can be used: from here on nothing is refused
            for beside in ("", INDEXED):
                os.rename(part / f"{task}{TEST}{beside}", to / f"{task}{TEST}{beside}")
            write_text(to / f"{task}{MANIFEST}", f"{manifest}\n")
        _put_in_place(to, made, found)
    if end:
        (to / END).touch()
        sync_folder(to)
        found.ended = True
    return found


def _put_in_place(to: Path, made: Sequence[tuple[Path, StreamIndex]], found: Pushed) -> None:
    """Give shards their numbers; each is complete once its index is there."""
    if not made:
        return
    with _numbered(to) as first:
        for number, (tar, index) in enumerate(made, first):
            target = to / f"push-{number:08d}{SHARD}"
            os.rename(tar, target)
            os.rename(tar.with_name(tar.name + INDEXED), target.with_name(target.name + INDEXED))
            found.shards.append(target.name)
            for task, count in zip(index.plan.tasks, index.plan.counts.sum(axis=0).tolist(), strict=True):
                found.samples[task] = found.samples.get(task, 0) + count
        sync_folder(to)


def _tests(part: Path, manifest: str, rows: Iterator[Writable], name: str) -> tuple[TaskSpec, int]:
    """A test set as a complete shard in the draft's folder, and that it can be scored as its manifest says."""
    try:
        spec, shard = read_manifest(manifest)
        made = _shards(part, part / "tests", rows, name, 10**9, {spec.name: spec})
        if len(made) > 1:
            raise Refused("tests", "the test set is larger than a shard may be")
        tar, index = made[0]
        for beside in ("", INDEXED):
            os.rename(tar.with_name(tar.name + beside), part / (shard + beside))
        check_tests(read_shard(FolderSource(str(part)), shard, part), spec, part)
    except (Refused, Wait) as fault:
        raise UserError(str(fault), where="--test", fix="Mend the test set, or how the task is judged") from None
    return spec, len(index)


def _shards(
    part: Path, folder: Path, rows: Iterator[Writable], name: str, per_shard: int, specs: Mapping[str, TaskSpec]
) -> list[tuple[Path, StreamIndex]]:
    """Shards of rows, each with its index beside it."""
    folder.mkdir()
    written = write_shards(part, folder, ((0, row) for row in rows), per_shard)
    made = []
    for table, note in zip(written.tables, written.notes, strict=True):
        table, _ = renumbered(table, 0, 0, 0)
        within = table["task"].unique().to_pylist()
        tasks = {task: specs.get(task, TaskSpec(task, "exact", "single_word")) for task in within}
        bare = index_of(folder, table, [note], tasks, one_each=has_one_each(table), n_chunks=1)
        tar = folder / note["path"]
        index = StreamIndex(folder, table, {**bare.meta, "stream": name})
        index.save(tar.with_name(tar.name + INDEXED))
        made.append((tar, index))
    return made


def _rows(file: Path, task: str, form: str | None, images: Path | None, spool: Spool) -> Iterator[Writable]:
    """The rows of a file; all of them can be used."""
    first = next(rows_of(file), None)
    if first is None:
        raise UserError("holds no rows", where=str(file))
    told = form or (format_of(first[2]) if isinstance(first[2], dict) else "streamcvit")
    root = file.parent if images is None else images
    reading = Reading(
        task or "row", told, root, spool=spool, amend=_with_id, task_of=lambda record: task or record.task
    )
    for row in reading.rows(file):
        if isinstance(row, Quarantined):
            hint = reading.hint()
            raise UserError(
                f"{row.detail}{f'. {hint}' if hint else ''}", fix="Mend the row, or name --task or --format"
            )
        yield row.stored


def _with_id(row: dict[str, Any]) -> dict[str, Any]:
    """A row without an id gets one from what it says, so that the same row pushed again is known."""
    if any(row.get(key) not in (None, "") for key in ("id", "question_id")):
        return row
    said = json.dumps(row, sort_keys=True, default=repr).encode()
    return {**row, "id": hashlib.sha256(said).hexdigest()[:20]}


def _rules_of(to: Path) -> dict[str, TaskSpec]:
    """The tasks of a stream, as its manifests have them."""
    found = {}
    for path in sorted(to.glob(f"*{MANIFEST}")):
        with contextlib.suppress(Refused, Wait, OSError, ValueError):
            spec, _ = read_manifest(path.read_text(encoding="utf-8"))
            found[spec.name] = spec
    return found


def _stream_name(to: Path) -> str:
    """Which stream this is; a folder that says nothing says it from now on."""
    if name := FolderSource(str(to)).stream():
        return name
    write_text(to / STREAM, json.dumps({"stream": f"{to.absolute().name}-{secrets.token_hex(4)}"}) + "\n")
    return FolderSource(str(to)).stream()


@contextlib.contextmanager
def _numbered(to: Path) -> Iterator[int]:
    """The number of the next shard, for as long as nobody else may take it."""
    with open(to / LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield 1 + max((int(found[1]) for path in os.listdir(to) if (found := _OURS.match(path))), default=0)
