"""`streamcvit run` with several seeds or a sweep: what it prints in the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from streamcvit.errors import Stopped
from streamcvit.screen import Screen

if TYPE_CHECKING:
    from streamcvit.config import RunConfig
    from streamcvit.sweeps import Row
    from streamcvit.variants import Variant

out = Screen()
err = Screen(stderr=True)


def run_many(config: RunConfig, found: Sequence[Variant], **how: Any) -> None:
    """Do all runs, then print how they compare: over seeds by their paired differences, over a sweep value by value."""
    from streamcvit.comparison import report
    from streamcvit.comparison.whole import whole_comparison
    from streamcvit.comparison.writers import terminal
    from streamcvit.many import execute_many
    from streamcvit.monitoring import find_runs
    from streamcvit.sweeps import rows_of

    try:
        folders = execute_many(config, found, **how)
    except Stopped as stopped:
        err.print(stopped.how, soft_wrap=True, markup=False)
        raise typer.Exit(128 + stopped.number) from None
    runs = [path for folder in folders for path in find_runs(folder, deep=True)]
    if config.sweep:
        out.print(sweep_table(list(config.sweep), rows_of(found)))
        out.print(
            "a mean over seeds has Student's 95 % interval, a single run the bootstrap's; best AP in bold", style="dim"
        )
    else:
        whole = whole_comparison(runs, "strict", [])
        for sheet in whole.printed:
            for part in terminal(sheet, out):
                out.print(part)
        for line in whole.lines():
            out.print(line, markup=False, soft_wrap=True)
    page, _, _ = report(runs, Path(config.folder()) / "report.html", config.name)
    out.print(f"report: {page}", markup=False, soft_wrap=True)


def sweep_table(keys: Sequence[str], rows: Sequence[Row]) -> Table:
    """A row for each method and each value, the values of the best AP of each method in bold."""
    table = Table(box=None, pad_edge=False)
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    for heading in ("method", *keys):
        table.add_column(heading, header_style="dim")
    for heading in ("seeds", *metrics):
        table.add_column(heading, header_style="dim", justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row.metrics.get(name)) for name in metrics]
        words = [row.method, *(row.values[key] for key in keys), str(row.seeds), *cells]
        table.add_row(*(Text(word, "bold" if row.best else "") for word in words))
    return table


def _cell(found: tuple[float, float | None, float | None] | None) -> str:
    if found is None:
        return "-"
    value, low, high = found
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"
