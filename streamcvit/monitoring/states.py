"""What a run is doing: starting, running, paused, stopped, failed or finished, how far it came, and how to go on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from streamcvit.errors import UserError
from streamcvit.monitoring.arriving import read_arrivals
from streamcvit.monitoring.guarded import GO_ON, pause_of
from streamcvit.monitoring.record import RunRecord

LOCK = "lock.json"
"""Held by the process that runs in a folder, which says there who it is; it goes with the process."""

STATES = ("starting", "running", "paused", "stopped", "failed", "finished")
STARTING, RUNNING, PAUSED, STOPPED, FAILED, FINISHED = STATES
LIVE = (STARTING, RUNNING, PAUSED)
"""Those of a run that a process runs in."""


@dataclass(frozen=True)
class MethodState:
    """One method of a run.

    Attributes:
        name: of the method.
        state: `waiting`, `learning`, `paused` (by the guard), `following` (all that has arrived is
            learned, and more may come), `scoring` (all is learned) or `finished`.
        chunk, chunks: learned to their end, and in all.
        position, total: samples behind it, and in all; both 0 for one that learns nothing.
        samples_per_second: in the newest chunk, waiting included; None before its end.
        steps_skipped: whose loss or gradient was not finite.
        ap: after the newest scored chunk, in points; None before.
    """

    name: str
    state: str
    chunk: int
    chunks: int
    position: int
    total: int
    samples_per_second: float | None
    steps_skipped: int
    ap: float | None


@dataclass(frozen=True)
class RunState:
    """A run, from its folder alone.

    Attributes:
        name, folder: of the run.
        state: one of `STATES`.
        why: what ended or paused it, where something did; one line.
        pid, host, since: of the process that runs in it; None, "" and "" where none does.
        page: address of its live page; empty where it serves none.
        seconds_left: of learning, from the newest chunk's speed; None where that is not known.
        go_on: the command that continues it; empty where nothing is to be continued.
        methods: in the order they are learned.
        order: names of all methods that its settings name, begun or not.
    """

    name: str
    folder: str
    state: str
    why: str = ""
    pid: int | None = None
    host: str = ""
    since: str = ""
    page: str = ""
    seconds_left: float | None = None
    go_on: str = ""
    methods: list[MethodState] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All of it, as `streamcvit status --json` prints it."""
        return asdict(self)


def holder(folder: Path) -> dict[str, Any] | None:
    """What the process that runs in a folder says of itself (pid, host, since, page); None where none does."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            said = json.loads(os.pread(descriptor, 10_000, 0))
            return said if isinstance(said, dict) else {}
        return {}
    except OSError:  # a file system without locks: nobody can tell
        return None
    finally:
        os.close(descriptor)
    return None


def run_folder(name: str | os.PathLike, root: str | os.PathLike = "runs") -> Path:
    """The folder of a run that is named by its path, a path within it, or its name.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    for one in (path, Path(root) / path):
        for folder in (one, one.parent):
            if (folder / LOCK).is_file() or (folder / "config.yaml").is_file() and not (folder / "run.json").is_file():
                return folder
    raise UserError("there is no such run", where=os.fspath(name), fix=f"`streamcvit ls` lists those in {root}/")


def state_of(folder: Path, records: Sequence[RunRecord] | None = None) -> RunState:
    """A run's state.

    Args:
        folder: of the whole run, its methods' folders in it.
        records: of those of its methods that have begun; read where they are not given.
    """
    held = holder(folder)
    config = _config(folder)
    if config.get("seeds") or config.get("sweep"):
        return _of_several(folder, config, held)
    names = [name for name in config.get("methods") or {} if isinstance(name, str)]
    if records is None:
        records = [RunRecord.load(folder / name) for name in names if (folder / name / "run.json").is_file()]
    names = names or [record.method for record in records]
    methods = [_method(record) for record in records]
    ended = bool(methods) and len(records) == len(names) and all(record.finished for record in records)
    why, pause = "", next(filter(None, map(pause_of, records)), "")
    if held is not None:
        begun = any(record.events_of("started") for record in records)
        state = FINISHED if ended else RUNNING if begun else STARTING
        if state == RUNNING and pause:
            state, why = PAUSED, pause
    elif ended:
        state = FINISHED
    else:
        last = max(_endings(records), key=lambda event: str(event.get("time")), default={})
        state = FAILED if last.get("event") == "failed" else STOPPED
        why = str(last.get("what") or "") if state == FAILED else ""
        if state == STOPPED and last.get("event") != "stopped":
            why = "its process is gone" if records else "it ended before it began to learn"
        if state == STOPPED and pause:
            until = (
                "goes on once it is started" if (folder / GO_ON).exists() else f"waits for streamcvit resume {folder}"
            )
            why = f"{why}{'; ' if why else ''}{pause}; it {until}"
    said = held or {}
    live = state in LIVE
    go_on = f"streamcvit resume {folder}" if state == PAUSED else ""
    if state in (STOPPED, FAILED) and records:
        go_on = f"streamcvit run {folder / 'config.yaml'} --resume"
    return RunState(
        name=str(config.get("name") or folder.resolve().name),
        folder=str(folder),
        state=state,
        why=why,
        pid=said.get("pid"),
        host=str(said.get("host") or ""),
        since=str(said.get("since") or ""),
        page=str(said.get("page") or "") if live else "",
        seconds_left=_left(methods) if live else None,
        go_on=go_on,
        methods=methods,
        order=names,
    )


