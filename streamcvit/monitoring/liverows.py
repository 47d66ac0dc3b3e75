"""The rows of the live view: what is known of each method of a run, drawn to fit a terminal of any size.

Every line fits the width, so that none is wrapped or cut by the terminal: names are shortened and facts left out, the
least wanted first; no number is ever cut. All lines together fit the height: what is finished or waits is drawn shorter
the less room there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.text import Text

SURE = {True: "↑", False: "↓"}
UNSURE = "≈"
NBSP = "\u00a0"
"""Keeps a task and its score together where a person copies them."""
MOST_LOST = 3
"""Tasks whose forgetting is shown."""
SHORTEST, LONGEST = 6, 32
"""Cells of a progress bar."""


@dataclass(frozen=True)
class Change:
    """What a score did since another.

    Attributes:
        points: it is higher by so many.
        sure: whether the 95 % interval of the paired difference leaves zero out.
    """

    points: float
    sure: bool


@dataclass
class Row:
    """What is known of one method's run.

    Attributes:
        name: of the method.
        total, chunks: samples and chunks of its stream.
        position, chunk: samples behind it, and chunks learned to their end.
        loss: prequential, in nats, of the newest samples.
        rate: samples per second.
        scores, ap: points by task after `scored_chunk` (from 0; -1: before any learning), and their average.
        changes: what each score did since the boundary before.
        forgetting: best score less the score now, by task.
        doubtful: tasks of which that may be noise.
        skipped: steps that were not taken.
        started, learned, finished: moments (`time.monotonic`); None before.
    """

    name: str
    total: int = 0
    chunks: int = 1
    position: int = 0
    chunk: int = 0
    loss: float | None = None
    rate: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    ap: float | None = None
    scored_chunk: int | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    forgetting: Mapping[str, float] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()
    skipped: int = 0
    started: float | None = None
    learned: float | None = None
    finished: float | None = None

    @property
    def under_way(self) -> bool:
        """Whether it has begun and is not over."""
        return self.finished is None and (self.started is not None or bool(self.scores))

    @property
    def seconds_left(self) -> float | None:
        """Of learning, at its present speed; None where that is not known."""
        return (self.total - self.position) / self.rate if self.rate and self.position < self.total else None


def fitted(text: str, width: int) -> str:
    """At most `width` cells of a text, with an ellipsis where some are left out."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def draw(rows: Sequence[Row], width: int, height: int, notice: str = "") -> list[Text]:
    """The lines of the view.

    Args:
        rows: of all methods, in their order.
        width, height: of the terminal; a few cells are left free, where the terminal itself may write (`^C`).
        notice: said below everything.
    """
    width, height = max(16, width - 4), max(3, height - 1)
    last = [Text(line, "bold yellow") for line in wrapped([notice], width)] if notice else []
    names = min(max((cell_len(row.name) for row in rows), default=0), max(8, width // 5))
    # From the roomiest drawing to the tightest: the first that fits the height.
    ways: tuple[Callable[[], list[Text]], ...] = (
        lambda: _all(rows, width, names, details=6, each=True, key=True),
        lambda: _all(rows, width, names, details=6, each=False, key=True),
        lambda: _all(rows, width, names, details=2, each=False, key=False),
        lambda: _all([row for row in rows if row.finished is None], width, names, details=2, each=False, key=False),
        lambda: [_head(row, width, names) for row in rows if row.under_way],
    )
    for way in ways:
        lines = way()
        if len(lines) + len(last) <= height:
            break
    return [*lines[: max(0, height - len(last))], *last[:height]]


def _all(rows: Sequence[Row], width: int, names: int, details: int, each: bool, key: bool) -> list[Text]:
    """All rows: those that are over and those that wait a line `each` or together, of the others so many `details`."""
    lines: list[Text] = []
    over = [row for row in rows if row.finished is not None]
    waiting = [row for row in rows if row.finished is None and not row.under_way]
    for row in rows:
        if row.finished is not None and each:
            lines.append(_over(row, width, names))
        elif row.under_way:
            if over and not each and not any(r.under_way for r in rows[: rows.index(row)]):
                lines += _together("finished", [_named(r) for r in over], width, "green")
            lines.append(_head(row, width, names))
            lines += _details(row, width, names + 2 if width >= 76 else 2, details)
        elif row in waiting and each:
            lines.append(Text.assemble((_name(row, names), "dim"), ("waiting", "dim")))
    if over and not each and not any(row.under_way for row in rows):
        lines += _together("finished", [_named(row) for row in over], width, "green")
    if waiting and not each:
        lines += _together("waiting", [row.name for row in waiting], width, "dim")
    if key and any(row.changes and row.finished is None for row in rows):
        meant = "↑ ↓ since the boundary before", f"{UNSURE} may be noise", "(95 % interval)"
        lines += flowed([Text(part, "dim") for part in meant], width)[:1]
    return lines


def _name(row: Row, names: int) -> str:
    short = fitted(row.name, names)
    return short + " " * (names - cell_len(short) + 2)


def _named(row: Row) -> str:
    return row.name if row.ap is None else f"{row.name}{NBSP}AP{NBSP}{row.ap:.1f}"


def _together(what: str, items: Sequence[str], width: int, style: str) -> list[Text]:
    listed = [f"{item}," for item in items[:-1]] + list(items[-1:])
    return [Text(line, style) for line in wrapped([f"{what}:", *listed], width)]


def wrapped(items: Sequence[str], width: int) -> list[str]:
    """Items with a blank between them, in as many lines as they need; words of one that is too long go on below it."""
    lines: list[str] = []
    for item in items:
        for word in [item] if cell_len(item) <= width else item.replace(NBSP, " ").split(" "):
            word = fitted(word, width)
            if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
    return lines


def _bar(share: float, cells: int, done: bool) -> Text:
    full = cells if done else min(cells - 1, int(share * cells)) if share < 1 else cells
    return Text.assemble(("━" * full, "green" if done else "cyan"), ("─" * (cells - full), "grey37"))


def _head(row: Row, width: int, names: int) -> Text:
    """Name, progress bar and facts of a method that is under way: as many as fit."""
    line = Text(_name(row, names), "bold", no_wrap=True)
    if row.started is None:
        return line.append(fitted("scored, nothing learned yet", width - len(line)), "dim")
    share = row.position / row.total if row.total else 1.0
    shown = row.chunks if share >= 1 else min(row.chunk + 1, row.chunks)
    percent = 100 if share >= 1 else min(99, int(100 * share))
    left = row.seconds_left
    facts = [  # in the order they are shown in; the higher the number, the sooner left out
        (0, Text(f"chunk {shown:>{len(str(row.chunks))}}/{row.chunks}")),
        (0, Text(f"{percent:3d} %", "bold")),
        (2, Text(f"{row.rate:,.0f} samples/s" if row.rate is not None and share < 1 else "")),
        (3, Text(f"loss {row.loss:.3f}" if row.loss is not None else "")),
        (4, Text(minutes((row.learned or time.monotonic()) - row.started), "dim")),
        (1, Text(f"about {minutes(left)} left" if left is not None else "", "dim")),
        (1, Text("scoring" if share >= 1 else "", "cyan")),
    ]
    facts = [(rank, fact) for rank, fact in facts if fact]

    def room() -> int:
        return width - cell_len(line.plain) - sum(len(fact) + 2 for _, fact in facts)

    while room() < SHORTEST and (most := max(rank for rank, _ in facts)) > 0:
        facts = [(rank, fact) for rank, fact in facts if rank != most]
    if room() >= SHORTEST:
        line.append_text(_bar(share, min(LONGEST, room()), done=share >= 1)).append("  ")
    for k, (_, fact) in enumerate(facts):
        line.append("  " if k else "").append_text(fact)
    return line


def _over(row: Row, width: int, names: int) -> Text:
    """One line of a method that is learned and scored."""
    line = Text(_name(row, names), "bold green", no_wrap=True)
    line.append("finished", "green")
    parts = []
    if row.ap is not None:
        parts.append(Text.assemble("AP ", (f"{row.ap:.1f}", "bold")))
    if row.started is not None and row.learned is not None and row.total:
        parts.append(Text(minutes(row.learned - row.started), "dim"))
    parts += [Text("forgetting", "dim"), *lost] if (lost := _lost(row, width)) else []
    for part in parts:
        if cell_len(line.plain) + 2 + cell_len(part.plain) > width:
            break
        line.append("  ").append_text(part)
    return line


def _details(row: Row, width: int, indent: int, most: int) -> list[Text]:
    """Newest scores with what each did, and what is forgotten: so many lines at most, the greatest losses first."""
    room = width - indent
    lines: list[Text] = []
    if row.scores and row.scored_chunk is not None:
        lead = Text(f"after chunk {row.scored_chunk + 1}" if row.scored_chunk >= 0 else "at first", "dim")
        ap = Text.assemble("AP ", (f"{row.ap:.1f}", "bold")) if row.ap is not None else Text()
        scores = dict(row.scores)
        for tasks in (list(scores), sorted(scores, key=lambda task: _moved(row, task))):
            lines = flowed([lead, ap, *(_score(row, task, room) for task in tasks)], room)
            if len(lines) <= most:
                break
        if len(lines) > most:  # in the plan's order they do not fit: those that moved most, and how many are left out
            for kept in range(len(tasks) - 1, -1, -1):
                rest = Text(f"and {len(tasks) - kept} more", "dim")
                lines = flowed([lead, ap, *(_score(row, task, room) for task in tasks[:kept]), rest], room)
                if len(lines) <= most:
                    break
    if lost := _lost(row, room):
        lines += flowed([Text("forgetting", "dim"), *lost], room)[:1]
    return [Text(" " * indent, no_wrap=True).append_text(line) for line in lines]


def _moved(row: Row, task: str) -> float:
    change = row.changes.get(task)
    return change.points if change is not None and change.sure else 0.0


def _score(row: Row, task: str, room: int) -> Text:
    """A task, its score, and what that did since the boundary before."""
    value, change = row.scores[task], row.changes.get(task)
    mark, style = "", ""
    if change is not None:
        mark, style = marked(change)
    name = fitted(task, room - len(f" {value:.0f} {mark}"))
    text = Text.assemble((f"{name}{NBSP}", "dim"), (f"{value:.0f}", _score_style(value)))
    return text.append(f"{NBSP}{mark}", style) if mark else text


def marked(change: Change) -> tuple[str, str]:
    """An arrow with points, and its style: of what may be noise only the sign that says so, with the points."""
    size = f"{abs(change.points):.0f}"
    if not change.sure:
        return f"{UNSURE}{'−' if change.points < 0 else '+'}{size}" if size != "0" else f"{UNSURE}0", "dim"
    style = "bold red" if change.points <= -10 else "yellow" if change.points < 0 else "green"
    return f"{SURE[change.points > 0]}{size}", style


def _lost(row: Row, room: int) -> list[Text]:
    found = []
    for task, value in worst(row.forgetting):
        doubt = UNSURE if task in row.doubtful else ""
        number = f"{doubt}−{value:.0f}"
        style = "dim" if doubt else "bold red" if value >= 20 else "yellow" if value >= 5 else ""
        found.append(Text.assemble(f"{fitted(task, room - len(number) - 12)}{NBSP}", (number, style)))
    return found


def flowed(parts: Sequence[Text], width: int) -> list[Text]:
    """Parts with two blanks between them, in as many lines as they need; each fits one."""
    lines: list[Text] = []
    for part in parts:
        if not part:
            continue
        if lines and cell_len(lines[-1].plain) + 2 + cell_len(part.plain) <= width:
            lines[-1].append("  ").append_text(part)
        else:
            lines.append(part.copy())
    return lines


def worst(forgetting: Mapping[str, float], n: int = MOST_LOST) -> list[tuple[str, float]]:
    """The tasks that lost most, half a point at least."""
    ranked = sorted(forgetting.items(), key=lambda item: -item[1])
    return [(task, value) for task, value in ranked[:n] if value >= 0.5]


def _score_style(points: float) -> str:
    return "green" if points >= 66 else "yellow" if points >= 33 else "red"


def minutes(seconds: float) -> str:
    """A time as a clock shows it."""
    seconds = int(round(seconds))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def average(points: Mapping[str, float]) -> float | None:
    """Mean of the points; None where there are none."""
    return float(np.mean(list(points.values()))) if points else None
