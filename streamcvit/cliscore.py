"""The command `score`: what a file of predictions is worth by a rule of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamcvit.errors import UserError
from streamcvit.screen import Screen

out = Screen()
err = Screen(stderr=True)
SHOWN = 20


def score(
    rule: Annotated[str, typer.Option(metavar="FAMILY/NAME", help="strict/vqa, strcvit/vqav2, mcitlib/sci ...")],
    predictions: Annotated[Path, typer.Option(help="Answers: JSON lines, JSON, CSV or Parquet.")],
    references: Annotated[
        Path | None, typer.Option(help="What is right, of the same kinds (default: beside the answers).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Also the rows on which the strict and the published rule differ, and why.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(metavar="FAMILY/NAME", help="With --diff: the other rule (default: of the same task).")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="With --json: also the points of each row.")] = False,
    answered: Annotated[bool, typer.Option("--answered", help="Leave references out that have no prediction.")] = False,
    by_place: Annotated[bool, typer.Option("--by-place", help="Pair rows by place, whatever their ids.")] = False,
) -> None:
    """Score a file of predictions by a strict or a published rule, with a 95 % interval."""
    from streamcvit import scoring

    def say(line: str) -> None:
        err.print(line, markup=False, soft_wrap=True)

    if rows and not as_json:
        raise UserError("--rows goes with --json", fix="Add --json")
    if against is not None and not diff:
        raise UserError("--against goes with --diff", fix="Add --diff")
    found = scoring.score_files(
        rule, predictions, references, diff=diff, against=against, answered=answered, by_place=by_place, say=say
    )
    if as_json:
        import json

        out.print(json.dumps(found.to_json(rows), ensure_ascii=False), markup=False, soft_wrap=True)
        return
    for line in found.lines(SHOWN):
        out.print(line, markup=False, soft_wrap=True)
