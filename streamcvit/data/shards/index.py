"""`index.parquet`: which sample lies where. With it a position of the stream is one seek away."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamcvit.data import locations, strictjson
from streamcvit.data.plan import Plan
from streamcvit.data.sample import MAX_PICTURES, TaskSpec
from streamcvit.data.shards.check import DAMAGE, MAX_INDEX, check_meta, check_tasks, read_parquet
from streamcvit.data.shards.digest import canonical, table_digest
from streamcvit.data.shards.groups import MAX_SAMPLE
from streamcvit.data.shards.records import Reading, Records
from streamcvit.data.shards.scan import OURS, PICTURE_COLUMNS, SCHEMA, ShardScan
from streamcvit.data.shards.tar import MAX_MEMBER, Fault
from streamcvit.errors import UserError

INDEX_NAME = "index.parquet"
EVAL_FOLDER = "eval"
PARTS = "parts"
"""In the folder of a stream that goes on: a folder a chunk, each with an index of its own (`grow`)."""
VERSIONS = (1, 2)
"""1: every sample has exactly one picture. 2: any number. The lowest that holds a stream is written, so that one of
one-picture samples has the digest that it always had."""
FAULTS_KEPT = 100
"""Faults of others' shards that the index names; it counts all."""
LOSSES = ("incomplete", "json", "label", "member", "order", "task")
"""Reasons of faults each of which cost a sample, or a member that may have been one."""

_META_KEY = b"streamcvit"
_DIGEST_KEY = b"streamcvit_digest"
_REBUILD = "Write the stream again with `streamcvit shard`, or give its folder (a run's is stream/ below it)"


