"""A run for others: its matrix and scores as CSV, and every figure of its report as SVG and PDF."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from streamcvit.comparison.folder import write_folder
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report import figures, heldout
from streamcvit.monitoring.report.charts import Chart, Heat
from streamcvit.monitoring.report.tables import unformula
from streamcvit.monitoring.runs import Records, compared, marked

COLUMNS = ("chunk", "version", "task", "kind", "family", "metric", "score", "low", "high", "following", "n", "seconds")
MATRIX = ("score", "low", "high", "following", "n")


def export_run(folders: Sequence[Path], to: Path, force: bool = False) -> list[str]:
    """Write a run's numbers and figures; the files, relative to the folder.

    Args:
        folders: method's run folders, finished or not.
        to: folder to write into.
        force: write over files of others.

    Raises:
        UserError: a folder is no run's, or `to` holds what is not ours or cannot be written.
    """
    runs = compared([RunRecord.load(folder) for folder in folders])

    def fill(folder: Path) -> None:
        from streamcvit.comparison.plots import chart_figure, colours, heat_figure, save

        _matrix(runs, folder / "matrix.csv")
        _scores(runs, folder / "scores.csv")
        (folder / "figures").mkdir()
        hues = colours(runs)
        for name, title, shows in report_figures(runs):
            if isinstance(shows, Heat):
                save(lambda heat=shows, title=title: heat_figure(heat, title), folder / "figures", name)  # type: ignore[misc]
            else:
                save(lambda chart=shows: chart_figure(chart, hues), folder / "figures", name)  # type: ignore[misc]

    return write_folder(to, "export", fill, force)


def report_figures(runs: Records) -> Iterator[tuple[str, str, Chart | Heat]]:
    """Every figure of the report: (name of its files, title of a heat map, what it shows); names are distinct."""
    used: set[str] = set()

    def named(*parts: str) -> str:
        name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") or "x" for part in parts)[:100]
        count = 1
        while (found := name if count == 1 else f"{name}-{count}").casefold() in used:
            count += 1
        used.add(found.casefold())
        return found

    first = figures.stream_of(runs)
    if first.plan.size:
        yield named("plan"), "Samples of each task in each chunk", figures.plan_heat(first)
    for name, chart in zip(("ap", "forgetting"), figures.stream_charts(runs), strict=False):
        yield named(name), "", chart
    for chart in figures.forgetting_charts(runs):
        yield named("forgetting", chart.given["title"]), "", chart
    for chart in figures.task_charts(runs):
        yield named("task", chart.given["title"]), "", chart
    for label, record in runs:
        if record.scores or record.summary:
            yield named("matrix", label), f"{label}: score after each chunk (points)", figures.score_heat(record)
    for name, chart in zip(("loss", "right"), figures.prequential_charts(runs), strict=False):
        yield named("before-learning", name), "", chart
    for chart in heldout.charts(runs):
        yield named("held-out", chart.given["title"]), "", chart
    chart_of, heat = figures.following(runs)
    if chart_of is not None and heat is not None:
        yield named("following"), "", chart_of
        yield named("following-by-task"), "Instruction following", heat
    for label, record in runs:
        for bank, shares in figures.experts(record):
            yield named("experts", label, bank), f"{label}: {bank} bank, share of the routes (%)", shares
    for chart in figures.timing(runs)[0]:
        yield named("time", chart.given["title"]), "", chart


def _matrix(runs: Records, path: Path) -> None:
    """A[t, i] of every run and family, one cell a line; chunks count from 1, as everywhere a person reads."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "family", "chunk", "task", "trained", *MATRIX])
        for label, record in runs:
            for family in ("strict", "strcvit"):
                tables = [record.matrix(family, column) for column in MATRIX]
                for chunk, place in zip(*np.nonzero(~np.isnan(tables[0])), strict=True):
                    cells = [table[chunk, place] for table in tables]
                    trained = 0 if record.single else int(record.plan[chunk, place])
                    row = [unformula(marked(label, record)), family, chunk + 1, unformula(record.tasks[place]), trained]
                    writer.writerow([*row, *("" if np.isnan(cell) else f"{cell:.6g}" for cell in cells)])


def _scores(runs: Records, path: Path) -> None:
    """The newest row of every evaluation; chunk 0 is before any learning."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", *COLUMNS])
        for label, record in runs:
            for row in record.scores:
                cells = {**row, "chunk": row["chunk"] + 1}
                values = (cells.get(name) for name in COLUMNS)
                told = [
                    "" if value is None else unformula(value) if isinstance(value, str) else value for value in values
                ]
                writer.writerow([unformula(marked(label, record)), *told])
