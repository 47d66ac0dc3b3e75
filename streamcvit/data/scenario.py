"""Which task gives how many samples to which chunk of the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError


@dataclass(frozen=True, eq=False)
class Plan:
    """Samples per chunk and task.

    Attributes:
        tasks: names, the columns.
        counts: integers [chunks, tasks].
        labels: optional, the published order: a column of `counts` for each position [samples].
    """

    tasks: tuple[str, ...]
    counts: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts, dtype=np.int64)
        if counts.ndim != 2 or counts.shape[1] != len(self.tasks):
            raise UserError(
                f"a plan of {len(self.tasks)} tasks has counts of shape {counts.shape}, not [chunks, tasks]"
            )
        if counts.min(initial=0) < 0:
            raise UserError("a plan has negative counts")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError("a plan names a task twice")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "counts", counts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_json() == other.to_json()

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def totals(self) -> dict[str, int]:
        """Samples of each task in the whole stream."""
        return dict(zip(self.tasks, self.counts.sum(axis=0).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """The plan as in `plan.json`: {"tasks": [...], "chunks": [[count per task] per chunk]}."""
        return {"tasks": list(self.tasks), "chunks": self.counts.tolist()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Plan:
        """Inverse of `to_json`."""
        tasks = tuple(record["tasks"])
        return cls(tasks, np.array(record["chunks"], dtype=np.int64).reshape(-1, len(tasks)))