def _config(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def check_single(folder: Path) -> None:
    """Go on only with a single run.

    Raises:
        UserError: the folder is that of several seeds, or of a sweep.
    """
    config = _config(folder)
    if config.get("seeds") or config.get("sweep"):
        there = [path.parent.name for path in sorted(folder.glob("*/config.yaml"))]
        fix = f"Name one of them: {folder / there[0]}" if there else "Wait until the first of them has begun"
        raise UserError("these are several runs, and each is looked at by itself", where=str(folder), fix=fix)


def _of_several(folder: Path, config: dict[str, Any], held: dict[str, Any] | None) -> RunState:
    """The state of several seeds, or of a sweep: each of its runs has the place of a method."""
    runs = [state_of(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    parts = [_as_one(run) for run in runs]
    ended = bool(runs) and (folder / "report.html").is_file() and all(run.state == FINISHED for run in runs)
    failed = next((run for run in runs if run.state == FAILED), None)
    state = RUNNING if held is not None else FINISHED if ended else FAILED if failed else STOPPED
    said = held or {}
    return RunState(
        name=str(config.get("name") or folder.resolve().name),
        folder=str(folder),
        state=state,
        why=f"{failed.name}: {failed.why}" if failed and state == FAILED else "",
        pid=said.get("pid"),
        host=str(said.get("host") or ""),
        since=str(said.get("since") or ""),
        go_on=f"streamcvit run {folder / 'config.yaml'} --resume" if state in (STOPPED, FAILED) else "",
        methods=parts,
    )


def _as_one(run: RunState) -> MethodState:
    """A run's methods together."""
    chunk, chunks, position, total, skipped = (
        sum(getattr(method, name) for method in run.methods)
        for name in ("chunk", "chunks", "position", "total", "steps_skipped")
    )
    return MethodState(run.name, run.state, chunk, chunks, position, total, None, skipped, None)


def _endings(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The newest beginning or end of each method that is not finished."""
    kinds = ("started", "stopped", "failed")
    of = [[e for e in record.events if e.get("event") in kinds] for record in records if not record.finished]
    return [events[-1] for events in of if events]


def _method(record: RunRecord) -> MethodState:
    chunks, total = record.chunk_events(), record.total_samples
    rate = None
    if chunks and chunks[-1].get("samples"):
        seconds = [chunks[-1].get(key) or 0.0 for key in ("busy_s", "wait_ingest_s", "wait_evaluation_s")]
        rate = chunks[-1]["samples"] / sum(seconds) if sum(seconds) else None
    if record.finished:
        state = "finished"
    elif pause_of(record):
        state = PAUSED
    elif total and record.position < total:
        state = "learning" if record.position else "waiting"
    elif (word := read_arrivals(record.folder)) and not word.get("ended"):
        state = "following"
    else:
        state = "scoring"
    ap = record.metric("ap")
    return MethodState(
        record.method,
        state,
        len(chunks),
        record.n_chunks,
        record.position,
        total,
        rate,
        sum(record.skipped.values()),
        ap[0] if ap else None,
    )


def _left(methods: list[MethodState]) -> float | None:
    """Seconds of learning that are left, each method's samples at its own speed, or at the newest one known."""
    known = [method.samples_per_second for method in methods if method.samples_per_second]
    if not known:
        return None
    return sum((method.total - method.position) / (method.samples_per_second or known[-1]) for method in methods)
