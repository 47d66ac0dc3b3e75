"""The report: one HTML file that holds everything it shows and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from streamcvit.errors import UserError
from streamcvit.monitoring.guarded import acts, put_back_after
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report import figures, flips, heldout, recoveries, tables
from streamcvit.monitoring.report.drifts import drift_charts, missing_tables, without_probe
from streamcvit.monitoring.report.extras import audited, own_metrics
from streamcvit.monitoring.report.plandrawing import plan_svg
from streamcvit.monitoring.runs import LOWER_IS_BETTER, Records, compared, shown_metrics
from streamcvit.monitoring.verdict import UNDECIDED, Verdict

__all__ = ["plan_svg", "render_report", "write_report"]

PALETTE = 7
"""Distinct colours for compared runs; with more runs they repeat, and markers tell them apart."""

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)


def write_report(
    records: Sequence[RunRecord], out: Path | str, title: str = "streamcvit report", verdict: Verdict = UNDECIDED
) -> Path:
    """Write a report that compares runs, finished or in progress.

    Args:
        records: the runs.
        out: the HTML file to write; replaced in one step, so that a reader never sees half of it.
        title: heading of the page.
        verdict: what was found when they were held against each other.

    Returns:
        the file written.

    Raises:
        UserError: there is no run, or the file cannot be written.
    """
    out = Path(out)
    page = render_report(records, title, verdict=verdict)
    half = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        half.write_text(page, encoding="utf-8")
        half.replace(out)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise UserError(
            f"cannot write the report ({error.strerror})", where=str(out), fix="Give another path"
        ) from None
    return out


def render_report(
    records: Sequence[RunRecord],
    title: str = "streamcvit report",
    verdict: Verdict = UNDECIDED,
) -> str:
    """The report's HTML.

    Args:
        records: runs to show, one or more.
        title: heading of the page.
        verdict: what was found when they were held against each other; without it, no run is called best.

    Raises:
        UserError: there is no run.
    """
    if not records:
        raise UserError("there is no run to report on", fix="Give one run folder or more")
    runs = compared(records)
    templates = files("streamcvit.monitoring.report") / "templates"
    script, style = ((templates / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    # The page's own script is allowed by its digest; any other, however it got in, is not run.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((templates / "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        policy=_POLICY.format(digest=digest),
        script=Markup(script),
        style=Markup(style),
        **_view(runs, verdict),
    )


def _columns(runs: Records, family: str) -> list[tuple[str, str, str]]:
    """Name, note and direction of each metric of a headline table."""
    names = shown_metrics([record for _, record in runs], family)
    return [(*tables.HEADINGS[name], "↓" if name.startswith(LOWER_IS_BETTER) else "↑") for name in names]


def _view(runs: Records, verdict: Verdict) -> dict[str, Any]:
    first = figures.stream_of(runs)
    following_chart, following_heat = figures.following(runs, verdict.seeds)
    flipped, unpictured = flips.flips(runs)
    timing_charts, timing_totals = figures.timing(runs)
    return {
        "runs": [
            {"run": i, "label": label, "color": color}
            for i, ((label, _), color) in enumerate(zip(runs, _colours(runs, verdict), strict=True))
        ],
        "chips": _chips(runs, verdict),
        "active": _leading(runs),
        "probes": len(runs) <= figures.MAX_PROBED and any(r.probes for _, r in runs),
        "facts": _facts(runs),
        "plan_of": next(label for label, record in runs if record is first),
        "same_plan": figures.same_plan(runs),
        "headlines": [
            (family, _columns(runs, family), tables.headline(runs, verdict, family))
            for family in ("strict", "strcvit")
            if family == "strict" or any(record.metric("ap", family) for _, record in runs)
        ],
        "forms": tables.following_tables(runs),
        "findings": tables.findings(runs, verdict),
        "final": tables.final_scores(runs, verdict),
        "baselines": bool(verdict.baselines),
        "decided": bool(verdict.best),
        "verdict_notes": verdict.notes,
        "latex": tables.latex_table(runs, verdict),
        "csv": tables.csv_table(runs, verdict),
        "plan": figures.plan_heat(first) if first.plan.size else None,
        "stream_notes": [str(event.get("what", "")) for event in first.events_of("stream")],
        "stream_charts": figures.stream_charts(runs, verdict.seeds),
        "task_charts": figures.task_charts(runs, verdict.seeds),
        "forgetting_charts": figures.forgetting_charts(runs),
        "matrices": [(i, label, figures.score_heat(r)) for i, (label, r) in enumerate(runs) if r.scores or r.summary],
        "prequential_charts": figures.prequential_charts(runs, verdict.seeds),
        "heldout_charts": heldout.charts(runs),
        "following_chart": following_chart,
        "following_heat": following_heat,
        "experts": [(i, label, heats) for i, (label, r) in enumerate(runs) if (heats := figures.experts(r))],
        "drift_charts": drift_charts(runs),
        "missing": missing_tables(runs),
        "without_probe": without_probe(runs),
        "timing_charts": timing_charts,
        "timing_totals": timing_totals,
        "waits": figures.WAITS,
        "scorers": tables.scorer_table(runs),
        "audits": audited(runs),
        "own_metrics": own_metrics(runs),
        "flips": flips.said(flipped),
        "unpictured": unpictured,
        "recoveries": [
            (i, label, told) for i, (label, r) in enumerate(runs) if (told := recoveries.recoveries(r))["lines"]
        ],
        "alerts": recoveries.alerts(runs),
        "answers": [(i, label, rows) for i, (label, r) in enumerate(runs) if (rows := tables.forgotten_answers(r))],
        "guarded": [(i, label, done) for i, (label, r) in enumerate(runs) if (done := acts(r))],
        "went_back": any(put_back_after(record) for _, record in runs),
        "happenings": [(i, label, tables.happenings(r)) for i, (label, r) in enumerate(runs)],
        "settings": tables.differing_settings(runs),
        "configs": [
            (label, yaml.safe_dump(r.config, sort_keys=False, allow_unicode=True), sorted(_origin(r).items()))
            for label, r in runs
        ],
    }


def _chips(runs: Records, verdict: Verdict) -> list[dict[str, Any]]:
    """The lines of the charts: number and label of each run, of several seeds those of the first."""
    of = {group.runs[0]: f"{group.label} ({len(group.runs)} seeds)" for group in verdict.seeds}
    rest = {run for group in verdict.seeds for run in group.runs[1:]}
    return [{"run": i, "label": of.get(i, label)} for i, (label, _) in enumerate(runs) if i not in rest]


def _colours(runs: Records, verdict: Verdict) -> list[str]:
    """A CSS variable a run: grey for what learns nothing, ink for upper bounds, the palette in turn for the rest; one
    for all seeds of a method."""
    colours: list[str] = []
    used = 0
    first = {run: group.runs[0] for group in verdict.seeds for run in group.runs[1:]}
    for place, (_, record) in enumerate(runs):
        if place in first:
            colours.append(colours[first[place]])
        elif record.untrained:
            colours.append("--untrained")
        elif record.upper_bound:
            colours.append("--bound")
        else:
            colours.append(f"--hue{used % PALETTE}")
            used += 1
    return colours


def _leading(runs: Records) -> int:
    """The run whose panel is open at first: of the compared ones, that of the highest AP."""
    value = {i: entry[0] for i, (_, r) in enumerate(runs) if not r.upper_bound and (entry := r.metric("ap"))}
    return max(value, key=lambda i: value[i]) if value else 0


def _facts(runs: Records) -> dict[str, Any]:
    first = figures.stream_of(runs)
    unfinished = [label for label, record in runs if not record.finished]

    def shared(key: str) -> str:
        values = sorted({str(record.run[key]) for _, record in runs if record.run.get(key) not in (None, "")})
        return ", ".join(values)

    return {
        "chunks": first.n_chunks,
        "tasks": len(first.tasks),
        "samples": f"{first.total_samples:,}".replace(",", "\u202f"),
        "seeds": shared("seed"),
        "device": shared("device"),
        "machine": shared("machine"),
        "started": min((str(r.run["started"]) for _, r in runs if r.run.get("started")), default="")[:10],
        "unfinished": unfinished,
        "family": first.summary.get("family", "strict"),
    }


def _origin(record: RunRecord) -> dict[str, str]:
    """Where a run comes from: versions, commit, digests, machine."""
    versions = record.run.get("versions")
    found = {
        f"version of {name}": str(value) for name, value in (versions if isinstance(versions, dict) else {}).items()
    }
    for key in ("git_commit", "base_digest", "index_digest", "machine", "device", "seed", "started", "finished"):
        if record.run.get(key) is not None:
            found[key.replace("_", " ")] = str(record.run[key])
    if isinstance(start := record.run.get("start"), dict):
        found["started from"] = f"{start.get('from')} (digest {start.get('digest')})"
    return found
