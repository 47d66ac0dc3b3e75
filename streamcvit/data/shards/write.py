"""Samples into WebDataset shards: written whole or not at all, the same bytes for the same samples."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from streamcvit.data.plan import Plan
from streamcvit.data.sample import MAX_PICTURES, Sample, TaskSpec
from streamcvit.data.shards.check import check_tasks
from streamcvit.data.shards.groups import MAX_SAMPLE
from streamcvit.data.shards.index import EVAL_FOLDER, INDEX_NAME, StreamIndex, build_index
from streamcvit.data.shards.scan import Shard, ShardScan, scan_shards
from streamcvit.data.shards.tar import MAX_MEMBER
from streamcvit.errors import UserError

SHARD_BYTES = 256 << 20
"""A shard is closed once it holds this much, however few its samples."""


def write_stream(
    folder: str | os.PathLike,
    samples_by_chunk: Iterable[tuple[int, Sample]],
    tasks: Mapping[str, TaskSpec] | Iterable[TaskSpec],
    test: Mapping[str, Iterable[Sample]],
    seed: int,
    *,
    plan: Plan | None = None,
    samples_per_shard: int = 2000,
    check: Callable[[StreamIndex, StreamIndex], object] = lambda index, tests: None,
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
    _sweep(folder)
    part = Path(tempfile.mkdtemp(prefix=f"{_part_prefix(folder)}{os.getpid()}.", dir=folder.parent))
    try:
        evaluation = _write_eval(part / EVAL_FOLDER, test, specs, seed, samples_per_shard)
        scan, chunks = _write_shards(part, samples_by_chunk, samples_per_shard)
        steps = np.diff(chunks, prepend=0)
        if len(chunks) and (chunks.min() < 0 or steps.min() < 0):
            raise UserError("the samples' chunks do not ascend from 0", where=str(folder))
        n_chunks = len(plan) if plan else None
        index = build_index(part, scan, chunks, specs, seed=seed, n_chunks=n_chunks, evaluation=evaluation)
        if plan is not None:
            _check_plan(plan, index)
        check(index, evaluation)
        index.save()
        return _put_in_place(part, folder, index.digest)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part_prefix(folder: Path) -> str:
    return f".{folder.name}.{platform.node()}."


def _sweep(folder: Path) -> None:
    """Remove what writers of this folder left that were killed on this machine."""
    prefix = _part_prefix(folder)
    for left in folder.parent.glob(f"{glob.escape(prefix)}*"):
        writer = left.name.removeprefix(prefix).partition(".")[0]
        if writer.isdigit() and not psutil.pid_exists(int(writer)):
            shutil.rmtree(left, ignore_errors=True)


def _write_eval(
    folder: Path, test: Mapping[str, Iterable[Sample]], specs: Mapping[str, TaskSpec], seed: int, per_shard: int
) -> StreamIndex:
    folder.mkdir()

    def rows() -> Iterator[tuple[int, Sample]]:
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

    scan, chunks = _write_shards(folder, rows(), per_shard)
    index = build_index(folder, scan, chunks, specs, seed=seed)
    index.save()
    return index


def _write_shards(folder: Path, rows: Iterable[tuple[int, Sample]], per_shard: int) -> tuple[ShardScan, np.ndarray]:
    """Write the tars and scan them again; the one way an index comes about is from the bytes on disk."""
    import webdataset as wds

    chunks: list[int] = []
    names: list[str] = []
    with ExitStack() as open_shard:
        stream = writer = None
        for position, (chunk, sample) in enumerate(rows):
            if stream is None or position % per_shard == 0 or stream.tell() > SHARD_BYTES:
                open_shard.close()
                names.append(f"shard-{len(names):06d}.tar")
                stream = open_shard.enter_context((folder / names[-1]).open("wb"))
                open_shard.callback(_flush, stream)
                writer = open_shard.enter_context(wds.TarWriter(stream, encoder=False, mtime=0))
            _check_number(sample)
            try:
                text = sample.readable_bytes()
            except ValueError as fault:
                raise UserError(f"sample {sample.sample_id!r:.200} could not be read again: {fault}") from None
            _check_sizes(sample, text)
            assert writer is not None
            writer.write({"__key__": f"{position:09d}", "json": text, **members(sample)})
            chunks.append(chunk)
    scan = scan_shards(Shard(name, str(folder / name)) for name in names)
    if scan.faults or len(scan) != len(chunks):
        raise UserError(
            f"the shards do not read back: {[str(fault) for fault in scan.faults[:3]]}", fix="Check the disk"
        )
    return scan, np.array(chunks, dtype=np.int32)


def _check_number(sample: Sample) -> None:
    if (count := len(sample.pictures)) > MAX_PICTURES:
        raise UserError(f"sample {sample.sample_id!r:.200} has {count} pictures; at most {MAX_PICTURES} are allowed")


def _check_sizes(sample: Sample, text: bytes) -> None:
    sizes = [len(text), *(len(picture.data) for picture in sample.pictures)]
    if max(sizes) > MAX_MEMBER:
        raise UserError(f"a part of sample {sample.sample_id!r:.200} is larger than {MAX_MEMBER} bytes")
    if sum(sizes) > MAX_SAMPLE:
        raise UserError(f"sample {sample.sample_id!r:.200} has {sum(sizes)} bytes; at most {MAX_SAMPLE} are allowed")


def members(sample: Sample) -> dict[str, bytes]:
    """A sample's pictures by the ending of their members: `png`; `0.png`, `1.jpg` ... where there are several."""
    if len(sample.pictures) == 1:
        return {sample.pictures[0].ext: sample.pictures[0].data}
    return {f"{place}.{picture.ext}": picture.data for place, picture in enumerate(sample.pictures)}


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
    for path in (part / EVAL_FOLDER, part):
        _sync_folder(path)
    part.chmod(0o755)
    try:
        if not (folder / INDEX_NAME).exists():
            part.rename(folder)  # fails on a folder that is not empty
            _sync_folder(folder.parent)
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


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
