"""The report with its verdict, and where it may be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamcvit.comparison.baselines import baselines_of
from streamcvit.comparison.decide import compare_runs
from streamcvit.errors import UserError
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.page import write_report
from streamcvit.monitoring.runs import find_runs
from streamcvit.monitoring.verdict import Verdict

PAGE = "report.html"


def verdict_of(records: Sequence[RunRecord], baselines: bool = True) -> Verdict:
    """What is found when these runs are held against each other; what cannot be read decides nothing, and is noted.

    Args:
        records: the runs.
        baselines: whether what answers without a look would get is wanted beside it, for which test sets are read.
    """
    found = compare_runs(records, strict=False)
    return found.verdict(baselines_of(record for _, record in found.runs) if baselines else None)


def report(folders: Sequence[Path], out: Path, title: str) -> tuple[Path, Sequence[RunRecord], Verdict]:
    """Write the report of these method's run folders; the page, the runs and what was found.

    Raises:
        UserError: a folder is no run's, or the page cannot be written.
    """
    records = [RunRecord.load(folder) for folder in folders]
    verdict = verdict_of(records)
    return write_report(records, out, title, verdict), records, verdict


def page_for(given: Sequence[Path], found: Sequence[Path], to: Path | None) -> Path:
    """Where the report of these runs goes: a run's own page is written by the report of exactly that run.

    Args:
        given: the folders named.
        found: the run folders in them.
        to: the page named, if one is.

    Raises:
        UserError: the page is another run's own.
    """
    if to is None:
        if len(given) == 1:
            return given[0] / PAGE
        return given[0].resolve().parent / ("-".join(dict.fromkeys(path.resolve().name for path in given)) + ".html")
    own = to if not to.is_dir() else to / PAGE
    if own.name == PAGE and own.exists():
        try:
            there = find_runs(own.resolve().parent)
        except UserError:
            there = []
        if there and {path.resolve() for path in there} != {path.resolve() for path in found}:
            raise UserError(
                "is the page of another run, or of one of these alone", where=str(own), fix="Give --to another name"
            )
    return own
