"""What a person sees in the terminal: a live view during a run, and the table of results at its end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from streamcvit.monitoring.liverows import UNSURE, Change, Row, average, draw, fitted, marked, minutes, worst
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.runlog import RunLog
from streamcvit.monitoring.runs import TOLD, Records, compared, heading, shown_metrics, told_task
from streamcvit.monitoring.steady import SteadyLive, undisturbed
from streamcvit.monitoring.verdict import UNDECIDED, Verdict
from streamcvit.monitoring.watch.word import Word
from streamcvit.screen import Screen

if TYPE_CHECKING:
    from streamcvit.adapters.published import Conversion


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
        self.chunks = dict(chunks) if isinstance(chunks, Mapping) else dict.fromkeys(run_names, chunks)
        self._rows = {name: Row(name, total_samples, self.chunks[name]) for name in run_names}
        self._lock = threading.Lock()
        self._notice = ""
        self._live = SteadyLive(console=self.console, get_renderable=self._render, refresh_per_second=4)
        self._held = contextlib.ExitStack()

    @property
    def _shown(self) -> bool:
        """Whether there is a terminal that a view can be drawn on again and again."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def __enter__(self) -> LiveView:
        if self._shown:
            self._live.start()
            self._held.callback(self._live.stop)
            self._held.enter_context(undisturbed())
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.close()

    def grow(self, run: str, total_samples: int, chunks: int) -> None:
        """The stream has come to be so long."""
        with self._lock:
            row, self.chunks[run] = self._rows[run], chunks
            row.total, row.chunks, row.learned = total_samples, chunks, None

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
            if position >= row.total and row.learned is None:
                row.learned = time.monotonic()
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
            left = row.seconds_left
        parts = [f"chunk {chunk + 1}/{self.chunks[run]} learned"]
        if info.get("samples") is not None:
            parts.append(f"{info['samples']} samples")
        if info.get("loss") is not None:
            parts.append(f"loss {info['loss']:.3f}")
        if info.get("correct") is not None:
            parts.append(f"prequential accuracy {100 * info['correct']:.0f} %")
        if info.get("samples") and info.get("busy_s"):
            parts.append(f"{info['samples'] / info['busy_s']:.0f} samples/s")
        if left is not None:
            parts.append(f"about {minutes(left)} left")
        if info.get("skipped"):
            parts.append(_skipped(info["skipped"]))
        if lost:
            told = f"{len(lost)} left out, the first: {lost[0].get('reason')}: {lost[0].get('detail')}"
            if long := sum(bad.get("reason") == "length" for bad in lost):
                told += f"; {long} too long: raise model.max_length, or set model.max_picture_tokens"
            parts.append(told)
            if self._shown:  # the view has no room for it
                self.message(f"{run}: chunk {chunk + 1}: {told}")
        self._line(run, ", ".join(parts))

    def scores(
        self,
        run: str,
        chunk: int,
        points: Mapping[str, float],
        forgetting: Mapping[str, float] | None = None,
        changes: Mapping[str, Change] | None = None,
        doubtful: Collection[str] = (),
        ap: float | None = None,
    ) -> None:
        """New scores after a chunk (counted from 0; -1: before any learning).

        Args:
            run, chunk: which.
            points: by task.
            forgetting: best score less the score now, by task.
            changes: what each score did since the boundary before.
            doubtful: tasks of which the forgetting may be noise.
            ap: average of the points; of all of them, unless given.
        """
        with self._lock:
            row = self._rows[run]
            row.scores, row.scored_chunk = dict(points), chunk
            row.ap = average(points) if ap is None else ap
            row.forgetting, row.changes, row.doubtful = dict(forgetting or {}), dict(changes or {}), frozenset(doubtful)
        text = f"scores after chunk {chunk + 1}/{self.chunks[run]}: " if chunk >= 0 else "scores before any learning: "
        if points:
            marks = {task: f" ({marked(change)[0]})" for task, change in row.changes.items()}
            text += f"AP {row.ap:.1f}; "
            text += ", ".join(f"{task} {value:.0f}{marks.get(task, '')}" for task, value in points.items())
        if lost := worst(row.forgetting):
            doubt = dict.fromkeys(row.doubtful, UNSURE)
            text += "; forgotten: " + ", ".join(f"{task} {doubt.get(task, '')}-{value:.0f}" for task, value in lost)
        self._line(run, text)

    def done(self, run: str) -> None:
        """A method is learned and scored to its end."""
        with self._lock:
            row = self._rows[run]
            row.finished = row.finished or time.monotonic()

    def message(self, text: str) -> None:
        """Say something once, above the view."""
        if self.log is not None:
            self.log(text)
        self._print(text)

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
        if not self._shown:
            self._print(f"{run}: {text}" if run else text)

    def _print(self, text: str) -> None:
        at = "" if self._shown else f"{time.strftime('%H:%M:%S')} "
        self.console.print(Text(at + text), soft_wrap=True)

    def _render(self) -> RenderableType:
        with self._lock:
            rows = [Row(**vars(row)) for row in self._rows.values()]
        return Group(*draw(rows, *self.console.size, self._notice))


