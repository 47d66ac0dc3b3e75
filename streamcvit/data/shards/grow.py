"""An index that grows by whole chunks: a folder a chunk, each whole once it is there, read as one index.

`parts/000007/` holds the index of chunk 7 as any stream of one chunk has it, and in `eval/` the test sets of the tasks
that came with it. Nothing of a part ever changes, so what was read of the stream stays as it was read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamcvit.data.sample import TaskSpec
from streamcvit.data.shards.digest import table_digest
from streamcvit.data.shards.index import EVAL_FOLDER, PARTS, StreamIndex, index_of
from streamcvit.data.shards.scan import SCHEMA
from streamcvit.data.shards.write import sync_folder
from streamcvit.errors import UserError

IDENTITY = "identity"
"""A file in the stream's folder: what tells this stream from any other while it goes on."""
ENDED = "ended"
"""An empty file there: no chunk follows."""

Rows = tuple[pa.Table, Mapping[str, Any]]
"""Rows of one shard (`SCHEMA`; positions, chunks and shards do not matter), and its entry: path, bytes, sha256."""


class GrownIndex(StreamIndex):
    """The chunks so far as one index.

    Args:
        parts: reads them.
        identity: of the stream.
        ended: whether no chunk follows; then `digest` is that of all that is there, else it is `identity`.
    """

    def __init__(self, parts: Parts, table: pa.Table, meta: Mapping[str, Any], identity: str, ended: bool) -> None:
        self._parts, self._identity, self.follows = parts, identity, not ended
        self._count = len(parts.read)
        super().__init__(parts.folder, table, meta)

    def _told_apart(self) -> str:
        return self._identity if self.follows else table_digest(self.table, self.meta)

    @property
    def identity(self) -> str:
        """What tells the stream from any other, from its first chunk on."""
        return self._identity

    def grown(self) -> StreamIndex:
        """The index with the chunks that came since; this one, where none did."""
        if not self.follows:
            return self
        self._parts.look()
        return self._parts.index() if len(self._parts.read) > self._count or self._parts.ended else self

    def eval_index(self) -> StreamIndex:
        """The test sets of all tasks so far; their shards lie beneath the stream's folder."""
        return self._parts.tests(self._count)


