"""What a run has scored so far, held in memory that a long stream does not make grow by more than its numbers."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamcvit.data.index import StreamIndex
from streamcvit.evaluation.bootstrap import bootstrap_mean
from streamcvit.evaluation.matrix import summarise

ZERO = -1
"""The chunk number of an evaluation before any learning."""

SCORES = pa.schema(
    [
        ("version", pa.int64()),
        ("digest", pa.string()),
        ("chunk", pa.int32()),
        ("task", pa.string()),
        ("kind", pa.string()),
        ("metric", pa.string()),
        ("family", pa.string()),
        ("score", pa.float64()),
        ("following", pa.float64()),
        ("n", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("seconds", pa.float64()),
        ("disagreements", pa.int64()),
    ]
)


class Scores:
    """Points of every test sample at every chunk boundary, and the rows of `scores.parquet` that follow from them.

    A task's points take 10 bytes a test sample and chunk of the stream, set aside when it is first scored.

    Args:
        index: the stream.
        n_chunks: of the stream as the method reads it; 0 where it learns nothing.
    """

    def __init__(self, index: StreamIndex, n_chunks: int) -> None:
        self.tasks, self.n_chunks = list(index.tasks), n_chunks
        self.in_average = [task for task, spec in index.tasks.items() if spec.in_average]
        self.digests: dict[tuple[int, str], str] = {}
        """(chunk, task) to the digest of the weights that gave its predictions."""
        self.columns: dict[str, dict[str, int]] = defaultdict(dict)  # task -> sample id -> its place
        test = index.eval_index()
        for task, name in zip(test.task_of, test.sample_id_of, strict=True):
            self.columns[task].setdefault(name, len(self.columns[task]))
        # [1 + T, n]; row 0 is `ZERO`, nan what was not scored.
        self._points: dict[str, np.ndarray] = {}
        self._follows: dict[str, np.ndarray] = {}
        self._table = SCORES.empty_table()
        self._new: list[dict[str, Any]] = []

    def take(self, table: pa.Table) -> None:
        """Add a task's predictions at a boundary, in place of those that other weights gave there.

        Args:
            table: as `streamcvit.cluster.predictions` gives it.

        Raises:
            ValueError, KeyError: the table is not of this run.
        """
        meta = json.loads(table.schema.metadata[b"streamcvit"])
        # Interned: a name or digest is held once, not by row.
        chunk, task, digest = meta["chunk"], sys.intern(meta["task"]), sys.intern(meta["digest"])
        places = [self.columns[task][name] for name in table["sample_id"].to_pylist()]
        points = table["score"].to_numpy()
        follows = table["follows"].to_numpy(zero_copy_only=False).astype(np.float16)
        if not ZERO <= chunk < self.n_chunks:
            raise ValueError(f"chunk {chunk} of {self.n_chunks}")
        families = {"strict": (meta["metric"], points)}
        differ = 0
        if meta["published"]:
            published = table["score_strcvit"].to_numpy()
            families["strcvit"] = (meta["published"], published)
            differ = int(np.sum(np.abs(points - published) > 1e-9))
        for held, dtype, values in ((self._points, np.float64, points), (self._follows, np.float16, follows)):
            if task not in held:
                held[task] = np.full((1 + self.n_chunks, len(self.columns[task])), np.nan, dtype)
            held[task][1 + chunk] = np.nan
            held[task][1 + chunk, places] = values
        if (chunk, task) in self.digests:
            self._forget(chunk, task)
        self.digests[chunk, task] = digest
        for family, (metric, values) in families.items():
            low, high = bootstrap_mean(values)
            self._new.append(
                {
                    **{key: meta[key] for key in ("version", "digest", "chunk", "task", "seconds")},
                    "kind": "zero" if chunk == ZERO else "boundary",
                    "metric": metric,
                    "family": family,
                    "score": float(np.mean(values)),
                    "following": float(np.mean(follows, dtype=np.float64)),
                    "n": len(values),
                    "low": low,
                    "high": high,
                    "disagreements": differ,
                }
            )

    def means(self, chunk: int) -> dict[str, float]:
        """Task to its score at a boundary, in points, of the tasks scored there."""
        rows = {task: points[1 + chunk] for task, points in self._points.items()}
        return {task: float(np.nanmean(rows[task])) for task in self.tasks if (chunk, task) in self.digests}

    def table(self) -> pa.Table:
        """The rows of `scores.parquet`, by chunk, task and family."""
        if self._new:
            merged = pa.concat_tables([self._table, pa.Table.from_pylist(self._new, SCORES)])
            self._new = []
            number = pc.index_in(merged["task"], value_set=pa.array(self.tasks))
            order = pc.sort_indices(
                merged.append_column("number", number),
                sort_keys=[("chunk", "ascending"), ("number", "ascending"), ("family", "ascending")],
            )
            self._table = merged.take(order).combine_chunks()
        return self._table

    def summary(self, counts: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
        """The content of `summary.json`, up to the last chunk that has scores, the first one at least.

        Args:
            counts: [T, tasks] samples of each task in each chunk.
            draws, seed: of the bootstrap.
        """
        if only_zero := self.n_chunks == 0:
            rows, counts = slice(0, 1), np.ones((1, len(self.tasks)), int)
        else:
            last = max([0, *(chunk for chunk, _ in self.digests)])
            rows, counts = slice(1, 2 + last), counts[: 1 + last]

        def scored(held: dict[str, np.ndarray], task: str) -> np.ndarray:
            if task not in held:
                return np.full((len(counts), 0), np.nan)
            here = held[task][rows]
            known = ~np.isnan(here).all(axis=0)  # a sample that never can be read is none
            return here if known.all() else here[:, known]

        zero = {task: self._points[task][0] for chunk, task in self.digests if chunk == ZERO}
        return summarise(
            {task: scored(self._points, task) for task in self.tasks},
            {task: scored(self._follows, task) for task in self.tasks},
            counts,
            in_average=self.in_average,
            draws=draws,
            seed=seed,
            zero_shot=None if only_zero or not zero else {t: p[~np.isnan(p)] for t, p in zero.items()},
        ).to_json()

    def _forget(self, chunk: int, task: str) -> None:
        self._new = [row for row in self._new if (row["chunk"], row["task"]) != (chunk, task)]
        stale = pc.and_(pc.equal(self._table["chunk"], chunk), pc.equal(self._table["task"], task))
        self._table = self._table.filter(pc.invert(stale))
