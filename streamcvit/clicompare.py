"""The commands that read run folders: `report`, `compare`, `export`; heavy packages are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamcvit.screen import Screen

out = Screen()
err = Screen(stderr=True)

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")]
Force = Annotated[bool, typer.Option("--force", help="Write over files that lie there.")]


def report(
    folders: Runs,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The page [default: report.html in the run's folder; of several, beside the first]."),
    ] = None,
) -> None:
    """Write the self-contained HTML report of one run or several."""
    from streamcvit import comparison
    from streamcvit.comparison.pages import page_for

    found = _found(folders)
    target = page_for(folders, found, to)
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    page, _, verdict = comparison.report(found, target, title)
    _notes(verdict.notes)
    out.print(f"report: {page}", markup=False, soft_wrap=True)


def _found(folders: list[Path]) -> list[Path]:
    """The method's run folders at these paths, each once."""
    from streamcvit.monitoring import find_runs

    found = [path for folder in folders for path in find_runs(folder, deep=True)]
    return list({path.resolve(): path for path in found}.values())


def _notes(notes: tuple[str, ...] | list[str]) -> None:
    for note in notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)


def compare(
    runs: Runs,
    published: Annotated[
        list[Path] | None, typer.Option("--published", help="Also print the published tables of this recipe.")
    ] = None,
    family: Annotated[str, typer.Option(help="Whose points: strict, or strcvit (the published scorers).")] = "strict",
    to: Annotated[
        Path | None, typer.Option("--to", help="Also write tables (CSV, LaTeX, Markdown, JSON) and plots (SVG, PDF).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    force: Force = False,
) -> None:
    """Hold runs against each other by their paired differences: a table of each task and metric, and which is best."""
    from streamcvit.comparison.folder import check_target, write_comparison
    from streamcvit.comparison.whole import whole_comparison

    if to is not None:
        check_target(to, "compare", force)
    whole = whole_comparison(_found(runs), family, published or [])
    if as_json:
        import json

        print(json.dumps(whole.to_json(), ensure_ascii=False))
    else:
        from streamcvit.comparison.writers import terminal

        for sheet in whole.printed:
            for part in terminal(sheet, out):
                out.print(part)
        for line in whole.lines():
            out.print(line, markup=False, soft_wrap=True)
    _notes(whole.found.notes)
    if to is not None:
        written = write_comparison(whole, to, force)
        (err if as_json else out).print(f"{len(written)} files: {to}", markup=False, soft_wrap=True)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or one method's.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write into.")],
    force: Force = False,
) -> None:
    """Write a run's matrix and scores as CSV, and every figure of its report as SVG and PDF."""
    from streamcvit.comparison.export import export_run

    written = export_run(_found([run]), to, force)
    out.print(f"{len(written)} files: {to}", markup=False, soft_wrap=True)
