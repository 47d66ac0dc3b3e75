"""Instruction following by the wording of the instruction, and how far wordings of one task lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MOST = 50
"""Wordings that are listed, those of most samples first: a set may have an instruction for each sample."""


def by_wording(
    follows: Mapping[str, np.ndarray],
    points: Mapping[str, np.ndarray],
    wording: Mapping[str, np.ndarray],
    names: list[str],
    form: Mapping[str, str],
    seen: np.ndarray,
) -> dict[str, Any]:
    """Rates and scores of each wording of each task, and their spread.

    Args:
        follows: task to whether the answers keep to the demanded form, [T, n]; nan what was not asked.
        points: task to points, same shapes.
        wording: task to the number of each sample's wording, int [n], -1 where it is not known.
        names: the wordings.
        form: task to its instruction form.
        seen: bool [T, tasks], the tasks in the order of `follows`.

    Returns:
        `wordings`: rows of task, form, wording, n, following and score after the last chunk (points), mif (mean of
        following over the chunks that have seen the task); `spread`: by form, over its tasks of two wordings or more,
        the mean of largest less smallest (`range`) and of the standard deviation over wordings (`sd`) of each; `more`:
        rows that are left out.
    """
    rows: list[dict[str, Any]] = []
    for number, task in enumerate(follows):
        here = np.flatnonzero(seen[:, number] & ~np.isnan(follows[task]).all(axis=1))
        known = wording.get(task)
        if known is None or not len(here):
            continue
        codes, sizes, rates = _by_code(known, 100.0 * follows[task][here])
        _, _, last = _by_code(known, points[task][here[-1:]])
        for place, code in enumerate(codes.tolist()):
            rows.append(
                {
                    "task": task,
                    "form": form[task],
                    "wording": names[code],
                    "n": int(sizes[place]),
                    "following": float(rates[-1, place]),
                    "score": float(last[0, place]),
                    "mif": float(rates[:, place].mean()),
                }
            )
    spread: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["form"] for row in rows):
        apart = [[row for row in rows if row["form"] == name and row["task"] == task] for task in follows]
        apart = [group for group in apart if len(group) > 1]
        if apart:
            spread[name] = {"tasks": len(apart)} | {
                key: {
                    "range": float(np.mean([np.ptp([row[key] for row in group]) for group in apart])),
                    "sd": float(np.mean([np.std([row[key] for row in group], ddof=1) for group in apart])),
                }
                for key in ("following", "score", "mif")
            }
    listed = sorted(rows, key=lambda row: -row["n"])[:MOST]
    return {"wordings": listed, "spread": spread, "more": len(rows) - len(listed)}


def _by_code(codes: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of a table [rows, n], nan left out, over the samples of each code.

    Returns:
        The codes that are not negative, how many samples each has, and the means [rows, codes].
    """
    known = np.flatnonzero(codes >= 0)
    found, sizes = np.unique(codes[known], return_counts=True)
    if not len(found):
        return found, sizes, np.zeros((len(table), 0))
    values = table[:, known[np.argsort(codes[known], kind="stable")]]
    starts, there = np.cumsum(sizes) - sizes, ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = np.add.reduceat(np.where(there, values, 0.0), starts, axis=1)
        return found, sizes, sums / np.add.reduceat(there.astype(float), starts, axis=1)