def _skipped(reasons: Mapping[str, int]) -> str:
    count, what = sum(reasons.values()), " or ".join(reasons)
    return f"{count} step{'' if count == 1 else 's'} skipped ({what} not finite)"


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


NARROW = 12
"""Cells of a name in a terminal in which a table does not fit otherwise."""


class Fitting:
    """The first of several drawings that is no wider than the terminal, or the last.

    Args:
        ways: the drawings, from the roomiest to the narrowest.
    """

    def __init__(self, ways: Iterable[Sequence[Table]]) -> None:
        self.ways = ways

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        chosen: Sequence[Table] = ()
        for chosen in self.ways:
            wide = (Measurement.get(console, options.update(max_width=10_000), table).maximum for table in chosen)
            if max(wide) <= options.max_width:
                break
        yield from chosen


def results_table(records: Sequence[RunRecord], verdict: Verdict = UNDECIDED, family: str = "strict") -> Fitting:
    """AP, MAP, BWT, MAF and MIF of each run in points with 95 % intervals; the best of each in bold.

    Where the terminal is narrow, long names are cut, then intervals left out, then metrics put below each other.

    Args:
        records: the runs.
        verdict: what was found when they were held against each other.
        family: of the scorers; a verdict is one of strict scores.
    """
    runs = compared(records)
    names = shown_metrics([record for _, record in runs], family)

    def ways() -> Iterator[Sequence[Table]]:
        for intervals in (True, False):
            for cut in (1000, 24, 16):
                yield [_results(runs, verdict, family, names, intervals, cut)]
        for many in range(len(names), 0, -1):
            parts = [names[k : k + many] for k in range(0, len(names), many)]
            yield [
                _results(runs, verdict, family, part, False, NARROW, "" if k < len(parts) - 1 else None)
                for k, part in enumerate(parts)
            ]

    return Fitting(ways())


def _results(
    runs: Records,
    verdict: Verdict,
    family: str,
    names: Sequence[str],
    intervals: bool,
    cut: int,
    caption: str | None = None,
) -> Table:
    """The table of some metrics, names cut to so many cells; `caption` in place of what is said below it."""
    narrow = caption is not None or (not intervals and cut <= NARROW)
    table = Table(box=SIMPLE_HEAD, caption_style="dim", pad_edge=not narrow, collapse_padding=narrow)
    said = "points, [95 % interval]" if intervals else "points; the report has their 95 % intervals"
    if family != "strict":
        said = f"by the published scorers; {said}"
    elif verdict.best:
        said += "; bold: best, its paired difference to every other leaves zero out"
    table.caption = said if caption is None else caption or None
    unfinished = any(not record.finished for _, record in runs)
    table.add_column("method", no_wrap=True)
    if unfinished and not narrow:
        table.add_column("chunks", justify="right", no_wrap=True)
    for name in names:
        title = heading(name)
        if narrow and title.count(" ") > 1:
            title = title.replace(" ", "\n", 1)
        table.add_column(title, justify="right", no_wrap=True)
    for i, (label, record) in enumerate(runs):
        name_cell = Text(fitted(label, cut))
        if told_task(record):
            name_cell.append(f"\n{TOLD}", "dim")
        if record.upper_bound:
            name_cell.append("\nupper bound", "dim")
        elif not record.finished:
            name_cell.append("\nnot finished", "yellow")
            if narrow:
                name_cell.append(f"\n{record.chunks_done}/{record.n_chunks} chunks", "dim")
        cells: list[RenderableType] = [name_cell]
        if unfinished and not narrow:
            cells.append(Text(f"{record.chunks_done}/{record.n_chunks}"))
        for name in names:
            entry = (family == "strict" and verdict.values.get((name, i))) or record.metric(name, family)
            if entry is None:
                cells.append(Text("–", "dim"))
                continue
            value, low, high = entry
            best = family == "strict" and verdict.is_best(name, i)
            cell = Text(f"{value:.1f}", "bold green" if best else "")
            if intervals and low is not None and high is not None:
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