class Parts:
    """The chunks of a stream that goes on, as far as they were read.

    Args:
        folder: of the stream, on this machine.

    Attributes:
        read: index and, where tasks came with it, test sets of each chunk so far.
        ended: whether no chunk follows these.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = os.fspath(folder)
        self.read: list[tuple[StreamIndex, StreamIndex | None]] = []
        self.ended = False
        self._joined = _Joined()

    def look(self) -> None:
        """Read the chunks that are new, and whether more may follow."""
        ended = Path(self.folder, ENDED).exists()  # asked first: no chunk follows it
        while (part := _place(self.folder, len(self.read))).is_dir():
            index = StreamIndex.open(part)
            self.read.append((index, index.eval_index() if index.meta["eval"] is not None else None))
        self.ended = ended

    def index(self) -> GrownIndex:
        """All chunks as one index.

        Raises:
            UserError: a part is damaged, or there is none.
        """
        self.look()
        try:
            identity = Path(self.folder, IDENTITY).read_text(encoding="utf-8")
        except (OSError, ValueError):
            identity = ""
        if not self.read or not identity:
            raise UserError("no chunk of this stream has arrived yet", where=self.folder, fix="Wait for its first one")
        self._joined.add([index for index, _ in self.read[self._joined.parts :]])
        tests = identity  # there are some; which ones, the parts' own digests vouch for
        if self.ended:
            tests = self.tests(len(self.read)).digest
        return GrownIndex(self, self._joined.table, {**self._joined.meta(), "eval": tests}, identity, self.ended)

    def tests(self, chunks: int) -> StreamIndex:
        """The test sets that came with the first so many chunks."""
        joined = _Joined(test=True)
        joined.add([test for _, test in self.read[:chunks] if test is not None])
        return StreamIndex(self.folder, joined.table, joined.meta())


def write_part(
    folder: Path,
    chunk: int,
    rows: Sequence[Rows],
    tasks: Mapping[str, TaskSpec],
    tests: Mapping[str, Rows],
) -> None:
    """Add a chunk to a stream that goes on, whole or not at all.

    Args:
        folder: of the stream.
        chunk: its number, from 0.
        rows: its samples in order, shard by shard.
        tasks: those of its samples, and those whose test sets come with it.
        tests: by task, the test sets that come with it.
    """
    place = _place(folder, chunk)
    draft = place.with_name(f".{place.name}")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / EVAL_FOLDER).mkdir(parents=True)
    evaluation = None
    if tests:
        table, shards = _behind(list(tests.values()), -1)
        own = {task: tasks[task] for task in tests}
        evaluation = index_of(draft / EVAL_FOLDER, table, shards, own, one_each=has_one_each(table))
        evaluation.save()
    table, shards = _behind(rows, 0)
    index = index_of(draft, table, shards, tasks, one_each=has_one_each(table), n_chunks=1, evaluation=evaluation)
    index.save()
    for path in (draft / EVAL_FOLDER, draft):
        sync_folder(path)
    draft.rename(place)
    sync_folder(place.parent)


def has_part(folder: Path, chunk: int) -> bool:
    """Whether a chunk is there."""
    return _place(folder, chunk).is_dir()


def _place(folder: str | os.PathLike, chunk: int) -> Path:
    return Path(folder, PARTS, f"{chunk:06d}")


def _behind(rows: Sequence[Rows], chunk: int) -> tuple[pa.Table, list[Mapping[str, Any]]]:
    """Rows of several shards as one table of one chunk."""
    tables, position = [], 0
    for number, (table, _) in enumerate(rows):
        table, position = renumbered(table, position, number, chunk)
        tables.append(table)
    return pa.concat_tables(tables).combine_chunks(), [note for _, note in rows]


def renumbered(table: pa.Table, position: int, shard: int, chunk: int) -> tuple[pa.Table, int]:
    """A table whose positions go on at `position`, and where they end."""
    own = table["position"].to_numpy()
    places = position + np.cumsum(np.diff(own, prepend=own[:1]) != 0)
    columns = {
        "position": places,
        "shard": np.full(len(places), shard, np.int32),
        "chunk": np.full(len(places), chunk, np.int32),
    }
    arrays = [pa.array(columns[name]) if name in columns else table[name] for name in SCHEMA.names]
    return pa.table(arrays, schema=SCHEMA), int(places[-1]) + 1 if len(places) else position


def has_one_each(table: pa.Table) -> bool:
    """Whether every sample of an index table has exactly one picture."""
    position = table["position"].to_numpy()
    return len(np.unique(position)) == len(position) and "" not in table["image_ext"].to_pylist()


class _Joined:
    """Parts as one stream, a chunk each; those that come are put behind what is there.

    Args:
        test: they are test sets, and of no chunk.

    Attributes:
        parts: how many there are.
        table: their rows.
    """

    def __init__(self, test: bool = False) -> None:
        self.test, self.parts, self.table = test, 0, SCHEMA.empty_table()
        self._samples, self._head = 0, dict[str, Any]()
        self._shards: list[dict[str, Any]] = []
        self._tasks: dict[str, dict[str, Any]] = {}
        self._chunks = np.zeros((0, 0), np.int64)

    def add(self, parts: Sequence[StreamIndex]) -> None:
        """Put parts behind those that are there."""
        for part in parts:
            self._head = self._head or {key: part.meta[key] for key in ("version", "seed", "format")}
            self._head["version"] = max(self._head["version"], part.meta["version"])
            for task in part.meta["tasks"]:
                self._tasks.setdefault(task["name"], task)
        column = {task: place for place, task in enumerate(self._tasks)}
        more = 0 if self.test else len(parts)
        self._chunks = np.pad(self._chunks, [(0, more), (0, len(column) - self._chunks.shape[1])])
        tables = [self.table]
        for number, part in enumerate(parts, self.parts):
            columns = {
                "position": part.table["position"].to_numpy() + self._samples,
                "shard": (part.table["shard"].to_numpy() + len(self._shards)).astype(np.int32),
                "chunk": np.full(part.table.num_rows, -1 if self.test else number, np.int32),
            }
            arrays = [pa.array(columns[name]) if name in columns else part.table[name] for name in SCHEMA.names]
            tables.append(pa.table(arrays, schema=SCHEMA))
            self._shards += part.meta["shards"]
            self._samples += len(part)
            if not self.test:
                plan = part.meta["plan"]
                self._chunks[number, [column[task] for task in plan["tasks"]]] = plan["chunks"][0]
        self.table, self.parts = pa.concat_tables(tables), self.parts + len(parts)

    def meta(self) -> dict[str, Any]:
        """Their metadata; test sets have none of their own."""
        return {
            **self._head,
            "shards": list(self._shards),
            "tasks": list(self._tasks.values()),
            "plan": {"tasks": list(self._tasks), "chunks": self._chunks.tolist()},
            "eval": None,
            "n_faults": 0,
            "faults": [],
        }
