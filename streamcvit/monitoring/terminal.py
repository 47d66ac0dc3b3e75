"""What a person sees in the terminal: a live view during a run, and the table of results at its end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.runlog import RunLog
from streamcvit.monitoring.runs import compared, heading, shown_metrics
from streamcvit.monitoring.verdict import UNDECIDED, Verdict
from streamcvit.monitoring.watch.word import Word
from streamcvit.screen import Screen

if TYPE_CHECKING:
    from streamcvit.adapters.published import Conversion

NBSP = "\u00a0"
"""Keeps a task and its score on one line."""


@dataclass
class _Row:
    """What is known of one run."""

    name: str
    position: int = 0
    chunk: int = 0
    loss: float | None = None
    rate: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    scored_chunk: int | None = None
    forgetting: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    started: float | None = None
    finished: float | None = None


class LiveView:
    """Progress of a run, or of several side by side.

    On a terminal: a progress bar a run, with speed, prequential loss, newest scores and what is being forgotten. Where
    output is no terminal (a log file, CI) one plain line a chunk. Use it as a context manager; calls from several
    threads are safe.

    Args:
        run_names: the runs, in the order they are shown in.
        total_samples: samples of the whole stream.
        chunks: chunks of the whole stream; by run, where runs cut it differently (`joint` learns it as one).
        console: where to write; standard output unless given.
        log: told every line too, those that a terminal shows in the view included.
        word: told where the learner is too, for those who watch from outside.
    """

    def __init__(
        self,
        run_names: Sequence[str],
        total_samples: int,
        chunks: int | Mapping[str, int],
        console: Console | None = None,
        log: RunLog | None = None,
        word: Word | None = None,
    ) -> None:
        self.console, self.log, self.word = console or Screen(), log, word
        self.total_samples = total_samples
        self.chunks = dict(chunks) if isinstance(chunks, Mapping) else dict.fromkeys(run_names, chunks)
        self._rows = {name: _Row(name) for name in run_names}
        self._lock = threading.Lock()
        self._notice = ""
        self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live.is_started:
            self._live.stop()

    def progress(
        self,
        run: str,
        position: int,
        loss: float | None = None,
        rate: float | None = None,
        skipped: Mapping[str, int] | None = None,
        step: int | None = None,
    ) -> None:
        """The learner's place in the stream, its prequential loss (nats), its speed (samples/s), the steps that it has
        skipped so far, by reason, and the optimizer steps that it took."""
        if self.word is not None:
            self.word(run, position, loss, rate, step)
        with self._lock:
            row = self._rows[run]
            row.started = row.started or time.monotonic()
            row.position = position
            row.loss = row.loss if loss is None else loss
            row.rate = row.rate if rate is None else rate
            if position >= self.total_samples and row.finished is None:
                row.finished = time.monotonic()
            more = sum((skipped or {}).values()) - row.skipped
            row.skipped += max(0, more)
        if more > 0 and skipped:
            self.message(f"{run}: {_skipped(skipped)} so far")

    def chunk_done(
        self, run: str, chunk: int, info: Mapping[str, Any] | None = None, lost: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """A chunk (counted from 0) was learned; `info` is its `chunk` event (samples, loss, correct, busy_s ...).

        `lost` holds the events of its samples that could not be learned.
        """
        info = info or {}
        with self._lock:
            row = self._rows[run]
            row.chunk = max(row.chunk, chunk + 1)
            if info.get("loss") is not None:
                row.loss = float(info["loss"])
        parts = [f"chunk {chunk + 1}/{self.chunks[run]} learned"]
        if info.get("samples") is not None:
            parts.append(f"{info['samples']} samples")
        if info.get("loss") is not None:
            parts.append(f"loss {info['loss']:.3f}")
        if info.get("correct") is not None:
            parts.append(f"right before learning {100 * info['correct']:.0f} %")
        if info.get("samples") and info.get("busy_s"):
            parts.append(f"{info['samples'] / info['busy_s']:.0f} samples/s")
        if info.get("skipped"):
            parts.append(_skipped(info["skipped"]))
        if lost:
            left = f"{len(lost)} left out, the first: {lost[0].get('reason')}: {lost[0].get('detail')}"
            if long := sum(bad.get("reason") == "length" for bad in lost):
                left += f"; {long} too long: raise model.max_length, or set model.max_picture_tokens"
            parts.append(left)
            if self.console.is_terminal:  # the view has no room for it
                self.message(f"{run}: chunk {chunk + 1}: {left}")
        self._line(run, ", ".join(parts))

    def scores(
        self, run: str, chunk: int, points: Mapping[str, float], forgetting: Mapping[str, float] | None = None
    ) -> None:
        """New scores after a chunk (counted from 0; -1: before any learning): points, and best less now, by task."""
        with self._lock:
            row = self._rows[run]
            row.scores, row.scored_chunk = dict(points), chunk
            row.forgetting = dict(forgetting or {})
        text = f"scores after chunk {chunk + 1}/{self.chunks[run]}: " if chunk >= 0 else "scores before any learning: "
        if points:
            text += f"mean {np.mean(list(points.values())):.1f}; "
            text += ", ".join(f"{task} {value:.0f}" for task, value in points.items())
        lost = _worst(row.forgetting)
        if lost:
            text += "; forgotten: " + ", ".join(f"{task} -{value:.0f}" for task, value in lost)
        self._line(run, text)

    def message(self, text: str) -> None:
        """Say something once, above the view."""
        if self.log is not None:
            self.log(text)
        self.console.print(Text(text), soft_wrap=True)

    def notice(self, text: str) -> bool:
        """Say something below the view, for as long as it is shown; False where no view is shown.

        Takes no lock and prints nothing itself, so that the handler of a signal may call it.
        """
        self._notice = text
        return self._live.is_started

    def _line(self, run: str, text: str) -> None:
        """A plain line; on a terminal the view tells the same."""
        if self.log is not None:
            self.log(f"{run}: {text}" if run else text)
        if not self.console.is_terminal:
            self.console.print(Text(f"{run}: {text}" if run else text), soft_wrap=True)

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        with self._lock:
            rows = [_Row(**vars(row)) for row in self._rows.values()]
        width = max((Text(row.name).cell_len for row in rows), default=0)
        blocks: list[RenderableType] = []
        for row in rows:
            blocks.append(self._head(row, width))
            if row.started is not None or row.scores:
                blocks.extend(Padding(line, (0, 0, 0, width + 2)) for line in self._details(row))
        if self._notice:
            blocks.append(Text(self._notice, "bold yellow"))
        return Group(*blocks)

    def _head(self, row: _Row, width: int) -> RenderableType:
        table = Table.grid(padding=(0, 2), expand=False)
        table.add_column(width=width, no_wrap=True)
        table.add_column(width=min(32, max(10, self.console.width - width - 76)))
        table.add_column(no_wrap=True)
        bar = ProgressBar(
            total=max(1, self.total_samples),
            completed=row.position,
            complete_style="cyan",
            finished_style="green",
            style="grey37",
        )
        done = row.position >= self.total_samples > 0
        chunks = self.chunks[row.name]
        shown = chunks if done else min(row.chunk + 1, chunks)
        facts = Text()
        if row.started is None:
            facts.append("scored, nothing to learn yet" if row.scores else "waiting", "dim")
        else:
            facts.append(f"chunk {shown:>{len(str(chunks))}}/{chunks}")
            facts.append(f"  {100 * row.position / max(1, self.total_samples):3.0f} %", "bold")
            if row.rate is not None:
                facts.append(f"  {row.rate:,.0f} samples/s")
            if row.loss is not None:
                facts.append(f"  loss {row.loss:.3f}")
            facts.append(f"  {_clock(row, self.total_samples, self.console.width >= width + 86)}", "dim")
        style = "bold green" if done else "bold" if row.started is not None else "dim"
        table.add_row(Text(row.name, style), bar, facts)
        return table

    def _details(self, row: _Row) -> list[Text]:
        """Newest scores and what is forgotten; a run at its end keeps one line, so that the view stays small."""
        heading, lost = Text(), Text()
        if row.scores and row.scored_chunk is not None:
            heading.append(f"after chunk {row.scored_chunk + 1}  " if row.scored_chunk >= 0 else "at first  ", "dim")
            heading.append("mean ")
            heading.append(f"{np.mean(list(row.scores.values())):.1f}", "bold")
        for task, value in _worst(row.forgetting):
            lost.append(f" {task}{NBSP}")
            lost.append(f"−{value:.0f}", "bold red" if value >= 20 else "yellow" if value >= 5 else "")
        if lost:
            lost = Text("forgetting ", "dim").append_text(lost)
        if row.position >= self.total_samples:
            line = heading.append("   ").append_text(lost) if heading and lost else heading or lost
            return [line] if line else []
        if heading:
            heading.append("  ")
        for task, value in row.scores.items():
            heading.append(f" {task}{NBSP}", "dim")
            heading.append(f"{value:.0f}", _score_style(value))
        return [line for line in (heading, lost) if line]


def _skipped(reasons: Mapping[str, int]) -> str:
    count, what = sum(reasons.values()), " or ".join(reasons)
    return f"{count} step{'' if count == 1 else 's'} skipped ({what} not finite)"


def _worst(forgetting: Mapping[str, float], n: int = 3) -> list[tuple[str, float]]:
    ranked = sorted(forgetting.items(), key=lambda item: -item[1])
    return [(task, value) for task, value in ranked[:n] if value >= 0.5]


def _score_style(points: float) -> str:
    return "green" if points >= 66 else "yellow" if points >= 33 else "red"


def _clock(row: _Row, total: int, roomy: bool) -> str:
    if row.started is None:
        return ""
    spent = (row.finished or time.monotonic()) - row.started
    if row.finished is not None or not row.rate or not roomy:
        return f"{_minutes(spent)}"
    return f"{_minutes(spent)}, about {_minutes((total - row.position) / row.rate)} left"


def _minutes(seconds: float) -> str:
    seconds = int(round(seconds))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def plan_table(tasks: Sequence[str], counts: np.ndarray) -> Table:
    """How many samples each task (a column) gives to each chunk (a row); `counts` is int [chunks, tasks].

    Long headings are folded, numbers never: eleven tasks fit 80 columns.
    """
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("chunk", justify="right", no_wrap=True, min_width=5)
    totals = counts.sum(axis=0)
    for task, total in zip(tasks, totals.tolist(), strict=True):
        wide = max(len(f"{total}"), min(len(task), 5))
        table.add_column(Text(task, overflow="fold"), justify="right", min_width=wide)
    table.add_column("all", justify="right", no_wrap=True, style="bold", min_width=len(f"{counts.sum()}"))
    top = max(1, int(counts.max())) if counts.size else 1
    for chunk, row in enumerate(counts.tolist()):
        cells = [Text(str(n), "bold cyan" if 2 * n >= top else "cyan") if n else Text("·", "dim") for n in row]
        table.add_row(str(chunk + 1), *cells, str(sum(row)))
    table.add_row(Text("all", "dim"), *(Text(str(n), "dim") for n in totals.tolist()), str(int(counts.sum())))
    return table


def results_table(records: Sequence[RunRecord], verdict: Verdict = UNDECIDED, family: str = "strict") -> Table:
    """AP, MAP, BWT, MAF and MIF of each run in points with 95 % intervals; the best of each in bold.

    Args:
        records: the runs.
        verdict: what was found when they were held against each other.
        family: of the scorers; a verdict is one of strict scores.
    """
    table = Table(box=SIMPLE_HEAD, caption="points, [95 % interval]", caption_style="dim")
    if family != "strict":
        table.caption = f"by the published scorers; {table.caption}"
    elif verdict.best:
        table.caption = f"{table.caption}; bold: best, its paired difference to every other leaves zero out"
    runs = compared(records)
    records = [record for _, record in runs]
    unfinished = any(not record.finished for record in records)
    table.add_column("method", no_wrap=True)
    if unfinished:
        table.add_column("chunks", justify="right")
    names = shown_metrics(records, family)
    for name in names:
        table.add_column(heading(name), justify="right")
    for i, (label, record) in enumerate(runs):
        name_cell = Text(label)
        if record.upper_bound:
            name_cell.append("\nupper bound", "dim")
        elif not record.finished:
            name_cell.append("\nnot finished", "yellow")
        cells: list[RenderableType] = [name_cell]
        if unfinished:
            cells.append(Text(f"{record.chunks_done}/{record.n_chunks}"))
        for name in names:
            entry = (family == "strict" and verdict.values.get((name, i))) or record.metric(name, family)
            if entry is None:
                cells.append(Text("–", "dim"))
                continue
            value, low, high = entry
            best = family == "strict" and verdict.is_best(name, i)
            cell = Text(f"{value:.1f}", "bold green" if best else "")
            if low is not None and high is not None:
                cell.append(f"\n[{low:.1f}, {high:.1f}]", "dim")
            cells.append(cell)
        table.add_row(*cells)
    return table


def results_tables(records: Sequence[RunRecord], verdict: Verdict = UNDECIDED) -> Group:
    """`results_table`, and below it that of the published scorers where tasks have them."""
    tables = [results_table(records, verdict)]
    if any(record.metric("ap", "strcvit") for record in records):
        tables.append(results_table(records, family="strcvit"))
    return Group(*tables)


def import_report(found: Conversion) -> Group:
    """What became of a published adapter: its modules, its settings and where they are from, and what was left."""
    from streamcvit.adapters.published import pattern_of  # here, since a table of results needs no torch

    modules = Table(box=SIMPLE_HEAD, title=f"{found.kind}: {len(found.modules)} modules", title_justify="left")
    for title in ("published module", "in the model"):
        modules.add_column(title, overflow="fold")
    for title in ("modules", "in", "out"):
        modules.add_column(title, justify="right")
    kinds = Counter((pattern_of(path), pattern_of(place), i, o) for path, (place, i, o) in found.modules.items())
    for (path, place, inputs, outputs), count in kinds.items():
        modules.add_row(Text(path), Text("same" if place == path else place), str(count), str(inputs), str(outputs))
    settings = Table(box=SIMPLE_HEAD)
    for title in ("setting", "value", "from"):
        settings.add_column(title)
    for name, (value, source) in found.settings.items():
        if name != "target_modules":
            settings.add_row(name, Text(str(value)), source)
    return Group(modules, settings, *(Text(f"- {line}") for line in found.left))
