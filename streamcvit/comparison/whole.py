"""A comparison with all that stands beside it: baselines, published tables, what it says in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from streamcvit.comparison.answers import FAMILIES
from streamcvit.comparison.baselines import Baseline, baselines_of
from streamcvit.comparison.decide import Comparison, compare_runs
from streamcvit.comparison.printed import published_tables
from streamcvit.comparison.sheets import Sheet, sheets_of
from streamcvit.errors import UserError
from streamcvit.monitoring.record import Interval, RunRecord
from streamcvit.monitoring.report.tables import said_gap
from streamcvit.monitoring.runs import METRICS, told_task
from streamcvit.monitoring.verdict import Gap, task_key
from streamcvit.published import PublishedTable


@dataclass(frozen=True)
class Whole:
    """What `streamcvit compare` prints and writes."""

    found: Comparison
    baselines: dict[str, Baseline]
    tables: list[tuple[PublishedTable, Comparison]]

    @cached_property
    def sheets(self) -> list[Sheet]:
        """All tables."""
        return sheets_of(self.found, self.baselines, self.tables)

    @property
    def printed(self) -> list[Sheet]:
        """Those that a terminal shows: the main table holds the headline metrics already."""
        return [sheet for sheet in self.sheets if sheet.name != "metrics"]

    def lines(self) -> Iterator[str]:
        """What the headline metrics say, in sentences."""
        found = self.found
        for name in METRICS:
            order = found.rivals(name)
            if len(order) < 2:
                continue
            best, _ = found.ranks(name)
            gap = found.gap(name, order[0], order[1])
            if best is not None and gap is not None:
                yield f"{name}: {found.sides[best].label} is best: {said_gap(gap, found.sides[order[1]].label)}"
            elif gap is not None:
                told = said_gap(gap, found.sides[order[1]].label)
                yield f"{name}: none is best: {found.sides[order[0]].label} is {told}"

    def to_json(self) -> dict[str, Any]:
        """Everything, at full precision; null where there is none."""
        found = self.found
        return {
            "family": found.family,
            "methods": [
                {
                    "name": side.label,
                    "note": side.note,
                    "told_task": told_task(side.record),
                    "runs": [str(found.runs[run][1].folder) for run in side.runs],
                    "seeds": [found.runs[run][1].run.get("seed") for run in side.runs],
                    "index_digest": [found.runs[run][1].run.get("index_digest") for run in side.runs],
                    "metrics": {n: _value(found.value(n, place)) for n in found.metrics()},
                    "tasks": {task: _value(found.value(task_key(task), place)) for task in found.tasks},
                }
                for place, side in enumerate(found.sides)
            ],
            "best": {number.removeprefix("task:"): self._name(found.ranks(number)[0]) for number in found.numbers()},
            "second": {number.removeprefix("task:"): self._name(found.ranks(number)[1]) for number in found.numbers()},
            "differences": [
                {"number": number, "one": self._name(one), "other": self._name(other), **_gap(gap)}
                for (number, one, other), gap in found.gaps.items()
            ],
            "baselines": {task: {"chance": c, "majority": m} for task, (c, m) in self.baselines.items()},
            "published": [table.model_dump(mode="json") for table, _ in self.tables],
            "notes": found.notes,
        }

    def _name(self, side: int | None) -> str | None:
        return None if side is None else self.found.sides[side].label


def _value(entry: Interval | None) -> dict[str, float | None] | None:
    return None if entry is None else dict(zip(("value", "low", "high"), entry, strict=True))


def _gap(gap: Gap) -> dict[str, Any]:
    return {"value": gap.value, "low": gap.low, "high": gap.high, "decided": gap.decided, "pairs": gap.pairs}


def whole_comparison(folders: Sequence[Path], family: str = "strict", recipes: Sequence[Path] = ()) -> Whole:
    """Hold the runs in these folders against each other.

    Args:
        folders: method's run folders.
        family: whose points, a name of `FAMILIES`.
        recipes: pipelines whose published tables are wanted beside those that the runs carry.

    Raises:
        UserError: no such family or recipe, a folder that is no run's, answers that cannot be read.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}", where="--family", fix=f"Choose from {', '.join(FAMILIES)}")
    records = [RunRecord.load(folder) for folder in folders]
    tables = published_tables(records, recipes)
    found = compare_runs(records, family)
    ours = found
    if tables and family != "strcvit":
        ours = compare_runs(records, "strcvit", paired=False)
    return Whole(found, baselines_of((r for _, r in found.runs), family), [(table, ours) for table in tables])
