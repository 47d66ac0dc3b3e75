"""The plan of a stream as a drawing that stands alone, for a paper or a web page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup


def plan_svg(tasks: Sequence[str], counts: np.ndarray) -> str:
    """The plan of a stream as an SVG file that stands alone: tasks by chunks, the darker the more samples.

    Args:
        tasks: names, in the order of the columns of `counts`.
        counts: samples, int [chunks, tasks].
    """
    chunks, cell, left, top = len(counts), 30, 24 + 7 * max([6, *map(len, tasks)]), 58
    width, height = left + cell * chunks + 70, top + cell * len(tasks) + 24
    most = max(1, int(counts.max())) if counts.size else 1
    parts = [
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" font-size="12" '
            'font-family="Inter, system-ui, sans-serif" text-anchor="middle" fill="#15181e">'
            '<title>Samples of each task in each chunk</title><rect width="{w}" height="{h}" fill="#fff"/>'
            '<text x="{x}" y="22" text-anchor="start" font-weight="600" font-size="14">'
            "Samples of each task in each chunk</text>"
        ).format(w=width, h=height, x=left)
    ]
    for k in range(chunks):
        parts.append(
            Markup('<text x="{}" y="{}" fill="#6d7585">{}</text>').format(left + cell * (k + 0.5), top - 8, k + 1)
        )
    for i, task in enumerate(tasks):
        y = top + cell * i
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 10, y + 19, task))
        for k, n in enumerate(counts[:, i].tolist()):
            place = Markup('<rect x="{}" y="{}" width="{s}" height="{s}" rx="4" fill="{}"/>')
            fill, ink = _viridis(n / most) if n else ("#f1f2f3", "")
            parts.append(place.format(left + cell * k + 1, y + 1, fill, s=cell - 2))
            if n:
                label = Markup('<text x="{}" y="{}" font-size="10.5" fill="{}">{}</text>')
                parts.append(label.format(left + cell * (k + 0.5), y + 19, ink, n))
        total = Markup('<text x="{}" y="{}" text-anchor="end" font-weight="600">{}</text>')
        parts.append(total.format(width - 12, y + 19, int(counts[:, i].sum())))
    parts.append(Markup("</svg>\n"))
    return str(Markup("").join(parts))


def _viridis(share: float) -> tuple[str, str]:
    """Colour of a share 0..1, pale to dark, and an ink that reads on it."""
    stops = np.array([[240, 245, 215], [127, 205, 187], [29, 145, 165], [34, 94, 150], [38, 30, 105]], dtype=float)
    at = min(1.0, max(0.0, share)) * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    red, green, blue = (stops[low] + (at - low) * (stops[low + 1] - stops[low])).round().astype(int).tolist()
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if share > 0.5 else "#15181e"
