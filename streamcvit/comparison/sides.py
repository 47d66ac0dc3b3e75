"""Which runs are seeds of one method, and which runs learned the same stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.runs import TOLD, Records, compared, told_task

_WHERE = ("seed", "name", "out", "cluster", "monitor", "methods", "published", "seeds", "sweep")
"""Settings that do not make another method of a run."""


@dataclass(frozen=True)
class Side:
    """A method in a comparison: one run, or several seeds of it.

    Attributes:
        label: its name.
        runs: places of its runs in the compared order.
        record: its first run.
    """

    label: str
    runs: tuple[int, ...]
    record: RunRecord

    @property
    def note(self) -> str:
        """What it is, beside a name."""
        said = []
        if self.record.upper_bound:
            said.append("upper bound")
        elif self.record.untrained:
            said.append("learns nothing")
        if told_task(self.record):
            said.append(TOLD)
        if not self.record.finished:
            said.append(f"not finished: chunk {self.record.chunks_done} of {self.record.n_chunks}")
        if len(self.runs) > 1:
            said.append(f"{len(self.runs)} seeds")
        return ", ".join(said)


def ready(records: Sequence[RunRecord]) -> list[tuple[str, RunRecord]]:
    """Records as `compared` has them; what was only scored before any learning has one row, as if after one chunk."""
    return [(label, _one_row(record)) for label, record in compared(records)]


def _one_row(record: RunRecord) -> RunRecord:
    if record.n_chunks or not record.untrained or not record.tasks:
        return record
    scores = [{**row, "kind": "boundary", "chunk": 0} for row in record.scores if row["kind"] == "zero"]
    return replace(record, plan=np.ones((1, len(record.tasks)), np.int64), scores=scores, single=True)


def sides_of(runs: Records) -> list[Side]:
    """The methods among runs: finished runs with other seeds and nothing else that differs are one."""
    groups: dict[str, list[int]] = {}
    for place, (_, record) in enumerate(runs):
        key = _key(record) if record.finished else ""
        seeds = {runs[other][1].run.get("seed") for other in groups.get(key, ())}
        if not key or record.run.get("seed") in seeds:
            key = f"{key}#{place}"
        groups.setdefault(key, []).append(place)
    methods = [runs[places[0]][1].method for places in groups.values()]
    sides = []
    for places in groups.values():
        label, record = runs[places[0]]
        if len(places) > 1:
            label = record.method if methods.count(record.method) == 1 else f"{label} and {len(places) - 1} more"
        sides.append(Side(label, tuple(places), record))
    return sides


def _key(record: RunRecord) -> str:
    config: dict[str, Any] = {key: value for key, value in record.config.items() if key not in _WHERE}
    learner = {"settings": record.settings, "method": record.method, "base": record.run.get("base_digest")}
    return json.dumps([learner, config, record.tasks], sort_keys=True, default=str)


def pairs_of(one: Side, other: Side, runs: Records) -> list[tuple[int, int]]:
    """The runs of two methods that belong together: seed by seed, or the only two there are."""
    if len(one.runs) == len(other.runs) == 1:
        return [(one.runs[0], other.runs[0])]
    by_seed = {runs[place][1].run.get("seed"): place for place in other.runs}
    found = [(place, by_seed.get(runs[place][1].run.get("seed"))) for place in one.runs]
    return [(place, partner) for place, partner in found if partner is not None]


def apart(one: RunRecord, other: RunRecord) -> str:
    """Why two runs did not learn the same stream; empty where they did."""
    digests = one.run.get("index_digest"), other.run.get("index_digest")
    if one.tasks != other.tasks:
        return "their tasks differ"
    if None in digests or digests[0] != digests[1]:
        return "their streams differ"
    if not np.array_equal(one.plan, other.plan):
        return "their plans differ"
    if not np.array_equal(one.in_average, other.in_average):
        return "their averages hold other tasks"
    return ""
