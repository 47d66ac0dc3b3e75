"""`streamcvit status`, `ls`, `logs` and `stop`: look at runs and end them, from another terminal."""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from streamcvit.errors import UserError
from streamcvit.screen import Screen

if TYPE_CHECKING:
    from streamcvit.monitoring.states import MethodState, RunState

out = Screen()
Run = Annotated[str, typer.Argument(help="A run's folder, or its name in runs/.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
STYLES = {"starting": "cyan", "running": "bold cyan", "paused": "bold yellow"}
STYLES |= {"stopped": "yellow", "failed": "bold red", "finished": "green"}


def status(run: Run, as_json: AsJson = False) -> None:
    """Show what a run is doing, how far it came, what it scored so far, and how to go on."""
    from streamcvit.comparison import verdict_of
    from streamcvit.monitoring import RunRecord, find_runs, results_tables
    from streamcvit.monitoring.states import run_folder, state_of

    try:
        state = state_of(run_folder(run))
    except UserError:
        if not Path(run).exists():
            raise
        records = [RunRecord.load(found) for found in find_runs(run)]  # method folders without their run's
        state = None
    if as_json:
        print(json.dumps(state.to_json() if state else [record.method for record in records], indent=1))
        return
    if state is not None:
        for line in said(state):
            out.print(line, soft_wrap=True)
        folders = [Path(state.folder) / method.name for method in state.methods]
        if any((folder / "config.yaml").is_file() and not (folder / "run.json").is_file() for folder in folders):
            folders = find_runs(state.folder, deep=True)  # several runs, each with its methods
        records = [RunRecord.load(folder) for folder in folders]
    if records:
        out.print(results_tables(records, verdict_of(records, baselines=False)))


def said(state: RunState) -> list[Text]:
    """A run's state in a few lines."""
    head = Text.assemble((state.name, "bold"), " is ", (state.state, STYLES[state.state]))
    if state.pid is not None:
        head.append(f"  process {state.pid} on {state.host} since {state.since}", "dim")
    lines = [head]
    if state.why:
        lines.append(Text(f"  {state.why}"))
    width = max((len(method.name) for method in state.methods), default=0)
    lines += [Text(f"  {method.name:<{width}}  {_line(method)}") for method in state.methods]
    if state.seconds_left:
        lines.append(Text(f"  about {timedelta(seconds=round(state.seconds_left))} of learning left"))
    if state.page:
        lines.append(Text(f"  live page: {state.page}"))
    if state.go_on:
        lines.append(Text(f"  go on: {state.go_on}"))
    return lines


def _line(method: MethodState) -> str:
    parts = [method.state]
    if method.total:
        parts.append(f"chunk {method.chunk} of {method.chunks}, {method.position:,} of {method.total:,} samples")
    if method.samples_per_second and method.state == "learning":
        parts.append(f"{method.samples_per_second:,.0f} samples/s")
    if method.ap is not None:
        parts.append(f"AP {method.ap:.1f}")
    if method.steps_skipped:
        parts.append(f"{method.steps_skipped} steps skipped")
    return ", ".join(parts)


def ls(
    folder: Annotated[Path, typer.Argument(help="Folder that run folders are in.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: what each is doing and how far it came."""
    from streamcvit.monitoring.states import LOCK, state_of

    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder), fix="Give the folder that holds run folders")
    found = sorted(path.parent for path in folder.glob(f"*/{LOCK}"))
    states = [state_of(path) for path in found]
    if as_json:
        print(json.dumps([state.to_json() for state in states], indent=1))
        return
    if not states:
        out.print(f"no runs in {folder}", markup=False)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "methods", "learned"):
        table.add_column(heading, header_style="dim", justify="right" if heading == "learned" else "left")
    for state in states:
        total = sum(method.total for method in state.methods)
        learned = sum(method.position for method in state.methods)
        share = f"{100 * learned / total:.0f} %" if total else "-"
        names = ", ".join(method.name for method in state.methods)
        table.add_row(Text(state.name), Text(state.state, STYLES[state.state]), Text(names), share)
    out.print(table)


def logs(
    run: Run,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many of the last lines; 0: all.")] = 0,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is written until the run ends.")] = (
        False
    ),
) -> None:
    """Print what a run said, with the times: its log is run.log in its folder."""
    from streamcvit.monitoring.runlog import LOG
    from streamcvit.monitoring.states import check_single, holder, run_folder

    folder = run_folder(run)
    check_single(folder)
    path = folder / LOG
    if not path.is_file():
        raise UserError("this run has no log", where=str(path), fix="One is written as soon as it begins to learn")
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in deque(file, maxlen=lines or None):
            out.print(Text(line.rstrip("\n")), soft_wrap=True)
        while follow:
            living = holder(folder) is not None
            for line in file:
                out.print(Text(line.rstrip("\n")), soft_wrap=True)
            if not living:
                return
            time.sleep(0.3)


def stop(
    run: Run,
    at_once: Annotated[bool, typer.Option("--at-once", help="Do not wait for a commit; it goes on from the last.")] = (
        False
    ),
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for it to end.")] = 180.0,
) -> None:
    """Stop a run in good order: it commits after the batch it is at, and `--resume` goes on from there."""
    from streamcvit.monitoring.states import holder, run_folder

    folder = run_folder(run)
    held = holder(folder)
    if held is None or not held.get("pid"):
        out.print(f"{folder.name} is not running", markup=False)
        return
    if held.get("host") != platform.node():
        raise UserError(
            f"it runs on {held.get('host')}", where=str(folder), fix=f"Stop it there: kill -TERM {held['pid']}"
        )
    for _ in range(2 if at_once else 1):
        try:
            os.kill(held["pid"], signal.SIGTERM)
        except ProcessLookupError:
            break  # it has ended meanwhile
        except PermissionError:
            raise UserError("it is another person's run", where=str(folder), fix="Ask them to stop it") from None
        time.sleep(0.5)
    fix = "Wait longer (--wait), or --at-once"
    late = UserError(f"process {held['pid']} has not ended yet", where=str(folder), fix=fix)
    say_once(lambda: holder(folder) is None, wait, folder, late)


def say_once(done: Callable[[], bool], seconds: float, folder: Path, late: UserError) -> None:
    """Wait for something at most so many seconds, then print what the run in a folder is doing.

    Raises:
        UserError: `late`, where it is not done by then.
    """
    from streamcvit.monitoring.states import state_of

    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise late
        time.sleep(0.1)
    for line in said(state_of(folder)):
        out.print(line, soft_wrap=True)
