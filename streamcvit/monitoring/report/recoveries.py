"""What went wrong in a run and how it went on, in sentences; and the alerts that fired meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from streamcvit.monitoring.alertlog import FIRING, read_alerts
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.charts import shorten
from streamcvit.monitoring.runs import Records

MOST = 60
"""Lines of a run, and alerts of a report, that are shown."""
LONGEST = 160
"""Characters of what one event says."""
CAUSES = {
    "died": "its process was gone",
    "silent": "it gave no sign of life",
    "stuck": "it did not move",
    "failed": "it failed",
}
ELSEWHERE = ("audit", "chunk", "finished", "guard", "note", "stream")
"""Kinds of events that the page tells elsewhere, or that are no news."""
BAD, GOOD, PLAIN = "bad", "good", "plain"


def recoveries(record: RunRecord) -> dict[str, Any]:
    """Failures and what followed, in order: lines of (time, kind, sentence), how many more there are, and the end."""
    events = [event for event in record.events if event.get("event") not in ELSEWHERE]
    lines: list[tuple[str, str, str]] = []
    begun = False
    for _, group in groupby(events, _alike):
        together = list(group)
        name, first = str(together[0].get("event", "")), together[0]
        if name == "started":
            if begun:
                lines.append((_time(first), GOOD, "It went on from what was committed."))
            begun = True
            continue
        kind, sentence = SENTENCES.get(name, _other)(together)
        lines.append((_time(first), kind, sentence))
    counts = [(name, len(record.events_of(name))) for name in ("restart", "stopped", "failed")]
    names = {"restart": "restart", "stopped": "stop", "failed": "failure"}
    end = next((event for event in reversed(record.events) if event.get("event") == "finished"), None)
    return {
        "lines": lines[:MOST],
        "more": max(0, len(lines) - MOST),
        "summary": ", ".join(f"{count} {names[name]}{'' if count == 1 else 's'}" for name, count in counts if count),
        "end": _time(end) if end and lines else "",
    }


def _alike(event: dict[str, Any]) -> tuple[str, ...]:
    """Events of one key, one after the other, are told together."""
    name = str(event.get("event", ""))
    if name in ("quarantine", "skipped"):
        return name, str(event.get("chunk", "")), str(event.get("reason", ""))
    return name, str(id(event))


def _time(event: dict[str, Any]) -> str:
    said = str(event.get("time", ""))
    try:
        return datetime.fromisoformat(said).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return said


def _chunk(event: dict[str, Any]) -> str:
    return f"chunk {event['chunk'] + 1}" if isinstance(event.get("chunk"), int) else ""


def _many(events: Sequence[Any], one: str, several: str = "") -> str:
    return f"{len(events)} {one if len(events) == 1 else several or one + 's'}"


def _restart(events: Sequence[dict[str, Any]]) -> tuple[str, str]:
    event = events[0]
    cause, detail = str(event.get("cause") or ""), str(event.get("detail") or "")
    why = CAUSES.get(cause, cause) or "no cause is noted"
    told = f" ({detail})" if detail else ""
    return GOOD, f"{event.get('actor', 'an actor')} was replaced: {why}{told}. The work went on with a new one."


def _quarantine(events: Sequence[dict[str, Any]]) -> tuple[str, str]:
    first, where = events[0], _chunk(events[0])
    name = first.get("sample_id") or f"position {first.get('position', '?')}"
    told = (
        f"{_many(events, 'sample')}{f' of {where}' if where else ''} could not be learned ({first.get('reason', '')})"
    )
    return (
        BAD,
        f"{told}, the first: {name}: {shorten(str(first.get('detail', '')), LONGEST)}. The stream went on without.",
    )


def _skipped(events: Sequence[dict[str, Any]]) -> tuple[str, str]:
    where = _chunk(events[0])
    told = f"{_many(events, 'step')}{f' of {where}' if where else ''} not taken: the {events[0].get('reason', 'loss')}"
    return BAD, f"{told} was not finite. Weights stayed as they were."


def _fenced(events: Sequence[dict[str, Any]]) -> tuple[str, str]:
    return GOOD, f"A learner that was replaced reported {_chunk(events[0]) or 'a chunk'} late; that did not count."


def _unreadable(events: Sequence[dict[str, Any]]) -> tuple[str, str]:
    left = events[0].get("left_out")
    items = list(left.items()) if isinstance(left, dict) else []
    first = f", the first: {items[0][0]}: {items[0][1]}" if items else ""
    return BAD, f"{_many(items, 'test sample')} of {events[0].get('task', '?')} cannot be used{first}."


def _changed(events: Sequence[dict[str, Any]]) -> tuple[str, str]:
    event = events[0]
    return PLAIN, f"{event.get('key', '?')} was changed from {event.get('before')} to {event.get('after')} on resuming."


def _other(events: Sequence[dict[str, Any]]) -> tuple[str, str]:
    event = events[0]
    rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event"))
    return PLAIN, f"{event.get('event', 'event')}: {rest}" if rest else f"{event.get('event', 'event')}"


SENTENCES: dict[str, Callable[[Sequence[dict[str, Any]]], tuple[str, str]]] = {
    "restart": _restart,
    "quarantine": _quarantine,
    "skipped": _skipped,
    "fenced": _fenced,
    "test_unreadable": _unreadable,
    "changed": _changed,
    "stopped": lambda events: (PLAIN, "It was stopped in good order; what was learned is committed."),
    "failed": lambda events: (BAD, f"It ended before its end: {events[0].get('what', 'no reason is noted')}"),
    "set_aside": lambda events: (
        PLAIN,
        f"Set aside ({events[0].get('reason', '?')}): {events[0].get('what', '?')}: {events[0].get('why', '?')}.",
    ),
    "damaged": lambda events: (BAD, f"Damaged: {events[0].get('what', '?')}. It is made again from what is whole."),
}
"""A sentence of each kind of event."""


def alerts(runs: Records) -> list[dict[str, Any]]:
    """The alerts that fired in these runs: since when, until when (empty: it fired to the end), which, its words."""
    folders = dict.fromkeys(record.folder.parent for _, record in runs)
    return [span for folder in folders for span in _spans(folder, {r.method for _, r in runs})][:MOST]


def _spans(folder: Path, methods: set[str]) -> Iterator[dict[str, Any]]:
    open_: dict[tuple[Any, ...], dict[str, Any]] = {}
    spans = []
    for row in read_alerts(folder):
        if row["labels"].get("method", next(iter(methods), "")) not in methods:
            continue
        key = row["alertname"], *sorted((str(k), str(v)) for k, v in row["labels"].items())
        if row["status"] == FIRING and key not in open_:
            open_[key] = {
                "since": _time(row), "until": "", "name": row["alertname"], "severity": row["severity"],
                "summary": row["summary"],
            }  # fmt: skip
            spans.append(open_[key])
        elif row["status"] != FIRING and key in open_:
            open_.pop(key)["until"] = _time(row)
    yield from spans
