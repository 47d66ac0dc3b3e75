"""`--log-format` of `run` and `demo`, and their results as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from streamcvit.screen import Screen, about, as_json

if TYPE_CHECKING:
    from streamcvit.monitoring import RunRecord, Verdict

LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option("--log-format", help="Of what is printed and of run.log: text, or a JSON object a line."),
]


def show_results(out: Screen, records: Sequence[RunRecord], verdict: Verdict) -> None:
    """Print the results of a run: as tables, or a line a method with its metrics."""
    from streamcvit.monitoring import results_tables

    if not as_json():
        out.print(results_tables(records, verdict))
        return
    for record in records:
        metrics = {name: entry["value"] for name, entry in record.summary.get("metrics", {}).items()}
        with about(method=record.method, metrics=metrics):
            out.print("results")
