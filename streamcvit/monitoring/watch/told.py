"""Events and alerts of a run in words: one line each, with its time and how much it matters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamcvit.monitoring.alertlog import FIRING, read_alerts
from streamcvit.monitoring.guarded import told_of
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.times import unix

MOST = 60
"""Lines that are shown, the newest."""
LONGEST = 300  # characters of one

QUIET = ("audit", "stream", "note")
BAD = ("failed", "damaged")
WARN = ("restart", "stopped", "quarantine", "skipped", "guard", "fenced", "test_unreadable", "set_aside")


def happenings(record: RunRecord) -> list[dict[str, Any]]:
    """What happened to a method, newest last: `at` (Unix time), `kind`, `level` (bad, warn, good or empty), `text`.

    Samples that are left out, and steps that are skipped, of one chunk are one line, and so are chunks in a row.
    """
    lines: list[dict[str, Any]] = []
    for event in record.events:
        kind, chunk = str(event.get("event")), event.get("chunk")
        if kind in QUIET:
            continue
        last = lines[-1] if lines else {}
        if kind in ("quarantine", "skipped") and (last.get("kind"), last.get("chunk")) == (kind, chunk):
            last["count"] += 1
            continue
        if kind == last.get("kind") == "chunk":
            last |= {"at": unix(event.get("time")), **_chunk(event, last)}
            continue
        level = "bad" if kind in BAD else "warn" if kind in WARN else "good" if kind == "finished" else ""
        line: dict[str, Any] = {
            "at": unix(event.get("time")),
            "kind": kind,
            "level": level,
            "text": _said(kind, event)[:LONGEST],
        }
        if kind == "chunk":
            line |= _chunk(event)
        lines.append(line | ({"chunk": chunk, "count": 1} if kind in ("quarantine", "skipped") else {}))
    for line in lines:
        if line.pop("count", 1) > 1:
            line["text"] += " (and others of the chunk)"
    return [{key: line[key] for key in ("at", "kind", "level", "text")} for line in lines[-MOST:]]


def _chunk(event: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """A learned chunk, with those of the line before it."""
    last = int(event.get("chunk", -1)) + 1
    first, samples = (before["first"], before["samples"]) if before else (last, 0)
    samples += event["samples"] if isinstance(event.get("samples"), int) else 0
    text = f"chunk {last} learned" if first == last else f"chunks {first} to {last} learned"
    text += f", {samples:,} samples"
    if isinstance(event.get("loss"), float):
        text += f", loss {event['loss']:.3f}"
    return {"text": text, "first": first, "samples": samples}


def _said(kind: str, event: dict[str, Any]) -> str:
    if kind in ("started", "finished", "stopped"):
        return {"started": "learning began", "finished": "all is learned and scored", "stopped": "stopped"}[kind]
    if kind == "restart":
        return f"{event.get('actor')} replaced ({event.get('cause')}): {event.get('detail')}"
    if kind == "quarantine":
        return f"sample left out: {event.get('reason')}, {event.get('sample_id')}"
    if kind == "skipped":
        return f"step skipped: {event.get('reason')} not finite"
    if kind == "guard":
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of another release: told as it is
            return f"guard: {told_of(event)}"
    if kind == "set_aside":
        return f"set aside ({event.get('reason')}): {event.get('what')}: {event.get('why')}"
    if kind in ("failed", "damaged", "test_unreadable"):
        return f"{kind.replace('_', ' ')}: {event.get('what') or event.get('task')}"
    rest = (f"{key} {value}" for key, value in event.items() if key not in ("time", "event"))
    return f"{kind}: {', '.join(rest)}"


def alerts_of(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Alerts that run folders tell of, those that fire first, then the newest first.

    Each has `at`, `name`, `severity`, `firing`, `method`, `summary`.
    """
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for folder in folders:
        for line in read_alerts(folder):
            key = line["alertname"], *sorted((str(k), str(v)) for k, v in line["labels"].items())
            newest.pop(key, None)
            newest[key] = {
                "at": unix(line["time"]),
                "name": line["alertname"],
                "severity": line["severity"],
                "firing": line["status"] == FIRING,
                "method": str(line["labels"].get("method", "")),
                "summary": line["summary"][:LONGEST],
            }
    alerts = list(newest.values())[::-1]
    return sorted(alerts, key=lambda alert: not alert["firing"])[:MOST]
