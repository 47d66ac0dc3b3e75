"""Samples into WebDataset shards: written whole or not at all, the same bytes for the same samples."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import itertools
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from streamcvit.data.files.taskrows import Stored
from streamcvit.data.plan import Plan
from streamcvit.data.sample import MAX_PICTURES, Picture, Sample, TaskSpec
from streamcvit.data.shards.check import check_tasks
from streamcvit.data.shards.groups import MAX_SAMPLE
from streamcvit.data.shards.index import EVAL_FOLDER, INDEX_NAME, StreamIndex, index_of
from streamcvit.data.shards.scan import SCHEMA, Shard, scan_shards
from streamcvit.data.shards.tar import MAX_MEMBER
from streamcvit.errors import UserError

Writable = Sample | Stored
"""What can be written: a sample, or a row of a file, whose pictures are read when it is its turn."""
SHARD_BYTES = 256 << 20
"""A shard is closed once it holds this much, however few its samples."""
_NOTES, _LOCK = ".whole", ".lock"  # in a folder that can be gone on with: which shards are whole, and who writes


def write_stream(
    folder: str | os.PathLike,
    samples_by_chunk: Iterable[tuple[int, Writable]],
    tasks: Mapping[str, TaskSpec] | Iterable[TaskSpec],
    test: Mapping[str, Iterable[Writable]],
    seed: int,
    *,
    plan: Plan | None = None,
    samples_per_shard: int = 2000,
    check: Callable[[StreamIndex, StreamIndex], object] = lambda index, tests: None,
    resume: bool = False,
) -> StreamIndex:
    """Write a stream folder: shards, `index.parquet`, and the test sets in `eval/`.

    Everything goes into a hidden folder beside it and is renamed into place once it is on disk. A folder that is
    already there with the same content is kept.

    Args:
        folder: the stream folder.
        samples_by_chunk: (chunk, sample) in stream order; chunks ascend from 0. Read once, one sample at a time.
        tasks: what the samples' tasks ask.
        test: a test set for every task.
        seed: what the order was drawn with; noted in the index.
        plan: if given, what was written must agree with it.
        samples_per_shard: a new shard begins after so many samples.
        check: given the indexes of the stream and of its test sets before the folder is put in place; may refuse it.
        resume: keep the shards that are whole where writing ends early (killed, a full disk): writing the same samples
            again goes on behind them, unless these, or their picture files, have changed. Only for samples that are
            stored in files.

    Raises:
        UserError: a task without a test set, chunks out of order, two samples with one id, a sample of an unknown
            task, another count than the plan's, or another stream in the folder.
    """
    folder = Path(folder).absolute()
    specs = dict(tasks) if isinstance(tasks, Mapping) else {spec.name: spec for spec in tasks}
    for task in specs:
        if task not in test:
            raise UserError(f"task {task!r} has no test set", fix="Give test samples for every task of the stream")
    check_tasks(specs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    with part_folder(folder, resume) as part:
        evaluation = _write_eval(part, test, specs, seed, samples_per_shard)
        written = write_shards(part, part, samples_by_chunk, samples_per_shard)
        n_chunks = len(plan) if plan else None
        index = index_of(
            part, written.table(), written.notes, specs, one_each=written.one_each, seed=seed, n_chunks=n_chunks,
            evaluation=evaluation,
        )  # fmt: skip
        if plan is not None:
            _check_plan(plan, index)
        check(index, evaluation)
        index.save()
        digest = index.digest
        del index, written, evaluation  # of a million samples each is some hundred megabytes; they are read again
        return _put_in_place(part, folder, digest)


@contextlib.contextmanager
def part_folder(folder: Path, resume: bool) -> Iterator[Path]:
    """The hidden folder that a stream is written into: removed at the end, but for one that can be gone on with."""
    if not resume:
        part = Path(tempfile.mkdtemp(prefix=f"{_part_prefix(folder)}{os.getpid()}.", dir=folder.parent))
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return
    part = kept_part(folder)
    part.mkdir(exist_ok=True)
    with (part / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fix = "Wait for it, or name another folder"
            raise UserError("is being written by another process", where=str(folder), fix=fix) from None
        try:
            yield part
        except BaseException:
            if not (part / _NOTES).exists():  # nothing to go on from
                shutil.rmtree(part, ignore_errors=True)
            raise
        if part.exists():  # the stream was there already
            shutil.rmtree(part, ignore_errors=True)


def kept_part(folder: str | os.PathLike) -> Path:
    """Where a stream that is written with `resume` lies until it is whole."""
    folder = Path(folder).absolute()
    return folder.with_name(f".{folder.name}.part")


def _part_prefix(folder: Path) -> str:
    return f".{folder.name}.{platform.node()}."


def sweep(folder: Path) -> None:
    """Remove what writers of this folder left that were killed on this machine."""
    prefix = _part_prefix(folder)
    for left in folder.parent.glob(f"{glob.escape(prefix)}*"):
        writer = left.name.removeprefix(prefix).partition(".")[0]
        if writer.isdigit() and not psutil.pid_exists(int(writer)):
            shutil.rmtree(left, ignore_errors=True)


def _write_eval(
    part: Path, test: Mapping[str, Iterable[Writable]], specs: Mapping[str, TaskSpec], seed: int, per_shard: int
) -> StreamIndex:
    folder = part / EVAL_FOLDER
    folder.mkdir(exist_ok=True)

    def rows() -> Iterator[tuple[int, Writable]]:
        for task in specs:
            found = 0
            for sample in test[task]:
                if sample.task != task:
                    raise UserError(f"the test set of {task!r} holds a sample of {sample.task!r}")
                found += 1
                yield -1, sample
            if not found:
                raise UserError(
                    f"the test set of {task!r} is empty", fix="Give test samples for every task of the stream"
                )

    written = write_shards(part, folder, rows(), per_shard)
    index = index_of(folder, written.table(), written.notes, specs, one_each=written.one_each, seed=seed)
    index.save()
    return index


@dataclass
class _Written:
    """Shards that are whole: their part of the index, and what it notes of each."""

    tables: list[pa.Table] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    one_each: bool = True
    count: int = 0
    chunk: int = -1

    def add(self, table: pa.Table, note: dict[str, Any], one_each: bool, count: int) -> None:
        """Add a shard of so many samples."""
        chunks = table["chunk"].to_numpy()
        if len(chunks) and (np.diff(chunks, prepend=self.chunk).min() < 0):
            raise UserError("the samples' chunks do not ascend from 0")
        self.chunk = int(chunks[-1]) if len(chunks) else self.chunk
        self.tables.append(table)
        self.notes.append(note)
        self.one_each &= one_each
        self.count += count

    def table(self) -> pa.Table:
        """The whole index table; the parts are given up, column by column, so that little lies there twice."""
        parts = {name: [chunk for one in self.tables for chunk in one[name].chunks] for name in SCHEMA.names}
        self.tables.clear()
        whole = [pa.concat_arrays(parts.pop(field.name) or [pa.array([], field.type)]) for field in SCHEMA]
        return pa.table(whole, schema=SCHEMA)


def write_shards(part: Path, folder: Path, rows: Iterable[tuple[int, Writable]], per_shard: int) -> _Written:
    """Write the tars and scan them again; the one way an index comes about is from the bytes on disk.

    Shards that an earlier attempt left whole are kept as long as the samples are those they hold.
    """
    written, left = _Written(chunk=-1 if folder.name == EVAL_FOLDER else 0), iter(rows)
    left = _keep(part, folder, written, left)
    for old in folder.glob("shard-*.tar"):
        if old.name not in {note["path"] for note in written.notes}:
            old.unlink()
    while True:
        name = f"shard-{len(written.notes):06d}.tar"
        made = _write_shard(folder / name, left, written.count, per_shard)
        if not made.chunks:
            break
        scan = scan_shards([Shard(name, str(folder / name))])
        if scan.faults or len(scan) != len(made.chunks):
            raise UserError(
                f"the shards do not read back: {[str(fault) for fault in scan.faults[:3]]}", fix="Check the disk"
            )
        table = scan.table(made.chunks, written.count, len(written.notes))
        written.add(table, scan.shards[0], scan.one_each, len(made.chunks))
        if made.stamp:
            note = {**scan.shards[0], "count": len(made.chunks), "one_each": scan.one_each, "stamp": made.stamp}
            _note_shard(part, folder / name, table, note)
    return written


@dataclass
class _Shard:
    """What was written of a shard; `stamp` tells its samples again, and is empty where they are not stored in files."""

    chunks: list[int] = field(default_factory=list)
    stamp: str = ""


def _write_shard(path: Path, rows: Iterator[tuple[int, Writable]], position: int, per_shard: int) -> _Shard:
    """The next samples, as many as a shard holds; nothing where there are none left."""
    import webdataset as wds

    made, stamp = _Shard(), hashlib.sha256()
    room = per_shard - position % per_shard  # one that was closed for its bytes does not move the others
    with contextlib.ExitStack() as open_shard:
        stream = writer = None
        while len(made.chunks) < room and (stream is None or stream.tell() <= SHARD_BYTES):
            if (one := next(rows, None)) is None:
                break
            if stream is None:
                stream = open_shard.enter_context(path.open("wb"))
                open_shard.callback(_flush, stream)
                writer = open_shard.enter_context(wds.TarWriter(stream, encoder=False, mtime=0))
            chunk, sample = one
            text, pictures = _parts(sample)
            _check_sizes(sample, text, pictures)
            assert writer is not None
            writer.write({"__key__": f"{position + len(made.chunks):09d}", "json": text, **members(pictures)})
            made.chunks.append(chunk)
            if isinstance(sample, Stored):
                stamp.update(_stamp(chunk, sample))
    if made.chunks and isinstance(sample, Stored):
        made.stamp = stamp.hexdigest()
    return made


def _stamp(chunk: int, sample: Stored) -> bytes:
    own = sample.stamp()
    return f"{chunk} {len(own)}\n".encode() + own


def _parts(sample: Writable) -> tuple[bytes, tuple[Picture, ...]]:
    """A sample's text and pictures."""
    if (count := len(sample.places if isinstance(sample, Stored) else sample.pictures)) > MAX_PICTURES:
        raise UserError(f"sample {sample.sample_id!r:.200} has {count} pictures; at most {MAX_PICTURES} are allowed")
    if isinstance(sample, Stored):  # its text was judged when its file was read
        return sample.text, sample.load()
    try:
        return sample.readable_bytes(), sample.pictures
    except ValueError as fault:
        raise UserError(f"sample {sample.sample_id!r:.200} could not be read again: {fault}") from None