class StreamIndex:
    """The table of a stream folder.

    Attributes:
        folder: path or URL of the stream folder.
        table: one row a picture, in stream order (`SCHEMA`; offsets and sizes in bytes).
        meta: version, seed, format, shards [{path, bytes, sha256}], tasks, plan, eval (digest of the test sets'
            index or null), n_faults and the first faults found while indexing, first those that cost a sample; where
            there is any, n_lost of the latter, and reading: what tasks add to the records (`Reading`).
        digest: SHA-256 (hex) of the table and the metadata; names of folders and shards are no part of it.
        task_of, chunk_of: numpy arrays [n]: task names (str objects), chunks (int32, -1 in test sets).
        pictures_of: numpy array [n]: how many pictures each sample has.
        first_row: numpy array [n]: the row of its first picture; its other pictures have the rows behind it.
    """

    def __init__(self, folder: str | os.PathLike, table: pa.Table, meta: Mapping[str, Any]) -> None:
        self.folder = os.fspath(folder)
        self.table = table
        self.meta = dict(meta)
        self.digest = self._told_apart()
        self.tasks: dict[str, TaskSpec] = {task["name"]: TaskSpec(**task) for task in self.meta["tasks"]}
        position = table["position"].to_numpy()
        self.first_row = np.flatnonzero(np.diff(position, prepend=-1)) if len(position) else position
        self.pictures_of = np.diff(self.first_row, append=table.num_rows)
        self.pictures_of[self.texts("image_ext")[self.first_row] == ""] = 0
        self.task_of = self.texts("task")
        self.chunk_of = self.column("chunk")

    @cached_property
    def sample_id_of(self) -> np.ndarray:
        """The samples' ids, str objects [n]: made when they are first asked for."""
        return np.array(self._of_samples("sample_id").to_pylist(), dtype=object)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> StreamIndex:
        """Read the index of a stream folder (path or URL).

        Raises:
            UserError: there is none, it is damaged, or another version wrote it.
        """
        folder = locations.check_location(os.fspath(folder))
        where = locations.join(folder, INDEX_NAME)
        if os.path.isdir(os.path.join(folder, PARTS)):
            from streamcvit.data.shards.grow import Parts

            return Parts(folder).index()
        if not locations.is_url(where) and not os.path.isfile(where):
            raise UserError("there is no stream here: index.parquet is missing", where=folder, fix=_REBUILD)
        return cls.read(where, folder)

    @classmethod
    def read(cls, where: str, folder: str) -> StreamIndex:
        """Read an index file of shards that lie beneath `folder`; errors as `open`."""
        with locations.open_binary(where) as stream:
            raw = stream.read(MAX_INDEX + 1)
        if len(raw) > MAX_INDEX:
            raise UserError(f"the index is larger than {MAX_INDEX} bytes", where=where, fix=_REBUILD)
        try:
            table, notes = read_parquet(raw)
            meta = strictjson.loads(notes[_META_KEY])
            if meta["version"] not in VERSIONS:
                raise UserError(
                    f"index version {meta['version']}; this release reads {VERSIONS}", where=where, fix=_REBUILD
                )
            check_meta(meta)
            index = cls(folder, table, meta)
            index._check()
            written = notes.get(_DIGEST_KEY, b"").decode()
        except UserError as fault:
            raise UserError(fault.what, where=fault.where or where, fix=fault.fix) from None
        except DAMAGE as fault:
            raise UserError(f"the index is damaged: {fault}", where=where, fix=_REBUILD) from None
        if written != index.digest:
            raise UserError("the index is damaged: its digest does not match", where=where, fix=_REBUILD)
        return index

    def copy_to(self, folder: str | os.PathLike) -> StreamIndex:
        """The same index in a local folder, naming the shards by the URLs they keep lying at; test sets included.

        Raises:
            UserError: another stream lies in the folder.
        """
        folder = Path(folder)
        meta = {
            **self.meta,
            "shards": [
                {**note, "path": location} for note, location in zip(self.meta["shards"], self.shards, strict=True)
            ],
        }
        copy = StreamIndex(folder, self.table, meta)
        if (folder / INDEX_NAME).exists() and StreamIndex.open(folder).digest != self.digest:
            raise UserError("another stream lies here", where=str(folder), fix="Choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        if self.meta["eval"] is not None:
            self.eval_index().copy_to(folder / EVAL_FOLDER)
        copy.save()
        return copy

    def save(self, path: Path | None = None) -> None:
        """Write `index.parquet` into the folder, or to a path: complete or not at all."""
        notes = {_META_KEY: canonical(self.meta), _DIGEST_KEY: self.digest.encode()}
        path = path or Path(self.folder, INDEX_NAME)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with part.open("wb") as stream:
            table = self.table.replace_schema_metadata(notes)
            pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)

    def __len__(self) -> int:
        return len(self.first_row)

    def _told_apart(self) -> str:
        return table_digest(self.table, self.meta)

    follows = False
    """Whether more may come (`streamcvit.data.shards.grow`)."""

    @property
    def identity(self) -> str:
        """What stays the same of the stream, whatever comes: the digest of one that is all there."""
        return self.digest

    def grown(self) -> StreamIndex:
        """The index with what came since it was read: this one, where nothing did."""
        return self

    def __reduce__(self) -> tuple:
        # Actors reopen the folder: megabytes of columns need not travel.
        return (StreamIndex.open, (self.folder,))

    def column(self, name: str) -> np.ndarray:
        """A numeric column as numpy array: [rows] of pictures', [n] of the others."""
        return self._of_samples(name).to_numpy()

    def texts(self, name: str) -> np.ndarray:
        """A column of few different texts, likewise, as str objects."""
        column = self._of_samples(name).combine_chunks().dictionary_encode()
        return np.array([*column.dictionary.to_pylist(), ""], dtype=object)[column.indices.to_numpy()]

    def _of_samples(self, name: str) -> pa.ChunkedArray:
        column = self.table[name]
        if name in PICTURE_COLUMNS or len(self) == self.table.num_rows:
            return column
        return column.take(pa.array(self.first_row))

    def records(self) -> Records:
        """What reads its records."""
        readings = self.meta.get("reading", {})
        return Records(self.meta["format"], {task: Reading.from_json(added) for task, added in readings.items()})

    @property
    def plan(self) -> Plan:
        """What the chunks hold, as counted in the shards."""
        return Plan.from_json(self.meta["plan"])

    @property
    def n_chunks(self) -> int:
        """Chunks in the stream; 0 for test sets."""
        return len(self.meta["plan"]["chunks"])

    @property
    def shards(self) -> list[str]:
        """Paths or URLs of the shards."""
        return [locations.join(self.folder, shard["path"]) for shard in self.meta["shards"]]

    def chunk_bounds(self, chunk: int) -> tuple[int, int]:
        """Positions [start, stop) of a chunk."""
        if not 0 <= chunk < self.n_chunks:
            raise UserError(f"there is no chunk {chunk}; the stream has {self.n_chunks}", where=self.folder)
        start, stop = np.searchsorted(self.chunk_of, [chunk, chunk + 1])
        return int(start), int(stop)

    def seen_tasks(self, chunk: int) -> list[str]:
        """Tasks with at least one sample in chunks 0..chunk, in the order of `tasks`."""
        seen = set(self.task_of[: self.chunk_bounds(chunk)[1]])
        return [task for task in self.tasks if task in seen]

    def eval_index(self) -> StreamIndex:
        """The test sets' index; its rows lie task by task.

        Raises:
            UserError: the stream has none, or another than it was written with.
        """
        if self.meta["eval"] is None:
            raise UserError("the stream has no test sets", where=self.folder, fix="Write it again with test samples")
        folder = f"{self.folder.rstrip('/')}/{EVAL_FOLDER}"
        index = StreamIndex.open(folder)
        if index.digest != self.meta["eval"]:
            raise UserError("the test sets are not those the stream was written with", where=folder, fix=_REBUILD)
        return index

    def fault_lines(self) -> list[str]:
        """What was found when the shards of others were indexed, for a person; empty where nothing was."""
        lost = [fault for fault in self.meta["faults"] if fault["reason"] in LOSSES]
        other = [fault for fault in self.meta["faults"] if fault["reason"] not in LOSSES]
        n_lost = self.meta.get("n_lost", len(lost))
        lines = []
        for faults, count, what in (
            (lost, n_lost, "lost when the shards were indexed: no samples, or members of none"),
            (other, self.meta["n_faults"] - n_lost, "members passed over that no sample needs"),
        ):
            if count:
                first = [f"  {fault['shard']}: byte {fault['offset']}: {fault['detail']}" for fault in faults[:3]]
                lines += [f"{count} {what}; the first:", *first]
        return lines

    def _check(self) -> None:
        rows, samples = self.table.num_rows, len(self)
        if any(self.table[name].null_count for name in SCHEMA.names):
            raise ValueError("values are missing")
        position = self.table["position"].to_numpy()
        starts = np.array_equal(position[self.first_row], np.arange(samples)) and (samples > 0) == (rows > 0)
        if not starts or np.diff(position).min(initial=0) < 0:
            raise ValueError("positions are not 0, 1, 2, ...")
        if self.meta["version"] == 1 and not (self.pictures_of == 1).all():
            raise ValueError("of version 1, but not every sample has one picture")
        if rows > samples:
            self._check_rows(position)
        lowest = 0 if self.n_chunks else -1
        if samples and (
            np.diff(self.chunk_of).min(initial=0) < 0
            or self.chunk_of.min() < lowest
            or self.chunk_of.max() >= max(self.n_chunks, 0)
        ):
            raise ValueError("chunks are out of order")
        shard = self.column("shard")
        if samples and not 0 <= shard.min() <= shard.max() < len(self.meta["shards"]):
            raise ValueError("rows name shards that are not listed")
        ends = np.array([note["bytes"] for note in self.meta["shards"]], dtype=np.int64)
        for name, place in (("json", shard), ("image", self.table["shard"].to_numpy())):
            sizes, offsets = self.column(f"{name}_size"), self.column(f"{name}_offset")
            if samples and not (
                sizes.min() >= 0
                and sizes.max() <= MAX_MEMBER
                and offsets.min() >= 0
                and (offsets <= ends[place] - sizes).all()
            ):
                raise ValueError(f"{name} members lie outside their shards")
        if unknown := set(self.task_of) - set(self.tasks):
            raise ValueError(f"rows name tasks that are not listed: {sorted(unknown)}")
        if pc.count_distinct(self._of_samples("sample_id")).as_py() < samples:
            raise ValueError("two samples have one id")
        if self.n_chunks and self.plan.counts.sum() != samples:
            raise ValueError("the plan does not count the rows")
        self.shards  # noqa: B018  raises where a name leads out of the folder

    def _check_rows(self, position: np.ndarray) -> None:
        """Where samples have several rows: these say the same of the sample, and are no more than it may have."""
        again = pa.array(np.diff(position, prepend=-1) == 0)
        for name in SCHEMA.names:
            here = self.table[name].combine_chunks()
            if (
                name not in PICTURE_COLUMNS
                and not pc.all(pc.equal(here[1:], here[:-1]).filter(again[1:]), min_count=0).as_py()
            ):
                raise ValueError(f"rows of one position differ in {name}")
        if pc.any(pc.equal(self.table["image_ext"].combine_chunks(), "").filter(again)).as_py():
            raise ValueError("a sample has a picture and none")
        ends = np.append(0, np.cumsum(self.column("image_size")))[np.append(self.first_row, len(position))]
        if self.pictures_of.max() > MAX_PICTURES or np.diff(ends).max() > MAX_SAMPLE:
            raise ValueError("a sample has more pictures than are allowed")


