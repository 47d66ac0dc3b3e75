"""Reading a run folder: what a run has left behind so far, for the report, the status command and the live page.

A folder may belong to a run that is still going on: files may be missing, the last line of `events.jsonl` may be half
written and a Parquet file may have no footer yet. Whatever cannot be read is left out and named in `problems`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from streamcvit.errors import UserError
from streamcvit.monitoring.learned import Ledger, empty_ledger
from streamcvit.monitoring.probes import read_probes

Interval = tuple[float, float | None, float | None]
"""Value with the two ends of its 95 % interval, in points; the ends are None where no interval is known."""

UPPER_BOUNDS = ("joint", "multitask")
UNTRAINED = ("zero-shot", "zero_shot", "zeroshot")
"""Names that say what a method is, where its configuration does not."""

_TYPES = (
    dict.fromkeys(("position", "chunk", "version", "n", "disagreements"), pa.int64())
    | dict.fromkeys(("task", "kind", "family", "metric", "digest", "sample_id", "prediction", "reference"), pa.string())
    | dict.fromkeys(("loss", "score", "score_strcvit", "following", "low", "high", "seconds"), pa.float64())
    | dict.fromkeys(("correct", "follows"), pa.bool_())
)
"""Columns of the files of a run folder."""


@dataclass
class RunRecord:
    """One run folder, read.

    Attributes:
        folder: where it lies.
        run: `run.json` (name, method, seed, versions, machine, started, finished ...); empty where missing.
        config: `config.yaml`; empty where missing.
        tasks: task names in the plan's order.
        plan: samples of each task in each chunk, int64 [T, N].
        scores: rows of `scores.parquet` as dictionaries, the newest of each (chunk, task, kind, family) only.
        summary: `summary.json`; empty where missing.
        probes: rows of `probes.jsonl`, scores between chunk ends, in order; never part of the matrix.
        events: lines of `events.jsonl` in order.
        ledger: every learned sample.
        in_average: whether AP and its kin hold a task, bool [N].
        evaluation_seconds: seconds that each evaluation of a task took, float64 [evaluations] by task.
        problems: what could not be read, one sentence each.
        single: whether its one evaluation stands for every chunk of another run's stream (`compared`).
    """

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    plan: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    scores: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    probes: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    ledger: Ledger = field(default_factory=empty_ledger)
    in_average: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    evaluation_seconds: dict[str, np.ndarray] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    single: bool = False

    @classmethod
    def load(
        cls,
        folder: Path | str,
        rows: Callable[[pa.Table], pa.Table] = lambda table: table,
        kept: dict[Path, pa.Table] | None = None,
    ) -> RunRecord:
        """Read a run folder, finished or not.

        Args:
            folder: a method's run folder.
            rows: which of the rows of `scores.parquet` to take; all, unless told.
            kept: files of the ledger that were read before, which never change; those that are new are added.

        Raises:
            UserError: there is no such folder, or it is not a run's.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError("there is no such run folder", where=str(folder), fix="Check the path")
        if not any((folder / name).exists() for name in ("run.json", "plan.json", "events.jsonl")):
            raise UserError(
                "this is not a run folder (no run.json)", where=str(folder), fix="Give the folder that a run wrote"
            )
        record = cls(folder)
        record.run = record._object("run.json", json.loads)
        record.config = record._object("config.yaml", yaml.safe_load)
        record.summary = record._object("summary.json", json.loads)
        record._read_plan()
        record._read_scores(rows)
        record._read_ledger({} if kept is None else kept)
        record.probes, said = read_probes(folder)
        record.problems += filter(None, [said])
        record.events = list(record._read_events())
        return record

    # -- what kind of run it is ------------------------------------------------------------------------------------

    @property
    def method(self) -> str:
        """Name of the method that learned."""
        return str(self.run.get("method") or self.run.get("name") or self.folder.name)

    @property
    def run_name(self) -> str:
        """Name of the run that the method belongs to."""
        name = str(self.run.get("name") or self.folder.name)
        return name.removesuffix(f"/{self.method}") or name

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration of this run's method alone; empty where the file does not tell methods apart."""
        methods = self.config.get("methods")
        found = methods.get(self.method) if isinstance(methods, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def upper_bound(self) -> bool:
        """Whether it sees all tasks at once: shown as what is possible, never as the best of a comparison."""
        return self.method in UPPER_BOUNDS or self.settings.get("order") == "joint"

    @property
    def untrained(self) -> bool:
        """Whether it learns nothing, and so forgets nothing: left out where forgetting is compared."""
        return self.method in UNTRAINED or self.settings.get("adapter") == "none"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.run.get("finished"))

    @property
    def n_chunks(self) -> int:
        """Chunks of the whole stream, learned or not."""
        return len(self.plan)

    @property
    def chunks_done(self) -> int:
        """Chunks that were learned to their end."""
        return len({event["chunk"] for event in self.chunk_events()})

    @property
    def total_samples(self) -> int:
        """Samples of the whole stream."""
        return int(self.plan.sum())

    @property
    def position(self) -> int:
        """How much of the stream is behind: all of each chunk that was learned to its end, quarantined samples too, and
        what of the next one is in the ledger."""
        done = [event["chunk"] for event in self.chunk_events() if 0 <= event["chunk"] < self.n_chunks]
        return int(self.plan[done].sum() + (~np.isin(self.ledger.chunk, done)).sum())

    # -- scores ----------------------------------------------------------------------------------------------------

    def matrix(self, family: str = "strict", column: str = "score", unseen: bool = False) -> np.ndarray:
        """A[t, i]: score of task i after chunk t, in points, float64 [T, N]; NaN where it was not evaluated.

        Scores of tasks before they are seen stand in it only where they are asked for (`unseen`).

        `column` may also be `low`, `high` (ends of the interval), `following` (0..1), `n` or `disagreements`.
        """
        table = np.full((self.n_chunks, len(self.tasks)), np.nan)
        place = {task: i for i, task in enumerate(self.tasks)}
        summary = self.summary if family == "strict" else self.summary.get("published", {})
        if column == "score" and family == summary.get("family"):
            columns = summary.get("tasks", [])
            for chunk, row in zip(summary.get("chunks", []), summary.get("matrix", []), strict=False):
                for task, value in zip(columns, row, strict=False):
                    if value is not None and task in place and 0 <= chunk < self.n_chunks:
                        table[chunk, place[task]] = value
        for row in self.scores:
            if row["kind"] in ("boundary", "unseen") and row["family"] == family and row["task"] in place:
                value = row.get(column)
                if value is not None and 0 <= row["chunk"] < self.n_chunks:
                    table[row["chunk"], place[row["task"]]] = value
        return table if unseen else np.where(self.seen(), table, np.nan)

    def seen(self) -> np.ndarray:
        """Whether a task had at least one sample in chunks 0..t, bool [T, N]."""
        return np.cumsum(self.plan, axis=0) > 0

    def ap_by_chunk(self) -> np.ndarray:
        """AP_t: mean score of the tasks seen by chunk t, in points, float64 [T]; NaN where not known yet."""
        curve = np.full(self.n_chunks, np.nan)
        if self.summary.get("ap_by_chunk"):
            for chunk, value in zip(self.summary.get("chunks", []), self.summary["ap_by_chunk"], strict=False):
                if value is not None and 0 <= chunk < self.n_chunks:
                    curve[chunk] = value
            return curve
        return self.mean_over_seen(self.matrix(), self.in_average)

    def mean_over_seen(self, table: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """Mean over the seen tasks (those of them in `among`, bool [N]) of each row of a [T, N] table.

        NaN unless every one of them is known.
        """
        seen = self.seen() if among is None else self.seen() & among
        known = np.where(seen, ~np.isnan(table), True).all(axis=1) & seen.any(axis=1)
        total = np.where(seen, np.nan_to_num(table), 0.0).sum(axis=1)
        return np.where(known, total / np.maximum(seen.sum(axis=1), 1), np.nan)

    def metric(self, name: str, family: str = "strict") -> Interval | None:
        """A metric of `summary.json` with its 95 % interval; None where it is not known (yet).

        AP and MAP of the strict family are also known, without interval, from the scores alone.
        """
        summary = self.summary if family == "strict" else self.summary.get("published", {})
        entry = summary.get("metrics", {}).get(name)
        if isinstance(entry, dict) and entry.get("value") is not None:
            return float(entry["value"]), entry.get("low"), entry.get("high")
        if family != "strict":
            return None
        curve = self.ap_by_chunk()
        known = curve[~np.isnan(curve)]
        if name in ("ap", "map") and len(known):
            return float(known[-1] if name == "ap" else known.mean()), None, None
        return None

    def last(self, task: str) -> Interval | None:
        """A task's score after the last chunk with its 95 % interval; None where it has none."""
        if task not in self.tasks or not self.n_chunks:
            return None
        ends = (float(self.matrix(column=name)[-1, self.tasks.index(task)]) for name in ("score", "low", "high"))
        value, low, high = (None if np.isnan(end) else end for end in ends)
        return None if value is None else (value, low, high)

    def forgetting(self) -> dict[str, float]:
        """Best earlier score less the score now, in points, of each evaluated task the stream has shown.

        0 for a task with no earlier score; negative for one that stands higher than ever.
        """
        if self.summary.get("forgetting"):
            return {task: float(value) for task, value in self.summary["forgetting"].items() if value is not None}
        table, seen, lost = self.matrix(), self.seen(), {}
        for i, task in enumerate(self.tasks):
            column = table[seen[:, i], i] if len(table) else table[:, 0]
            column = column[~np.isnan(column)]
            if len(column):
                lost[task] = float(column[:-1].max() - column[-1]) if len(column) > 1 else 0.0
        return lost

    def chunk_events(self) -> list[dict[str, Any]]:
        """The newest `chunk` event of each chunk, in order of chunks (a restart may report a chunk twice)."""
        newest = {event["chunk"]: event for event in self.events if event.get("event") == "chunk" and "chunk" in event}
        return [newest[chunk] for chunk in sorted(newest)]

    @property
    def skipped(self) -> dict[str, int]:
        """Steps that were not taken, by what was not finite."""
        found: Counter[str] = Counter()
        for event in self.chunk_events():
            counts = event.get("skipped")
            for reason, count in counts.items() if isinstance(counts, dict) else ():
                found[reason] += count if isinstance(count, int) else 0
        return dict(found)

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """All events of one kind (`quarantine`, `restart` ...), in order."""
        return [event for event in self.events if event.get("event") == kind]

    def predictions(self, version: int, task: str) -> list[dict[str, Any]]:
        """Every prediction of an evaluation: sample_id, prediction, reference, score and more; [] where missing."""
        # A task's name comes from data: one with a path in it must not lead out of the run folder.
        if Path(task).name != task:
            return []
        for name in (str(version), f"{version:08d}", *(["zero"] if version == 0 else [])):
            path = self.folder / "predictions" / name / f"{task}.parquet"
            if path.is_file() and (table := self._table(path, ("sample_id", "prediction", "reference"))) is not None:
                return table.to_pylist()
        return []

    # -- reading ---------------------------------------------------------------------------------------------------

    def _object(self, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            content = parse((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, OSError, yaml.YAMLError) as error:
            self.problems.append(f"{name} cannot be read ({_said(error)})")
            return {}
        if not isinstance(content, dict):
            self.problems.append(f"{name} does not hold an object")
            return {}
        return content

    def _table(self, path: Path, required: Sequence[str], also: Sequence[str] = ()) -> pa.Table | None:
        """A Parquet file, known columns as `_TYPES` has them; None, and a problem, where it is damaged.

        In the `required` columns every row has a value, in those that it must `also` have a row may lack one.
        """
        try:
            # A third of `pq.read_table`'s time for a small file, and a ledger is many of those.
            source = pq.ParquetFile(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
            table = source.read(use_threads=False)
            if missing := sorted({*required, *also} - set(table.column_names)):
                raise ValueError(f"no column {', '.join(missing)}")
            table = table.cast(pa.schema([(f.name, _TYPES.get(f.name, f.type)) for f in table.schema]))
            table.validate(full=True)  # a flipped bit may have made other types, or text that is none
            if lacking := [name for name in required if table[name].null_count]:
                raise ValueError(f"rows without {', '.join(lacking)}")
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            self.problems.append(f"{path.relative_to(self.folder)} cannot be read ({_said(error)})")
            return None
        return table

    def _read_plan(self) -> None:
        plan = self._object("plan.json", json.loads)
        try:
            tasks = [str(task) for task in plan.get("tasks", [])]
            chunks = np.asarray(plan.get("chunks", []), dtype=np.int64)
            self.plan, counted = chunks.reshape(len(chunks), len(tasks)), plan.get("in_average", tasks)
            self.in_average = np.array([task in counted for task in tasks], dtype=bool)
            self.tasks = tasks
        except (TypeError, ValueError):
            self.problems.append("plan.json does not hold tasks and one row of their counts a chunk")
            self.plan, self.in_average = np.zeros((0, 0), dtype=np.int64), np.zeros(0, dtype=bool)

    def _read_scores(self, rows: Callable[[pa.Table], pa.Table]) -> None:
        table = self._table(self.folder / "scores.parquet", ("version", "chunk", "task", "kind", "family"), ("score",))
        if table is None:
            return
        if "seconds" in table.column_names:
            judged = table.filter((pc.field("family") == "strict") & pc.field("seconds").is_valid())
            task, seconds = (judged[name].to_numpy() for name in ("task", "seconds"))
            self.evaluation_seconds = {name: seconds[task == name] for name in dict.fromkeys(task)}
        newest: dict[tuple, dict[str, Any]] = {}
        for row in rows(table).to_pylist():
            newest[row["chunk"], row["task"], row["kind"], row["family"]] = row
        self.scores = list(newest.values())

    def _read_ledger(self, kept: dict[Path, pa.Table]) -> None:
        names = ("position", "chunk", "task", "loss", "correct")
        parts = [p for p in (self.folder / "ledger").glob("*.parquet") if re.fullmatch(r"[0-9]+(-[0-9]+)?", p.stem)]
        # `<step>-<epoch>.parquet`; what a learner that was cut off left beside the newer one's is overruled by it.
        parts.sort(key=lambda path: [int(n) for n in f"{path.stem}-0".split("-")[1::-1]])
        for path in parts:
            if path not in kept and (table := self._table(path, names)) is not None:
                kept[path] = table.select(names)
        tables = [kept[path] for path in parts if path in kept]
        if not tables:
            return
        table = pa.concat_tables(tables, promote_options="permissive")
        position, chunk = (table[name].to_numpy().astype(np.int64) for name in ("position", "chunk"))
        task = table["task"].combine_chunks().dictionary_encode()
        # After a crash a position may stand in an old file and again in a newer one: the newest is what counts.
        _, first_reversed = np.unique(position[::-1], return_index=True)
        rows = len(position) - 1 - first_reversed
        self.ledger = Ledger(
            position[rows],
            chunk[rows],
            np.asarray(task.dictionary.to_pylist(), dtype=object)[task.indices.to_numpy()[rows]],
            np.nan_to_num(table["loss"].to_numpy().astype(np.float64)[rows], nan=np.nan, posinf=np.nan, neginf=np.nan),
            table["correct"].to_numpy().astype(bool)[rows],
        )

    def _read_events(self) -> Iterator[dict[str, Any]]:
        try:
            lines = (self.folder / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
            except ValueError:
                if number < len(lines):  # the last line may be in the writing
                    self.problems.append(f"events.jsonl line {number} is not JSON")
                continue
            if isinstance(event, dict):
                yield event


def _said(error: Exception) -> str:
    """An error's first line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
