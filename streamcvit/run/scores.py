"""What a run has scored so far, in memory that is set aside ahead, for the whole stream."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.evaluation.follow import published_form
from streamcvit.evaluation.interval import score_interval
from streamcvit.evaluation.matrix import Metric, summarise
from streamcvit.evaluation.paired import Difference, moved
from streamcvit.evaluation.wordings import by_wording

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


FAMILIES = ("strcvit", "strict")
"""Families of scorers, in the order of the rows."""

KINDS = ("zero", "boundary", "unseen")
"""What a row is of: before any learning, a task seen by then, a task that is not."""

DIGEST = 64  # characters of a SHA-256

_NUMBERS = ("version", "score", "following", "n", "low", "high", "seconds", "disagreements")
_ROW = np.dtype([(n, SCORES.field(n).type.to_pandas_dtype()) for n in _NUMBERS] + [("metric", "i2"), ("there", "?")])


def by_family(
    strict: tuple[str, np.ndarray], published: tuple[str | None, np.ndarray | None]
) -> tuple[dict[str, tuple[str, np.ndarray]], int]:
    """Family to its scorer and points, and how many samples the two judge differently.

    Args:
        strict, published: name of the scorer and points [n]; (None, None) where the task has no published one.
    """
    scorer, points = published
    if not scorer or points is None:
        return {"strict": strict}, 0
    return {"strict": strict, "strcvit": (scorer, points)}, int(np.sum(np.abs(strict[1] - points) > 1e-9))


class Scores:
    """Points of every test sample at every chunk boundary, and the rows of `scores.parquet` that follow from them.

    What a chunk takes (10 bytes a test sample, 20 with a published rule; 200 a task) is set aside for the whole stream,
    at the start or when a task is first scored, so that nothing which lasts comes to lie between what comes and goes.

    Args:
        index: the stream.
        counts: [T, tasks] samples of each task in each chunk, as the method reads the stream; T is 0 where it learns
            nothing.
        mif_tasks: the tasks that MIF holds; none: all.

    Raises:
        UserError: one of `mif_tasks` is no task of the stream.
    """

    def __init__(self, index: StreamIndex, counts: np.ndarray, mif_tasks: Collection[str] = ()) -> None:
        self._named = tuple(mif_tasks)
        if not index.follows and (unknown := [task for task in mif_tasks if task not in index.tasks]):
            fix = f"Name tasks of the stream: {', '.join(index.tasks)}"
            raise UserError(f"there is no task {unknown[0]!r:.80}", where="evaluation.mif_tasks", fix=fix)
        self.columns: dict[str, dict[str, int]] = defaultdict(dict)  # task -> sample id -> its place
        self._describe(index, counts)
        self._room = n_chunks = self.n_chunks
        # Row 0 of all is `ZERO`. Points are [1 + T, n], nan what was not scored.
        self._points: dict[str, np.ndarray] = {}
        self._published: dict[str, np.ndarray] = {}
        self._follows: dict[str, np.ndarray] = {}
        self._follows_published: dict[str, np.ndarray] = {}
        self._wording: dict[str, np.ndarray] = {}  # task -> number of each sample's wording; -1: not known
        self._wordings: dict[str, int] = {}
        self._rows = np.zeros((1 + n_chunks, len(self.tasks), len(FAMILIES)), _ROW)
        self._digests = np.zeros((1 + n_chunks, len(self.tasks)), f"S{DIGEST}")
        self._metrics: list[str] = []

    def _describe(self, index: StreamIndex, counts: np.ndarray) -> None:
        self.mif_tasks = [task for task in self._named if task in index.tasks] or list(index.tasks)
        self.form = {task: spec.follow for task, spec in index.tasks.items()}
        self.tasks, self.counts, self.n_chunks = list(index.tasks), counts, len(counts)
        self._seen = np.cumsum(counts, axis=0) > 0
        self.in_average = [task for task, spec in index.tasks.items() if spec.in_average]
        known = set(self.columns)
        if known.issuperset(index.tasks):  # as after most chunks of a stream that goes on
            return
        test = index.eval_index()
        for task, name in zip(test.task_of, test.sample_id_of, strict=True):
            if task not in known:
                self.columns[task].setdefault(name, len(self.columns[task]))

    def grow(self, index: StreamIndex, counts: np.ndarray) -> None:
        """Go on with an index that has grown by chunks and tasks; room for chunks is doubled where there is none."""
        self._describe(index, counts)
        tasks = len(self.tasks) - self._rows.shape[1]
        chunks = max(self.n_chunks, 2 * self._room) - self._room if self.n_chunks > self._room else 0
        self._room += chunks
        for name, more in (("_rows", (chunks, tasks, 0)), ("_digests", (chunks, tasks))):
            old = getattr(self, name)
            larger = np.zeros([size + grown for size, grown in zip(old.shape, more, strict=True)], old.dtype)
            larger[tuple(map(slice, old.shape))] = old
            setattr(self, name, larger)
        for held in (self._points, self._published, self._follows, self._follows_published) if chunks else ():
            for task, values in held.items():
                held[task] = np.pad(values, [(0, chunks), (0, 0)], constant_values=np.nan)

    def digest(self, chunk: int, task: str) -> str | None:
        """Of the weights that gave a task's predictions at a boundary; None where it is not scored."""
        at = 1 + chunk, self.tasks.index(task)
        return self._digests[at].decode() if self._rows["there"][at].any() else None

    def take(self, table: pa.Table) -> None:
        """Add a task's predictions at a boundary, in place of those that other weights gave there.

        Args:
            table: as `streamcvit.run.predictions` gives it.

        Raises:
            ValueError, KeyError: the table is not of this run.
        """
        meta = json.loads(table.schema.metadata[b"streamcvit"])
        chunk, task, digest = meta["chunk"], meta["task"], meta["digest"].encode("ascii")
        places = [self.columns[task][name] for name in table["sample_id"].to_pylist()]
        points = table["score"].to_numpy()
        follows = table["follows"].to_numpy(zero_copy_only=False).astype(np.float16)
        if not ZERO <= chunk < self.n_chunks or len(digest) > DIGEST:
            raise ValueError(f"chunk {chunk} of {self.n_chunks}, or a digest of {len(digest)} characters")
        kept = [(self._points, np.float64, points), (self._follows, np.float16, follows)]
        published = table["score_strcvit"].to_numpy() if meta["published"] else None
        families, differ = by_family((meta["metric"], points), (meta["published"], published))
        if published is not None:
            kept.append((self._published, np.float64, published))
            if "follows_strcvit" in table.column_names and not table["follows_strcvit"].null_count:
                form = table["follows_strcvit"].to_numpy(zero_copy_only=False).astype(np.float16)
                kept.append((self._follows_published, np.float16, form))
        for held, dtype, values in kept:
            if task not in held:
                held[task] = np.full((1 + self._room, len(self.columns[task])), np.nan, dtype)
            held[task][1 + chunk] = np.nan
            held[task][1 + chunk, places] = values
        if "instruction" in table.column_names and not table["instruction"].null_count:
            coded = table["instruction"].combine_chunks().dictionary_encode()
            known = [self._wordings.setdefault(text, len(self._wordings)) for text in coded.dictionary.to_pylist()]
            codes = self._wording.setdefault(task, np.full(len(self.columns[task]), -1, np.int32))
            codes[places] = np.array(known, np.int32)[coded.indices.to_numpy()]
        at = 1 + chunk, self.tasks.index(task)
        self._digests[at] = digest
        self._rows[at] = np.zeros((), _ROW)
        for family, (metric, values) in families.items():
            _, low, high = score_interval(values)[0]
            row = self._rows[at][FAMILIES.index(family)]
            for name, value in (
                ("version", meta["version"]),
                ("score", np.mean(values)),
                ("following", np.mean(follows, dtype=np.float64)),
                ("n", len(values)),
                ("low", low),
                ("high", high),
                ("seconds", meta["seconds"]),
                ("disagreements", differ),
                ("metric", self._metric(metric)),
                ("there", True),
            ):
                row[name] = value

    def points(self, task: str, until: int) -> np.ndarray:
        """A task's points at the boundaries up to `until`, [1 + until, n]; nan what was not scored."""
        if task not in self._points:
            return np.full((1 + until, 0), np.nan)
        return self._points[task][1 : 2 + until]

    def means(self, chunk: int) -> dict[str, float]:
        """Task to its score at a boundary, in points, of the tasks scored there that are seen by then (`ZERO`: all)."""
        here = self._scored()[1 + chunk]
        scored = zip(self.tasks, here if chunk == ZERO else here & self._seen[chunk], strict=True)
        return {task: float(np.nanmean(self._points[task][1 + chunk])) for task, there in scored if there}

    def changes(self, chunk: int) -> dict[str, Difference]:
        """Task to what its score did since the boundary before, of the tasks in `means` that were scored there."""
        return {} if chunk == ZERO else self._since(chunk, lambda earlier: len(earlier) - 1)

    def losses(self, chunk: int) -> dict[str, Difference]:
        """Task to what its score did since its best boundary before, of the tasks in `means` that have one."""
        return self._since(chunk, lambda earlier: int(np.nanargmax(earlier[1:])) + 1) if chunk > 0 else {}

    def _since(self, chunk: int, choose: Callable[[np.ndarray], int]) -> dict[str, Difference]:
        """What scores did since the row that is chosen by a task's means [1 + chunk] at the rows before."""
        found = {}
        for task in self.means(chunk):
            points, place = self._points[task], self.tasks.index(task)
            scored = np.asarray(self._rows["there"][: 1 + chunk, place].any(axis=-1))
            scored[1:] &= self._seen[:chunk, place]
            if not scored.any() or chunk > 0 and not scored[1:].any():
                continue
            earlier = np.full(1 + chunk, np.nan)
            earlier[scored] = np.nanmean(points[: 1 + chunk][scored], axis=1)
            if scored[row := choose(earlier)]:
                found[task] = moved(points[row], points[1 + chunk])
        return found

    def table(self) -> pa.Table:
        """The rows of `scores.parquet`, by chunk, task and family."""
        chunk, task, family = np.nonzero(self._rows["there"])
        rows = self._rows[chunk, task, family]
        seen = np.concatenate([np.zeros((1, len(self.tasks)), bool), self._seen])[chunk, task]
        columns = {
            **{name: np.ascontiguousarray(rows[name]) for name in _NUMBERS},
            "digest": pa.array(self._digests[chunk, task], pa.binary()),
            "chunk": chunk - 1,
            "task": _names(task, self.tasks),
            "kind": _names(np.where(chunk == 0, 0, 2 - seen), KINDS),
            "metric": _names(rows["metric"], self._metrics),
            "family": _names(family, FAMILIES),
        }
        return pa.table({name: columns[name] for name in SCORES.names}).cast(SCORES)

    def summary(self, draws: int, seed: int, own: Mapping[str, Metric] | None = None) -> dict[str, Any]:
        """The content of `summary.json`, up to the last chunk that has scores, the first one at least.

        Args:
            draws, seed: of the bootstrap.
            own: metrics of one's own, by name.
        """
        there, counts = self._scored(), self.counts
        if only_zero := self.n_chunks == 0:
            rows, counts = slice(0, 1), np.ones((1, len(self.tasks)), int)
        else:
            last = int(np.flatnonzero(there.any(axis=-1)).max(initial=1))
            rows, counts = slice(1, 1 + last), counts[:last]

        def scored(held: dict[str, np.ndarray], task: str) -> np.ndarray:
            if task not in held:
                return np.full((len(counts), 0), np.nan)
            here = held[task][rows]
            known = ~np.isnan(here).all(axis=0)  # a sample that never can be read is none
            return here if known.all() else here[:, known]

        def family(
            name: str, held: dict[str, np.ndarray], follows: dict[str, np.ndarray], forms: dict[str, str]
        ) -> Any:
            column = [self.tasks.index(task) for task in forms]
            zero = {task: held[task][0] for task in forms if task in held and there[0, self.tasks.index(task)]}
            found = summarise(
                {task: scored(held, task) for task in forms},
                {task: scored(follows, task) for task in forms},
                counts[:, column],
                in_average=[task for task in self.in_average if task in forms],
                draws=draws,
                seed=seed,
                zero_shot=None if only_zero or not zero else {t: p[~np.isnan(p)] for t, p in zero.items()},
                family=name,
                in_mif=[task for task in self.mif_tasks if task in forms],
                forms={form: [t for t in forms if forms[t] == form] for form in dict.fromkeys(forms.values()) if form},
                own=own if name == "strict" else None,
            )
            following = {
                "tasks": [task for task in self.mif_tasks if forms.get(task)],
                "forms": {form: value.to_json() for form, value in found.forms.items()},
            }
            if name == "strict":
                told = [task for task in self.mif_tasks if task in self._follows and task in self._wording]
                following |= by_wording(
                    {task: self._follows[task][rows].astype(np.float64) for task in told},
                    {task: self._points[task][rows] for task in told},
                    self._wording,
                    list(self._wordings),
                    self.form,
                    np.cumsum(counts[:, [self.tasks.index(task) for task in told]], axis=0) > 0,
                )
            return found.to_json() | {"following": following}

        whole = family("strict", self._points, self._follows, self.form)
        if own:
            whole["own_metrics"] = list(own)
        if forms := {task: published_form(self.form[task]) or "" for task in self.tasks if task in self._published}:
            whole["published"] = family("strcvit", self._published, self._follows_published, forms)
        return whole

    def _scored(self) -> np.ndarray:
        """bool [1 + T, tasks]."""
        return np.asarray(self._rows["there"].any(axis=-1))

    def _metric(self, name: str) -> int:
        if name not in self._metrics:
            self._metrics.append(name)
        return self._metrics.index(name)


def _names(numbers: np.ndarray, names: Sequence[str]) -> pa.Array:
    """names[numbers] as strings."""
    return pa.array(names, pa.string()).take(pa.array(numbers.astype(np.int32)))