def build_index(
    folder: str | os.PathLike,
    scan: ShardScan,
    chunks: Sequence[int] | np.ndarray,
    tasks: Mapping[str, TaskSpec],
    *,
    seed: int = 0,
    n_chunks: int | None = None,
    records: Records = OURS,
    evaluation: StreamIndex | None = None,
) -> StreamIndex:
    """An index (not yet saved) of scanned shards; `chunks` [n] gives each sample's chunk, -1 in test sets.

    Raises:
        UserError: a sample names a task that is not in `tasks`, or two samples have one id.
    """
    return index_of(
        folder, scan.table(chunks), scan.shards, tasks, one_each=scan.one_each, faults=scan.faults, seed=seed,
        n_chunks=n_chunks, records=records, evaluation=evaluation,
    )  # fmt: skip


def index_of(
    folder: str | os.PathLike,
    table: pa.Table,
    shards: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, TaskSpec],
    *,
    one_each: bool,
    faults: Sequence[Fault] = (),
    seed: int = 0,
    n_chunks: int | None = None,
    records: Records = OURS,
    evaluation: StreamIndex | None = None,
) -> StreamIndex:
    """As `build_index`, of an index table; `one_each`: every sample has exactly one picture."""
    check_tasks(tasks)
    first = np.flatnonzero(np.diff(table["position"].to_numpy(), prepend=-1)) if len(table) else np.zeros(0, np.int64)
    samples = table.select(["task", "sample_id", "chunk", "shard", "json_offset"])
    if len(first) < len(table):
        samples = samples.take(pa.array(first))

    def where(row: int) -> str:
        place = samples.slice(row, 1).to_pylist()[0]
        return f"{shards[place['shard']]['path']}: byte {place['json_offset']}"

    coded = samples["task"].combine_chunks().dictionary_encode()
    named = coded.dictionary.to_pylist()
    if unknown := sorted(set(named) - set(tasks)):
        row = int(np.flatnonzero(coded.indices.to_numpy() == named.index(unknown[0]))[0])
        fix = "Name every task (`streamcvit index` takes them by --task or --tasks FILE)"
        raise UserError(f"a sample of unknown task {unknown[0]!r:.80}", where=where(row), fix=fix)
    if pc.count_distinct(samples["sample_id"]).as_py() < len(first):
        ids = samples["sample_id"].to_pylist()
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        row = len(ids) - 1 - ids[::-1].index(twice)
        raise UserError(f"two samples have the id {twice!r:.80}", where=where(row), fix="Give every sample its own id")
    column = {task: place for place, task in enumerate(tasks)}
    chunks = samples["chunk"].to_numpy()
    size = max(n_chunks or 0, int(chunks.max(initial=-1)) + 1)
    counts = np.zeros((size, len(tasks)), dtype=np.int64)
    if size:
        of = np.array([column[name] for name in named], dtype=np.int64)
        np.add.at(counts, (chunks, of[coded.indices.to_numpy()]), 1)
    lost = [fault for fault in faults if fault.reason in LOSSES]
    other = [fault for fault in faults if fault.reason not in LOSSES]
    meta = {
        "version": 1 if one_each else 2,
        "seed": seed,
        "format": records.format,
        "shards": list(shards),
        "tasks": [dataclasses.asdict(spec) for spec in tasks.values()],
        "plan": Plan(tuple(tasks), counts).to_json(),
        "eval": evaluation.digest if evaluation else None,
        "n_faults": len(faults),
        "faults": [dataclasses.asdict(fault) for fault in (lost + other)[:FAULTS_KEPT]],
    }
    if lost:
        meta["n_lost"] = len(lost)
    if readings := {task: added for task, reading in records.readings.items() if (added := reading.to_json())}:
        meta["reading"] = readings
    return StreamIndex(folder, table, meta)
