"""The chunk plan: how many samples each task gives to each chunk of the stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.errors import UserError


@dataclass(frozen=True, eq=False)
class Plan:
    """Samples per chunk and task: a small table to print, plot and edit.

    Attributes:
        tasks: names, the columns. A name such as `gqa+vqav2` is a group: tasks the plan does not tell apart
            (`scenario.resolve_groups` shares its samples out).
        counts: integers [chunks, tasks].
        labels: where an order is published, the column of every position, integers [samples]; otherwise None and the
            order within a chunk is drawn.

    Raises:
        UserError: shapes that do not fit, negative counts, a task named twice, labels that contradict the counts.
    """

    tasks: tuple[str, ...]
    counts: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        counts = np.array(self.counts, dtype=np.int64)
        if counts.ndim != 2 or counts.shape[1] != len(self.tasks):
            raise UserError(
                f"a plan of {len(self.tasks)} tasks has counts of shape {counts.shape}, not [chunks, tasks]"
            )
        if counts.min(initial=0) < 0:
            raise UserError("a plan has negative counts")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError("a plan names a task twice")
        counts.setflags(write=False)
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "counts", counts)
        if self.labels is not None:
            labels = np.array(self.labels, dtype=np.int64)
            object.__setattr__(self, "labels", labels)
            if len(labels) != len(self.chunk_of) or not np.array_equal(self._recount(labels), counts):
                raise UserError("a plan's order does not hold what its counts say")

    def _recount(self, labels: np.ndarray) -> np.ndarray:
        counts = np.zeros_like(self.counts)
        if labels.min(initial=0) >= 0 and labels.max(initial=0) < len(self.tasks):
            np.add.at(counts, (self.chunk_of, labels), 1)
        return counts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_json(order=True) == other.to_json(order=True)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def chunk_of(self) -> np.ndarray:
        """The chunk of every position, integers [samples]."""
        return np.repeat(np.arange(len(self.counts)), self.counts.sum(axis=1))

    @property
    def totals(self) -> dict[str, int]:
        """Samples of each task in the whole stream."""
        return dict(zip(self.tasks, self.counts.sum(axis=0).tolist(), strict=True))

    def describe(self) -> list[dict[str, Any]]:
        """One row a chunk, ready to print: `chunk`, `samples`, then each task's count; the last row sums up."""
        rows = [*enumerate(self.counts), ("all", self.counts.sum(axis=0))]
        return [
            {"chunk": chunk, "samples": int(row.sum()), **dict(zip(self.tasks, row.tolist(), strict=True))}
            for chunk, row in rows
        ]

    def to_json(self, order: bool = False) -> dict[str, Any]:
        """The plan as in `plan.json`: {"tasks": [...], "chunks": [[count per task] per chunk]}.

        Args:
            order: add "labels", the published order, where there is one.
        """
        record: dict[str, Any] = {"tasks": list(self.tasks), "chunks": self.counts.tolist()}
        if order and self.labels is not None:
            record["labels"] = self.labels.tolist()
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Plan:
        """Inverse of `to_json`."""
        tasks, labels = tuple(record["tasks"]), record.get("labels")
        counts = np.array(record["chunks"], dtype=np.int64).reshape(-1, len(tasks))
        return cls(tasks, counts, None if labels is None else np.array(labels, dtype=np.int64))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, one line a chunk, to be read and edited by hand."""
        record = self.to_json(order=True)
        chunks = ",\n  ".join(json.dumps(row) for row in record.pop("chunks"))
        head = json.dumps({"tasks": record["tasks"]}, ensure_ascii=False)[:-1]
        tail = f',\n "labels": {json.dumps(record["labels"])}' if "labels" in record else ""
        Path(path).write_text(f'{head},\n "chunks": [\n  {chunks}\n ]{tail}}}\n')

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` or a person wrote.

        Raises:
            UserError: the file is not there or is no plan.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except OSError as fault:
            raise UserError(f"the plan cannot be read: {fault.strerror}", where=str(path)) from None
        except UserError as fault:
            raise UserError(fault.what, where=str(path)) from None
        except (ValueError, TypeError, KeyError, AttributeError) as fault:
            fix = 'Write {"tasks": [names], "chunks": [[a count for each task] for each chunk]}'
            raise UserError(f"this is no plan: {fault}", where=str(path), fix=fix) from None
