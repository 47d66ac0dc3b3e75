"""Plots for a paper: what the report and a comparison show, drawn by matplotlib as SVG and PDF with its fonts embedded.

Nothing of the user's own matplotlib settings is read, and the same numbers give the same bytes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from streamcvit.comparison.decide import Comparison
from streamcvit.monitoring.record import Interval
from streamcvit.monitoring.report.charts import Chart, Heat, number, shorten
from streamcvit.monitoring.runs import Records

HUES = ("#0072b2", "#d55e00", "#00875f", "#b0488a", "#8a6d00", "#5b4bb7", "#2a9fd0")
UNTRAINED, BOUND, INK, GRID, RING = "#8b93a1", "#22262e", "#15181e", "#e4e5e8", "#e8590c"
PARTS = {"learn": "#2a78b8", "ingest": "#e8a33d", "evaluate": "#c8553d", "commit": "#7a6ccf"}
MARKS = ("o", "s", "^", "D", "v", "P", "X")
HEAT = LinearSegmentedColormap.from_list("heat", ["#f6f6e4", "#7fcdbb", "#1d91a5", "#225e96", "#261e69"])
WIDTH = 3.4
"""Inches: a column of a paper."""
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#6d7585",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.05,
    "pdf.fonttype": 42,  # TrueType, embedded as text that can be searched
    "svg.fonttype": "path",  # outlines: no reader needs the font
    "svg.hashsalt": "streamcvit",
    "text.parse_math": False,  # a name may hold a $
    "text.usetex": False,
}


def save(draw: Callable[[], Figure], folder: Path, name: str) -> None:
    """Draw a figure into NAME.svg and NAME.pdf of a folder."""
    for log in ("matplotlib.font_manager", "matplotlib.backends.backend_pdf", "fontTools.subset"):
        logging.getLogger(log).setLevel(logging.ERROR)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = draw()
        figure.draw_without_rendering()  # places everything, once for both files
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(folder / f"{name}.svg", metadata={"Date": None})
        FigureCanvasPdf(figure).print_pdf(folder / f"{name}.pdf", metadata={"CreationDate": None})


def colours(runs: Records) -> list[str]:
    """A colour a run, as in the report."""
    found, used = [], 0
    for _, record in runs:
        if record.untrained or record.upper_bound:
            found.append(UNTRAINED if record.untrained else BOUND)
        else:
            found.append(HUES[used % len(HUES)])
            used += 1
    return found


def _axes(width: float = WIDTH, height: float = 2.3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), int(66 / (max(map(len, labels), default=0) + 7))))
    if len(labels) > 1:
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns)  # type: ignore[union-attr]


def _over_chunks(axes: Axes, chunks: int) -> None:
    axes.set_xlabel("chunk")
    axes.set_xlim(0.5, chunks + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(min(chunks, 10), integer=True, min_n_ticks=1))


def chart_figure(chart: Chart, hues: Sequence[str]) -> Figure:
    """A chart of the report.

    Args:
        chart: what it shows.
        hues: a colour a run.
    """
    return {"line_chart": _lines, "dumbbells": _bells, "stacked_bars": _stacks}[chart.kind](chart.given, hues)


def _lines(given: dict[str, Any], hues: Sequence[str]) -> Figure:
    figure, axes = _axes()
    for line in given["series"]:
        hue, mark = hues[line.run], MARKS[line.run % len(MARKS)] if given["markers"] else ""
        dashes = "--" if hue == BOUND or line.dashed else "-"
        axes.plot(line.x, line.y, color=hue, marker=mark, linestyle=dashes, label=shorten(line.name, 24))
        if line.band is not None:
            axes.fill_between(line.x, *line.band, color=hue, alpha=0.15, linewidth=0)
        if line.dots is not None:
            axes.plot(*line.dots, ".", color=hue, markersize=1.5, alpha=0.6)
            if line.spans is not None:
                axes.vlines(line.dots[0], *line.spans, color=hue, linewidth=0.4, alpha=0.2)
        for x in line.breaks:
            axes.axvline(x, color=hue, linestyle=":", linewidth=0.8)
    _over_chunks(axes, given["chunks"])
    axes.set_title(f"{shorten(given['title'], 40)} ({given['unit']})", loc="left")
    if given["y_min"] is not None or given["y_max"] is not None:
        axes.set_ylim(given["y_min"], given["y_max"])
    for chunk, share in enumerate(given["trained"] or [], start=1):
        if share > 0:
            axes.axvspan(
                chunk - 0.42, chunk + 0.42, 0, 0.02, color=INK, alpha=0.2 + 0.5 * math.sqrt(share), linewidth=0
            )
    _legend(axes)
    return figure


def _bells(given: dict[str, Any], hues: Sequence[str]) -> Figure:
    rows, hue = given["rows"], hues[given["run"]]
    figure, axes = _axes(height=0.7 + 0.17 * len(rows))
    for place, (_, best, now, low, high) in enumerate(rows):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=hue, alpha=0.25, linewidth=4, solid_capstyle="butt")
        axes.plot([best, now], [place, place], color=hue, linewidth=1.2)
    ends = np.array([(best, now) for _, best, now, *_ in rows])
    axes.plot(ends[:, 0], range(len(rows)), "o", markerfacecolor="white", color=hue, label="best", clip_on=False)
    axes.plot(ends[:, 1], range(len(rows)), "o", color=hue, label="after the last chunk", clip_on=False)
    _names(axes, [row[0] for row in rows])
    axes.set_xlim(0, given["x_max"])
    axes.set_title(f"{shorten(given['title'], 40)} (points)", loc="left")
    _legend(axes)
    return figure


def _stacks(given: dict[str, Any], hues: Sequence[str]) -> Figure:
    figure, axes = _axes()
    chunks = np.arange(1, len(given["parts_of"][0][2]) + 1)
    base = np.zeros(len(chunks))
    for part, name, values in given["parts_of"]:
        axes.bar(chunks, values, bottom=base, width=0.8, color=PARTS[part], label=name)
        base = base + values
    _over_chunks(axes, len(chunks))
    axes.set_title(f"{shorten(given['title'], 40)} ({given['unit']})", loc="left")
    _legend(axes)
    return figure


def heat_figure(heat: Heat, title: str) -> Figure:
    """A heat map of the report; cells that it marks are outlined."""
    shares = np.array([[np.nan if cell.heat is None else cell.heat for cell in cells] for _, cells in heat.rows])
    count = len(heat.columns)
    figure, axes = _axes(max(WIDTH, 1.4 + 0.27 * (count + len(heat.extra))), 0.75 + 0.2 * len(heat.rows))
    axes.grid(False)
    axes.imshow(np.clip(shares, 0, 100), cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    for row, (_, cells) in enumerate(heat.rows):
        for column, cell in enumerate(cells):
            ink = "white" if cell.heat is not None and cell.heat >= 50 else INK
            axes.text(column, row, cell.text, ha="center", va="center", fontsize=6, color=ink)
            if cell.marked:
                axes.plot([column - 0.42, column + 0.42], [row + 0.42] * 2, color=RING, linewidth=1.2)
    for place, name in enumerate(heat.extra):
        axes.text(count + place, -0.85, name, ha="center", va="center", fontsize=6)
        for row, tail in enumerate(heat.tails):
            axes.text(count + place, row, tail[place], ha="center", va="center", fontsize=6)
    axes.set_xlim(-0.5, count - 0.5 + len(heat.extra))
    long = max((len(name) for name in heat.columns), default=0) > 3
    axes.set_xticks(range(count), heat.columns, rotation=40 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(heat.rows)), [shorten(name, 24) for name, _ in heat.rows])
    axes.set_xlabel(heat.column_title)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(shorten(title, 60), loc="left", pad=14 if heat.extra else 6)
    return figure


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shorten(name, 28) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")


def curve_figure(found: Comparison) -> Figure:
    """AP over the chunks of every method, with bands."""
    figure, axes = _axes()
    hues, chunks = colours([(side.label, side.record) for side in found.sides]), 1
    for place, side in enumerate(found.sides):
        if place not in found.curves:
            continue
        value, low, high = found.curves[place]
        x = np.arange(1, len(value) + 1)
        chunks = max(chunks, len(value))
        line = "--" if side.record.upper_bound else "-"
        axes.plot(x, value, line, color=hues[place], marker=MARKS[place % len(MARKS)], label=shorten(side.label, 24))
        roof = max(100.0, float(np.nanmax(value)))  # few seeds make wide intervals
        axes.fill_between(x, low, np.minimum(high, roof), color=hues[place], alpha=0.15, linewidth=0)
    _over_chunks(axes, chunks)
    axes.set_ylim(bottom=0)
    axes.set_title("AP over the seen tasks (points)", loc="left")
    _legend(axes)
    return figure


def task_figure(found: Comparison, numbers: Sequence[tuple[str, str]], baselines: dict[str, Any]) -> Figure:
    """Each task's score after the last chunk with its interval, a mark a method.

    Args:
        found: the comparison.
        numbers: (name, number) of what is shown.
        baselines: name -> (by chance, by the majority answer).
    """
    count = len(found.sides)
    figure, axes = _axes(height=0.9 + (0.09 * count + 0.14) * len(numbers))
    hues = colours([(side.label, side.record) for side in found.sides])
    for place, side in enumerate(found.sides):
        y = [row + 0.76 * ((place + 0.5) / count - 0.5) for row in range(len(numbers))]
        entries = [found.value(number, place) for _, number in numbers]
        _marks(axes, entries, y, hues[place], MARKS[place % len(MARKS)], shorten(side.label, 24))
    for which, (name, style) in enumerate((("chance", ":"), ("majority answer", "-"))):
        known = [
            (k, base)
            for k, (task, _) in enumerate(numbers)
            if (base := baselines.get(task, (None, None))[which]) is not None
        ]
        for k, base in known:
            label = name if k == known[0][0] else None
            axes.plot([base, base], [k - 0.44, k + 0.44], color="#6d7585", linestyle=style, linewidth=0.9, label=label)
    _names(axes, [name for name, _ in numbers])
    axes.set_xlim(left=0)
    axes.set_title("Score after the last chunk (points)", loc="left")
    _legend(axes)
    return figure


def _marks(axes: Axes, entries: Sequence[Interval | None], y: Sequence[float], hue: str, mark: str, label: str) -> None:
    known = [(entry, place) for entry, place in zip(entries, y, strict=True) if entry is not None]
    x, places = [entry[0] for entry, _ in known], [place for _, place in known]
    axes.plot(x, places, mark, color=hue, label=label, clip_on=False, linestyle="")
    for (_, low, high), place in known:
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=hue, linewidth=0.9)


def gap_figure(found: Comparison, names: Sequence[tuple[str, str]], pairs: Sequence[tuple[int, int]]) -> Figure:
    """Paired differences with their intervals, a panel a metric; filled where zero is left out.

    Args:
        found: the comparison.
        names: (heading, metric) of the panels.
        pairs: the methods of each row.
    """
    figure = Figure(figsize=(max(WIDTH, 1.4 + 0.95 * len(names)), 0.75 + 0.19 * len(pairs)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for axes, (heading, name) in zip(panels, names, strict=True):
        axes.axvline(0, color="#6d7585", linewidth=0.8)
        for row, (one, other) in enumerate(pairs):
            gap = found.gap(name, one, other)
            if gap is None:
                continue
            if gap.low is not None and gap.high is not None:
                axes.plot([gap.low, gap.high], [row, row], color=HUES[0], linewidth=0.9)
            axes.plot([gap.value], [row], "o", color=HUES[0], markerfacecolor=HUES[0] if gap.decided else "white")
        axes.set_title(heading, fontsize=7.5)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(lambda value, _: number(value, 0 if float(value).is_integer() else 1))
    _names(panels[0], [f"{found.sides[one].label} − {found.sides[other].label}" for one, other in pairs])
    figure.supxlabel("paired difference, points; filled: the 95 % interval leaves zero out", fontsize=7)
    return figure
