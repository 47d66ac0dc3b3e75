"""Figures of bars as inline SVG: what was forgotten of each task, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from streamcvit.monitoring.report.charts import chunk_axis, nice_ticks, number, shorten, shown, tip


@shown
def dumbbells(
    run: int,
    title: str,
    rows: Sequence[tuple[str, float, float, float | None, float | None]],
    *,
    x_max: float = 100.0,
    size_x: int = 340,
) -> Markup:
    """Best score so far and score now of each task, joined by a line: the longer the line, the more was forgotten.

    Args:
        rows: (task, best, now, low, high) in points; the last two are the ends of now's interval.
        x_max: right end of the axis in points.
    """
    left, right, top, pitch = 92.0, 48.0, 30.0, 21.0
    height = top + pitch * len(rows) + 30

    def px(points: float) -> float:
        return left + min(points, x_max) / x_max * (size_x - left - right)

    foot = top + pitch * len(rows)
    parts = [
        Markup(
            '<svg class="chart small run{}" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}: best and present score">'
        ).format(run, size_x, height, title),
        Markup('<text class="title" x="2" y="14">{}<tspan class="unit" dx="6">points</tspan></text>').format(
            shorten(title, 26)
        ),
    ]
    for value in nice_ticks(0, x_max, 3):
        if value <= x_max:
            parts.append(
                Markup('<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(
                    top - 4, foot, x=px(value)
                )
            )
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{:.0f}</text>').format(
                    px(value), foot + 16, value
                )
            )
    for i, (task, best, now, low, high) in enumerate(rows):
        y, lost = top + pitch * (i + 0.5), best - now
        facts = [("", "best", number(best)), ("", "now", number(now)), ("", "lost", number(lost))]
        if low is not None and high is not None:
            facts.insert(2, ("", "95 % interval", f"{number(low)} to {number(high)}"))
        parts.append(Markup('<g class="bell" data-tip="{}">').format(tip(task, *facts)))
        parts.append(
            Markup('<rect class="catch" x="0" y="{:.1f}" width="{}" height="{}"/>').format(y - pitch / 2, size_x, pitch)
        )
        parts.append(
            Markup('<text class="name" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 10, y + 4, shorten(task, 13)
            )
        )
        if low is not None and high is not None:
            parts.append(
                Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                    px(low), px(high), y=y
                )
            )
        parts.append(
            Markup('<line class="bar" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                px(now), px(best), y=y
            )
        )
        parts.append(Markup('<circle class="best" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(px(best), y))
        parts.append(Markup('<circle class="now" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(px(now), y))
        parts.append(
            Markup('<text class="lost{}" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                " much" if lost >= 10 else "", size_x - 4, y + 4, number(-lost, 0) if lost >= 0.5 else "0"
            )
        )
        parts.append(Markup("</g>"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


@shown
def stacked_bars(
    title: str,
    unit: str,
    parts_of: Sequence[tuple[str, str, np.ndarray]],
    *,
    run: int = 0,
    size: tuple[int, int] = (340, 190),
) -> Markup:
    """One bar a chunk, of several parts.

    Args:
        parts_of: (colour class, name, value in each chunk), from the bottom up.
    """
    width, height = size
    left, right, top, bottom = 34.0, 8.0, 28.0, 30.0
    table = np.array([values for _, _, values in parts_of])
    chunks = table.shape[1]
    totals = table.sum(axis=0)
    ticks = nice_ticks(0, float(totals.max()) if chunks else 1.0, 3)

    def px(x: float) -> float:
        return left + (x - 0.5) / max(5, chunks) * (width - left - right)

    def py(y: float) -> float:
        return top + (1 - y / ticks[-1]) * (height - top - bottom)

    out = [
        Markup('<svg class="chart small run{}" viewBox="0 0 {} {}" role="img" aria-label="{}, {}">').format(
            run, width, height, title, unit
        ),
        Markup('<text class="title" x="2" y="14">{}<tspan class="unit" dx="6">{}</tspan></text>').format(
            shorten(title, 26), unit
        ),
    ]
    for value in ticks:
        out.append(
            Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                left, width - right, y=py(value)
            )
        )
        label = number(value, 0 if float(value).is_integer() else 1)
        out.append(
            Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 6, py(value) + 4, label
            )
        )
    out.append(chunk_axis(chunks, px, height - bottom, small=True))
    for k in range(chunks):
        facts = [(css, name, f"{values[k]:.2f} s") for css, name, values in reversed(parts_of)]
        share = 100 * table[0, k] / totals[k] if totals[k] else 0.0
        out.append(Markup('<g data-tip="{}">').format(tip(f"chunk {k + 1}: {share:.1f} % {parts_of[0][1]}", *facts)))
        base = 0.0
        for css, _, values in parts_of:
            y = py(base + values[k])
            out.append(
                Markup('<rect class="{}" x="{:.1f}" y="{:.2f}" width="{:.1f}" height="{:.2f}"/>').format(
                    css, px(k + 0.6), y, px(1.8) - px(1.0), max(0.0, py(base) - y)
                )
            )
            base += float(values[k])
        out.append(Markup("</g>"))
    out.append(Markup("</svg>"))
    return Markup("").join(out)
