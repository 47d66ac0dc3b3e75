"""`streamcvit run` with several seeds or a sweep: what it prints in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from streamcvit.errors import Stopped
from streamcvit.screen import Screen

if TYPE_CHECKING:
    from streamcvit.config import RunConfig
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
    from streamcvit.sweeps import sweep_sheet

    try:
        folders = execute_many(config, found, **how)
    except Stopped as stopped:
        err.print(stopped.how, soft_wrap=True, markup=False)
        raise typer.Exit(128 + stopped.number) from None
    runs = [path for folder in folders for path in find_runs(folder, deep=True)]
    whole = None if config.sweep else whole_comparison(runs, "strict", [])
    for sheet in whole.printed if whole else [sweep_sheet(found)]:
        for part in terminal(sheet, out):
            out.print(part)
    for line in whole.lines() if whole else ():
        out.print(line, markup=False, soft_wrap=True)
    page, _, _ = report(runs, config.folder() / "report.html", config.name)
    out.print(f"report: {page}", markup=False, soft_wrap=True)