def _keep(
    part: Path, folder: Path, written: _Written, rows: Iterator[tuple[int, Writable]]
) -> Iterator[tuple[int, Writable]]:
    """Go past the samples of shards that an earlier attempt left whole; returns those that are to be written."""
    while (note := _noted(part, folder / f"shard-{len(written.notes):06d}.tar")) is not None:
        taken, stamp = [], hashlib.sha256()
        for one in itertools.islice(rows, note["count"]):
            taken.append(one)
            if isinstance(one[1], Stored):
                stamp.update(_stamp(one[0], one[1]))
        if len(taken) < note["count"] or stamp.hexdigest() != note["stamp"]:
            return itertools.chain(taken, rows)
        table = pq.read_table(_note_of(part, folder / note["path"]).with_suffix(".parquet"))
        written.add(table, {key: note[key] for key in ("path", "bytes", "sha256")}, note["one_each"], note["count"])
    return rows


def _note_of(part: Path, shard: Path) -> Path:
    return part / _NOTES / f"{shard.parent.name if shard.parent != part else 'stream'}-{shard.stem}.json"


def _note_shard(part: Path, shard: Path, table: pa.Table, note: dict[str, Any]) -> None:
    """Note that a shard is whole, beside its part of the index: first this, then that."""
    if not (part / _LOCK).exists():
        return
    path = _note_of(part, shard)
    path.parent.mkdir(exist_ok=True)
    for target, write in (
        (path.with_suffix(".parquet"), lambda draft: pq.write_table(table, draft)),
        (path, lambda draft: draft.write_text(json.dumps(note))),
    ):
        draft = target.with_suffix(".draft")
        write(draft)
        with draft.open("rb") as stream:
            os.fsync(stream.fileno())
        draft.replace(target)


