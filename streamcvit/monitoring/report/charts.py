"""Figures as inline SVG and heat-map cells, drawn here so that a report needs no network and no plotting library.

Colours are CSS variables of the page (`--run0` ... for runs, `--ink` ... for the rest): light and dark come for free.
All text passes through `markupsafe`, so names from data cannot become markup. Hover texts are plain text in `data-tip`,
one line an entry; a line of three tab-separated parts is a colour class, a name and a value.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 34.0, 40.0


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        run: number of the run, which sets colour and marker.
        name: shown on hover.
        x, y: points, float arrays of one length; NaN in y leaves a gap.
        dots: more points without a line (x, y), or None.
        spans: intervals of these (low, high), or None.
        breaks: places on the x axis where the run went back to earlier weights, drawn as dashed lines.
        band: lower and upper end of a band around it, arrays as y; None: it has none.
        dashed: whether it is drawn so.
    """

    run: int
    name: str
    x: np.ndarray
    y: np.ndarray
    dots: tuple[np.ndarray, np.ndarray] | None = None
    spans: tuple[np.ndarray, np.ndarray] | None = None
    breaks: Sequence[float] = ()
    band: tuple[np.ndarray, np.ndarray] | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map.

    Attributes:
        text: what stands in it.
        heat: 0 (lowest colour) to 100 (highest); None leaves it empty.
        tip: hover text.
        marked: whether it is outlined.
    """

    text: str = ""
    heat: float | None = None
    tip: str = ""
    marked: bool = False

    @property
    def css(self) -> str:
        """Classes of the cell."""
        names = ["heat"] if self.heat is not None else ["void"]
        if self.heat is not None and self.heat >= 62:
            names.append("deep")
        if self.marked:
            names.append("marked")
        return " ".join(names)

    @property
    def style(self) -> str:
        """The heat as a CSS variable."""
        return f"--p:{min(100.0, max(0.0, self.heat)):.0f}" if self.heat is not None else ""


@dataclass(frozen=True)
class Heat:
    """A heat map: rows by columns of cells, with headings and summary columns behind them.

    Attributes:
        corner: heading of the row names.
        columns: headings.
        rows: (name, cells) of each row.
        extra: headings of the summary columns; `tails[i]` holds row i's texts.
        column_title: what the columns are.
    """

    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    extra: list[str] = field(default_factory=list)
    tails: list[list[str]] = field(default_factory=list)
    column_title: str = "chunk"


def nice_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: about n of them, 1, 2 or 5 times a power of ten apart."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        high = low + 1.0
    rough = (high - low) / max(1, n - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """A number for people: a true minus sign, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def shorten(text: str, width: int = 14) -> str:
    """At most `width` characters, with an ellipsis where some are left out."""
    return text if len(text) <= width else text[: width - 1] + "…"


def tip(title: str, *rows: tuple[str, str, str]) -> str:
    """Hover text: a title and rows of (colour class, name, value)."""
    clean = [tuple(part.replace("\t", " ").replace("\n", " ") for part in row) for row in rows]
    return "\n".join([title.replace("\n", " "), *("\t".join(row) for row in clean)])


class Chart(Markup):
    """An inline SVG that knows what it shows, so that it can be drawn for a paper too.

    Attributes:
        kind: the function that drew it.
        given: what that was given, by name.
    """

    kind: str
    given: dict[str, Any]


def shown(draw: Callable[..., Markup]) -> Callable[..., Chart]:
    """Make a function that draws give a `Chart`."""
    signature = inspect.signature(draw)

    @functools.wraps(draw)
    def drawn(*args: Any, **named: Any) -> Chart:
        chart = Chart(draw(*args, **named))
        bound = signature.bind(*args, **named)
        bound.apply_defaults()
        chart.kind, chart.given = draw.__name__, bound.arguments
        return chart

    return drawn


