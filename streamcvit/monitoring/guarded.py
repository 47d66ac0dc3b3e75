"""What the guard did about forgetting, in words: for the screen, the report and `streamcvit status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamcvit.monitoring.record import RunRecord

LOST, RECOVERED, PAUSED, RESUMED, BACK = "lost", "recovered", "paused", "resumed", "rolled back"
RAISED, LOWERED = "replay raised", "replay lowered"
GO_ON = "go-on.json"
"""In a run's folder: somebody lets a paused run go on, which takes it away (`streamcvit.run.forgetting`)."""


def told_of(event: Mapping[str, Any]) -> str:
    """A `guard` event of `events.jsonl` in one line."""
    what, task = event.get("what"), event.get("task")
    if what == RESUMED:
        return "goes on" + (f" ({event['why']})" if event.get("why") else "")
    if what == LOWERED:
        return f"{what} to what it was"
    if what == RAISED:
        return f"{what} to {100 * event['share']:.0f} % of the batch, for {', '.join(event['tasks'])}"
    points, best = event["points"], event["best_chunk"] + 1
    if what == RECOVERED:
        place = f"{abs(points):.1f} points {'below' if points > 0 else 'above'}" if points else "at"
        return f"{task} has recovered: {place} its best after chunk {best}"
    if what == BACK:
        undone = f"chunk {best + 1}" + (f" to {event['chunk'] + 1}" if event["chunk"] > best else "")
        return f"the weights after chunk {best} are put back for {task}: {undone} undone"
    lost = f"{task} has lost {points:.1f} points (95 % interval {event['low']:.1f} to {event['high']:.1f})"
    return f"paused: {lost}" if what == PAUSED else f"{lost} since its best after chunk {best}"


def acts(record: RunRecord) -> list[tuple[str, int, str, str]]:
    """Time, chunk (from 1), what, and the line for each `guard` event of a run that can be read."""
    found = []
    for event in record.events_of("guard"):
        try:
            found.append((str(event.get("time", "")), int(event["chunk"]) + 1, str(event["what"]), told_of(event)))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def put_back_after(record: RunRecord) -> list[int]:
    """The chunks (from 0) after which a run put earlier weights back."""
    return [chunk - 1 for _, chunk, what, _ in acts(record) if what == BACK]


def pause_of(record: RunRecord) -> str:
    """Why a run stands still, where its guard paused it and nobody let it go on; else empty."""
    told = [(chunk, what, said) for _, chunk, what, said in acts(record) if what in (PAUSED, RESUMED)]
    if record.finished or not told or told[-1][1] == RESUMED:
        return ""
    chunk, _, said = told[-1]
    if any(event["chunk"] >= chunk for event in record.chunk_events()):
        return ""  # it went on, and the word of it was lost
    return f"{record.method} {said}"
