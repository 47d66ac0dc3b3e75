"""Several seeds of one method as one line with a band: their mean, and its 95 % interval over seeds (Student's)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamcvit.monitoring.report.charts import Series
from streamcvit.monitoring.verdict import Seeds


def gathered(lines: Sequence[Series], seeds: Sequence[Seeds], floor: float, roof: float) -> list[Series]:
    """Lines of a chart with those of one method's seeds drawn as their mean and band.

    Args:
        lines: one a run, or more; of each kind (dashed or not) those of one method are taken together.
        seeds: which runs are seeds of one method.
        floor, roof: what a score can be: no band passes them.
    """
    found: list[Series] = []
    done: set[int] = set()
    for place, line in enumerate(lines):
        if place in done:
            continue
        group = next((one for one in seeds if line.run in one.runs), None)
        if group is None:
            found.append(line)
            continue
        same = [k for k, other in enumerate(lines) if other.run in group.runs and other.dashed == line.dashed]
        parts = [lines[k] for k in same]
        if len(parts) < 2 or any(not np.array_equal(part.x, line.x) for part in parts):
            found.append(line)
            continue
        done.update(same)
        values = np.array([part.y for part in parts])
        mean = values.mean(axis=0)  # nan where one of them is not known: no mean of some
        half = group.quantile * values.std(axis=0, ddof=1) / math.sqrt(len(parts))
        band = np.clip(mean - half, floor, roof), np.clip(mean + half, floor, roof)
        first = min(part.run for part in parts)
        found.append(replace(line, run=first, name=group.label, y=mean, dots=None, band=band))
    return found