def _noted(part: Path, shard: Path) -> dict[str, Any] | None:
    """What was noted of a shard that is whole; None: it is not."""
    try:
        note: dict[str, Any] = json.loads(_note_of(part, shard).read_text())
        return note if shard.stat().st_size == note["bytes"] else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_sizes(sample: Writable, text: bytes, pictures: Sequence[Picture]) -> None:
    sizes = [len(text), *(len(picture.data) for picture in pictures)]
    if max(sizes) > MAX_MEMBER:
        raise UserError(f"a part of sample {sample.sample_id!r:.200} is larger than {MAX_MEMBER} bytes")
    if sum(sizes) > MAX_SAMPLE:
        raise UserError(f"sample {sample.sample_id!r:.200} has {sum(sizes)} bytes; at most {MAX_SAMPLE} are allowed")


def members(pictures: Sequence[Picture]) -> dict[str, bytes]:
    """A sample's pictures by the ending of their members: `png`; `0.png`, `1.jpg` ... where there are several."""
    if len(pictures) == 1:
        return {pictures[0].ext: pictures[0].data}
    return {f"{place}.{picture.ext}": picture.data for place, picture in enumerate(pictures)}


def _flush(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _check_plan(plan: Plan, index: StreamIndex) -> None:
    written = index.plan
    wanted = {task: plan.counts[:, column] for column, task in enumerate(plan.tasks)}
    for column, task in enumerate(written.tasks):
        asked = wanted.pop(task, np.zeros(len(plan), dtype=np.int64))
        if len(written) != len(plan) or not np.array_equal(written.counts[:, column], asked):
            raise UserError(
                f"the samples of task {task!r} do not follow the plan", fix="Draw them with `order(plan, ...)`"
            )
    if left := [task for task, counts in wanted.items() if counts.any()]:
        raise UserError(f"the plan names the task {left[0]!r}, which the stream lacks")


def _put_in_place(part: Path, folder: Path, digest: str) -> StreamIndex:
    shutil.rmtree(part / _NOTES, ignore_errors=True)
    (part / _LOCK).unlink(missing_ok=True)
    for path in (part / EVAL_FOLDER, part):
        sync_folder(path)
    part.chmod(0o755)
    try:
        if not (folder / INDEX_NAME).exists():
            part.rename(folder)  # fails on a folder that is not empty
            sync_folder(folder.parent)
            return StreamIndex.open(folder)
    except OSError:
        if not (folder / INDEX_NAME).exists():
            raise UserError(
                "the folder is not empty and holds no stream", where=str(folder), fix="Choose another"
            ) from None
    index = StreamIndex.open(folder)
    if index.digest != digest:
        raise UserError("another stream lies here", where=str(folder), fix="Choose another folder, or remove it first")
    return index


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
