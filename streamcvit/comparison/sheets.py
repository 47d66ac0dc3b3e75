"""The tables of a comparison as rows of cells, for whatever writes them down (`writers`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamcvit.comparison.baselines import Baseline
from streamcvit.comparison.decide import Comparison
from streamcvit.evaluation.names import theirs
from streamcvit.monitoring.record import Interval
from streamcvit.monitoring.runs import METRICS, heading
from streamcvit.monitoring.verdict import task_key
from streamcvit.published import PublishedTable

FAMILY = {"strict": "strict scorers", "strcvit": "published scorers"}


@dataclass(frozen=True)
class Cell:
    """A value of a table, or nothing.

    Attributes:
        entry: value with the ends of its interval, in points.
        best, second: whether it is that among its column's methods.
        decided: of a difference, whether its interval leaves zero out; None of any other value.
    """

    entry: Interval | None = None
    best: bool = False
    second: bool = False
    decided: bool | None = None


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        name: of its files.
        title: what it shows.
        corner: heading of the rows' names.
        columns: headings.
        blocks: rows (name, note, cells) in groups that a rule parts.
        notes: what stands below it.
    """

    name: str
    title: str
    corner: str
    columns: list[str]
    blocks: list[list[tuple[str, str, list[Cell]]]]
    notes: list[str] = field(default_factory=list)


def sheets_of(
    found: Comparison, baselines: Mapping[str, Baseline], tables: Sequence[tuple[PublishedTable, Comparison]] = ()
) -> list[Sheet]:
    """All tables of a comparison.

    Args:
        found: the comparison.
        baselines: task -> what answers without a look would get.
        tables: published tables, each with the comparison of the same runs by the published scorers.
    """
    sheets = [main_sheet(found, baselines), metric_sheet(found)]
    if len(found.sides) > 1:
        sheets.append(gap_sheet(found))
    return [*sheets, *(published_sheet(table, ours) for table, ours in tables)]


def main_sheet(found: Comparison, baselines: Mapping[str, Baseline]) -> Sheet:
    """The main table of a paper: methods by tasks, scores after the last chunk, then metrics; baselines on top."""
    tasks = [task for task in found.tasks if any(found.value(task_key(task), k) for k in range(len(found.sides)))]
    names = [name for name in METRICS if name in found.metrics()]
    numbers = [*map(task_key, tasks), *names]
    blocks = []
    for place, name in enumerate(("chance", "majority answer")):
        values = [baselines.get(task, (None, None))[place] for task in tasks]
        if any(value is not None for value in values):
            cells = [Cell(None if value is None else (value, None, None)) for value in values]
            blocks.append((name, "", [*cells, *(Cell(_mean(found, baselines, place, n)) for n in names)]))
    title = f"Score of each task after the last chunk, {FAMILY[found.family]}"
    return Sheet(
        "main", title, "method", [*tasks, *map(heading, names)], [blocks, _rows(found, numbers)], _legend(found, names)
    )


def _mean(found: Comparison, baselines: Mapping[str, Baseline], which: int, metric: str) -> Interval | None:
    """AP of a baseline: it is the same after every chunk; None where a task has none."""
    record = found.sides[0].record
    learned = record.plan.sum(axis=0) > 0
    among = [t for t, held, seen in zip(record.tasks, record.in_average, learned, strict=True) if held and seen]
    values = [baselines.get(task, (None, None))[which] for task in among]
    known = [value for value in values if value is not None]
    return (sum(known) / len(known), None, None) if metric == "ap" and known and len(known) == len(values) else None


def metric_sheet(found: Comparison) -> Sheet:
    """Methods by metrics, those of the head of a report first."""
    names = found.metrics()
    names = [name for name in METRICS if name in names] + [name for name in names if name not in METRICS]
    title = f"Metrics, {FAMILY[found.family]}"
    return Sheet("metrics", title, "method", [heading(n) for n in names], [_rows(found, names)], _legend(found, names))


def gap_sheet(found: Comparison) -> Sheet:
    """What each method has more than each other that it can be paired with."""
    names = [name for name in METRICS if any(key[0] == name for key in found.gaps)]
    rows = []
    for one, other in found.pairs():
        gaps = [found.gap(name, one, other) for name in names]
        cells = [Cell((g.value, g.low, g.high), decided=g.decided) if g else Cell() for g in gaps]
        pairs = max((gap.pairs for gap in gaps if gap), default=1)
        note = f"over {pairs} seeds" if pairs > 1 else ""
        rows.append((f"{found.sides[one].label} − {found.sides[other].label}", note, cells))
    notes = ["* the 95 % interval of the paired difference leaves zero out"] if rows else []
    return Sheet("differences", "Paired differences", "methods", [heading(name) for name in names], [rows], notes)


def published_sheet(table: PublishedTable, ours: Comparison) -> Sheet:
    """One table of one paper, and below it these runs by the published scorers; nothing in it is ranked."""
    tasks = list(dict.fromkeys(task for row in table.rows.values() for task in row.tasks))
    tasks.sort(key=lambda task: ours.tasks.index(task) if task in ours.tasks else len(ours.tasks))
    names = list(dict.fromkeys(name for row in table.rows.values() for name in row.metrics))
    theirs = []
    for method, row in table.rows.items():
        values = [*(row.tasks.get(task) for task in tasks), *(row.metrics.get(name) for name in names)]
        theirs.append((method, "", [Cell(None if value is None else (value, None, None)) for value in values]))
    own = []
    for place, side in enumerate(ours.sides):
        cells = [Cell(ours.value(number, place)) for number in [*map(task_key, tasks), *names]]
        own.append((side.label, ", ".join(filter(None, ["ours", side.note])), cells))
    bases = dict.fromkeys(str((r.config.get("model") or {}).get("name_or_path", "?")) for _, r in ours.runs)
    notes = [f"Published: {table.source}, on {table.model}.", f"Ours: by the published scorers, on {', '.join(bases)}."]
    notes += [table.note] if table.note else []
    missing = [name for name in names if not any(ours.value(name, k) for k in range(len(ours.sides)))]
    if missing:
        notes.append(f"{', '.join(missing)} of ours: not all tasks have a published scorer, or it is not defined here.")
    title = f"{table.name}: published rows, and ours"
    return Sheet(f"published-{table.name}", title, "method", [*tasks, *map(heading, names)], [theirs, own], notes)


def _rows(found: Comparison, numbers: Sequence[str]) -> list[tuple[str, str, list[Cell]]]:
    ranks = {number: found.ranks(number) for number in numbers}
    rows = []
    for place, side in enumerate(found.sides):
        cells = [Cell(found.value(n, place), ranks[n][0] == place, ranks[n][1] == place) for n in numbers]
        rows.append((side.label, side.note, cells))
    return rows


def _legend(found: Comparison, names: Sequence[str]) -> list[str]:
    notes = ["points, with 95 % intervals"]
    if called := [f"{name} is also called {' or '.join(other)}" for name in names if (other := theirs(name))]:
        notes.append("; ".join(called))
    if any(len(side.runs) > 1 for side in found.sides):
        notes.append("several seeds: mean and Student's interval over seeds")
    if len(found.sides) > 1:
        notes.append(
            "bold: best, its paired difference to every other method leaves zero out; underlined: second, alike"
        )
    if any(side.record.single and side.record.n_chunks > 1 for side in found.sides):
        notes.append("what was scored once (before learning, or after all tasks at once) has that score at every chunk")
    return notes
