"""What a run folder tells of the chunk boundaries behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamcvit.errors import UserError
from streamcvit.learning import commit as commits
from streamcvit.learning.epochs import parse_name
from streamcvit.run.messages import ChunkReport

_NOT_REST = ("time", "event", "chunk", "step", "digest")


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of an `events.jsonl`; what is no whole line of JSON is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    events = []
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # named by `RunRecord.problems`
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def boundary_reports(folder: Path, method: str) -> dict[int, ChunkReport]:
    """Reports of the chunk boundaries that a run folder holds commits of, in order.

    Of a commit whose `state.json` is damaged, the events that the driver noted tell the same; one that they do not tell
    of is left out.
    """
    states, damaged = _notes(folder)
    reports = _from_events(folder, method, damaged) if damaged else {}
    for commit, state in states.items():
        if state.get("boundary"):
            lost = state["quarantined"], state.get("skipped", [])
            reports[state["chunk"]] = ChunkReport(
                method, state["chunk"], str(commit), state["step"], state["digest"], state["info"], *lost
            )
    return dict(sorted(reports.items()))


def boundary_report(folder: Path, method: str, chunk: int) -> ChunkReport:
    """The report of a chunk that has been committed.

    Raises:
        UserError: its commit is damaged or lost, and no event tells of it.
    """
    found = boundary_reports(folder, method).get(chunk)
    if found is None:
        raise UserError(
            f"the commit that ends chunk {chunk} is damaged or lost, and events.jsonl does not tell of it",
            where=", ".join(map(str, _notes(folder)[1])) or str(folder / "commits"),
            fix="Restore it from a copy, or start another run",
        )
    return found


def _notes(folder: Path) -> tuple[dict[Path, dict[str, Any]], dict[Path, UserError]]:
    """`state.json` of every commit that counts, and what is wrong where it is damaged."""
    states, damaged = {}, {}
    for commit in commits.list_commits(folder / "commits"):
        try:
            states[commit] = commits.read_note(commit)
        except UserError as error:
            damaged[commit] = error
    return states, damaged


def _from_events(folder: Path, method: str, damaged: dict[Path, UserError]) -> dict[int, ChunkReport]:
    at = {place[0]: commit for commit in damaged if (place := parse_name(commit.name))}
    reports: dict[int, ChunkReport] = {}
    bad: dict[int, list[dict[str, Any]]] = {}
    skipped: dict[int, list[dict[str, Any]]] = {}
    for event in read_events(folder / "events.jsonl"):
        rest = {key: value for key, value in event.items() if key not in _NOT_REST}
        match event:
            case {"event": "quarantine", "chunk": int(chunk), "position": int()}:
                bad.setdefault(chunk, []).append(rest)
            case {"event": "skipped", "chunk": int(chunk)}:
                skipped.setdefault(chunk, []).append({**rest, "chunk": chunk, "step": event.get("step")})
            case {"event": "chunk", "chunk": int(chunk), "step": int(step), "digest": str(digest)} if step in at:
                what = f"{at[step]}: {damaged[at[step]].what}; events.jsonl is used"
                lost = bad.get(chunk, []), skipped.get(chunk, [])
                reports[chunk] = ChunkReport(method, chunk, str(at[step]), step, digest, rest, *lost, damaged=(what,))
    return reports