@shown
def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    unit: str,
    chunks: int,
    y_max: float | None = None,
    y_min: float | None = 0.0,
    digits: int = 1,
    size: tuple[int, int] = (520, 290),
    trained: Sequence[float] | None = None,
    markers: bool = True,
) -> Markup:
    """Lines over the chunks of a stream.

    Args:
        title: above the chart; also its accessible name.
        unit: of the vertical axis, behind the title.
        chunks: the horizontal axis runs from chunk 1 to this one.
        y_max, y_min: ends of the vertical axis; from the data where None.
        digits: behind the point on hover.
        size: width and height in px at full scale.
        trained: share of each chunk (0..1) in which the charted task was trained, drawn below the axis.
        markers: draw a marker at each point.
    """
    width, height = size
    small = width < 400
    left, right, top, bottom = (34.0, 8.0, 28.0, 30.0) if small else (_LEFT, _RIGHT, _TOP, _BOTTOM)
    known = [line.y[np.isfinite(line.y)] for line in series]
    known += [line.dots[1][np.isfinite(line.dots[1])] for line in series if line.dots is not None]
    known += [end[np.isfinite(end)] for line in series if line.band is not None for end in line.band]
    values = np.concatenate(known) if known else np.zeros(0)
    floor = y_min if y_min is not None else (float(values.min()) if len(values) else 0.0)
    roof = y_max if y_max is not None else (float(values.max()) if len(values) else 1.0)
    if y_min is None:
        floor, roof = min(floor, 0.0), max(roof, 0.0)  # where a sign is what is looked for, zero is in sight
    ticks = nice_ticks(floor, roof, 3 if small else 5)
    low, high = ticks[0], ticks[-1]

    def px(x: float) -> float:
        return left + (x - 0.5) / max(1, chunks) * (width - left - right)

    def py(y: float) -> float:
        return top + (high - y) / (high - low) * (height - top - bottom)

    parts = [
        Markup('<svg class="chart{}" viewBox="0 0 {} {}" role="img" aria-label="{}, {}">').format(
            " small" if small else "", width, height, title, unit
        ),
        Markup('<text class="title" x="{}" y="14">{}<tspan class="unit" dx="6">{}</tspan></text>').format(
            2, shorten(title, 30), unit
        ),
    ]
    for value in ticks:
        parts.append(
            Markup('<line class="grid{}" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                " zero" if value == 0 else "", left, width - right, y=py(value)
            )
        )
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 6, py(value) + 4, number(value, 0 if float(value).is_integer() else 2 if high < 0.5 else 1)
            )
        )
    parts.append(chunk_axis(chunks, px, height - bottom, small))
    for k, share in enumerate(trained or []):
        if share > 0:
            bar = '<rect class="trained" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="4" opacity="{:.2f}"/>'
            wide = px(1.84) - px(1.0)
            parts.append(Markup(bar).format(px(k + 0.58), height - bottom + 2, wide, 0.3 + 0.7 * math.sqrt(share)))
    for line in series:
        parts.append(_line(line, px, py, small, markers))
        for x in line.breaks:
            cut = '<g class="series run{}"><path class="break" d="M{:.1f} {}V{}"/></g>'
            parts.append(Markup(cut).format(line.run, px(x), top, height - bottom))
    parts.append(_bands(series, chunks, px, top, height - bottom, unit, digits))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def chunk_axis(chunks: int, px, y: float, small: bool) -> Markup:
    """The numbers of the chunks below a chart."""
    most = 5 if small else 13
    every = next(k for k in (1, 2, 5, 10, 20, 50, 100, 1000, 10**9) if chunks / k <= most)
    shown = [k for k in range(1, chunks + 1) if k == 1 or k % every == 0]
    if len(shown) > 1 and every > 1 and shown[1] - shown[0] < every - 1:
        shown.pop(1)
    parts = [
        Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(px(k), y + 17, k)
        for k in shown
    ]
    if not small:
        parts.append(
            Markup('<text class="axis" x="{:.1f}" y="{:.1f}" text-anchor="end">chunk</text>').format(
                px(chunks + 0.5), y + 33
            )
        )
    return Markup("").join(parts)


def _line(line: Series, px, py, small: bool, markers: bool) -> Markup:
    parts = [Markup('<g class="series run{}">').format(line.run)]
    if line.band is not None:
        parts.append(_area(line, px, py))
    if line.dots is not None:
        for x, y in zip(*line.dots, strict=True):
            if math.isfinite(y):
                parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="1.6"/>').format(px(x), py(y)))
    if line.dots is not None and line.spans is not None:
        ends = zip(line.dots[0], *line.spans, strict=True)
        spans = "".join(f"M{px(x):.1f} {py(low):.1f}V{py(high):.1f}" for x, low, high in ends)
        parts.append(Markup('<path class="span" d="{}"/>').format(spans))
    path, pen = "", "M"
    for x, y in zip(line.x, line.y, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        path += f"{pen}{px(x):.1f} {py(y):.1f}"
        pen = "L"
    parts.append(Markup('<path class="line{}" d="{}"/>').format(" dashed" if line.dashed else "", path))
    here = np.isfinite(line.y)
    alone = here & ~np.append(here[1:], False) & ~np.append(False, here[:-1])  # of which no line shows anything
    for x, y, mark in zip(line.x, line.y, here if markers else alone, strict=True):
        if mark:
            parts.append(_marker(line.run, px(x), py(y), 2.2 if small else 3.2))
    parts.append(Markup("</g>"))
    return Markup("").join(parts)


def _area(line: Series, px, py) -> Markup:
    """The band of a line, in as many pieces as gaps leave."""
    assert line.band is not None
    known, path = np.isfinite(line.band[0]) & np.isfinite(line.band[1]), ""
    for piece in np.split(np.arange(len(known)), np.flatnonzero(np.diff(known)) + 1):
        if len(piece) and known[piece[0]]:
            ends = [(line.x[k], line.band[0][k]) for k in piece] + [(line.x[k], line.band[1][k]) for k in piece[::-1]]
            path += "M" + "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in ends) + "Z"
    return Markup('<path class="spread" d="{}"/>').format(path)


def _marker(kind: int, x: float, y: float, r: float) -> Markup:
    """Runs differ in shape as well as in colour."""
    if kind % 4 == 0:
        return Markup('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(x, y, r)
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0, -1.25), (1.15, 0.85), (-1.15, 0.85)],
        3: [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
    }[kind % 4]
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners)
    return Markup('<polygon class="mark" points="{}"/>').format(points)


def _bands(series: Sequence[Series], chunks: int, px, top: float, bottom: float, unit: str, digits: int) -> Markup:
    """Invisible columns, one a chunk, that carry what is to be read there."""
    parts = []
    for k in range(1, chunks + 1):
        rows = []
        for line in series:
            here = np.flatnonzero((np.abs(line.x - k) <= 0.5) & np.isfinite(line.y))
            if len(here):
                rows.append((line.y[here].mean(), line))
        if rows:
            rows.sort(key=lambda row: -row[0])
            text = tip(f"chunk {k}", *((f"run{line.run}", line.name, number(value, digits)) for value, line in rows))
            parts.append(
                Markup(
                    '<rect class="band" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>'
                ).format(px(k - 0.5), top, px(k + 0.5) - px(k - 0.5), bottom - top, text)
            )
    return Markup("").join(parts)
