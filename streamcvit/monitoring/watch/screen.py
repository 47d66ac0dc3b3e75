"""The essentials of a run in a terminal: where the stream is, what is forgotten, what happened; read of its folder."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamcvit.monitoring.states import FAILED, LIVE
from streamcvit.monitoring.watch.follow import Follower, Parts
from streamcvit.monitoring.watch.hub import LOOK_SECONDS

STYLES = {
    "starting": "cyan",
    "running": "bold cyan",
    "paused": "bold yellow",
    "stopped": "yellow",
    "failed": "bold red",
    "finished": "green",
}
BLOCKS = "▁▂▃▄▅▆▇█"
MARKS = {"bad": ("x", "bold red"), "warn": ("!", "yellow"), "good": ("+", "green"), "": ("·", "dim")}
FIRM = 56
"""Columns below which curves and intervals are left out, and numbers never."""


def show(follower: Follower, console: Console, chosen: str = "") -> None:
    """Show a run until it ends, or Ctrl-C; where output is no terminal, as it is now, once.

    Args:
        follower: of the run.
        console: where to write.
        chosen: the method whose tasks are shown; empty: the one that learns.
    """
    parts = follower.look()
    if not console.is_terminal:
        console.print(screen(parts, console.width, 1000, chosen))
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(screen(parts, console.width, console.height, chosen), refresh=True)
                if parts["run"]["state"] not in LIVE:
                    return
                time.sleep(LOOK_SECONDS)
                parts = follower.look()
        except KeyboardInterrupt:
            return


def screen(parts: Parts, width: int, height: int, chosen: str = "") -> RenderableType:
    """What is shown of a run's parts on a terminal of this size; tasks that do not fit are counted, the worst stay."""
    run, now = parts["run"], parts["now"]
    lines: list[RenderableType] = [_head(run, now)]
    if run["why"]:
        lines.append(Text(run["why"], "red" if run["state"] == FAILED else "yellow"))
    if run["go_on"]:
        lines.append(Text(f"go on: {run['go_on']}", "dim"))
    name = chosen if any(method["name"] == chosen for method in run["methods"]) else under_way(run)
    lines.append(_methods(run, now, name, width))
    view = parts.get(f"m/{name}")
    if view is None:
        return Group(*lines)
    fired = [alert for alert in parts["alerts"] if alert["firing"]][:3]
    events = view["events"][-(4 if height >= 30 else 2) :]
    room = height - len(lines) - len(run["methods"]) - len(fired) - len(events) - 4
    lines += [Text(), _lost(view, width, max(3, room))]
    told = [(MARKS["bad" if alert["severity"] == "critical" else "warn"], alert["summary"]) for alert in fired]
    told += [(MARKS[event["level"]], event["text"]) for event in reversed(events)]
    for (mark, style), text in told:
        lines.append(Text.assemble((mark, style), " ", text, no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def under_way(run: dict[str, Any]) -> str:
    """The method that is paused, else the one that learns, else one that is scored, else the last that learned."""
    going = ("paused", "learning", "following", "scoring")
    under = [m["name"] for state in going for m in run["methods"] if m["state"] == state]
    done = [m["name"] for m in run["methods"] if m["state"] == "finished" and not m["kind"]]
    found = under or done[-1:] or [m["name"] for m in run["methods"]]
    return found[0] if found else ""


def _head(run: dict[str, Any], now: dict[str, Any]) -> Text:
    head = Text.assemble((run["name"], "bold"), "  ", (run["state"], STYLES[run["state"]]))
    if now["left"]:
        head.append(f"  about {_span(now['left'])} of learning left", "dim")
    return head


def _methods(run: dict[str, Any], now: dict[str, Any], chosen: str, width: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(8, width // 4))
    if width >= 70:
        table.add_column(width=min(24, width - 60))
    table.add_column(no_wrap=True)
    for method in run["methods"]:
        at = now["methods"].get(method["name"], {})
        position, total = at.get("position", 0), method["total"]
        share = position / total if total else float(method["state"] == "finished")
        style = "bold" if method["name"] == chosen else ""
        facts = Text(f"{100 * share:3.0f} %")
        if total:
            facts.append(f"  chunk {min(method['chunk'] + (share < 1), method['chunks'])}/{method['chunks']}")
        if method["ap"] is not None:
            facts.append("  AP ", "dim").append(f"{method['ap']:.1f}", "bold")
        wide: list[tuple[str, Any, str]] = [("loss", at.get("loss"), ".3f"), ("samples/s", at.get("rate"), ",.0f")]
        for label, value, form in wide if width >= 90 else wide[:1] if width >= 60 else []:
            if value is not None:
                facts.append(f"  {label} ", "dim").append(format(value, form))
        lag = at.get("lag") or {}
        if lag.get("chunks") and width >= 80:
            facts.append(f"  {lag['chunks']} to score", "yellow")
        bar = [ProgressBar(total=1.0, completed=share, complete_style="cyan", finished_style="green", style="grey37")]
        table.add_row(Text(method["name"], style), *(bar if width >= 70 else []), facts)
    return table


def _lost(view: dict[str, Any], width: int, most: int) -> Table:
    """Tasks, the worst first."""
    rows = [row for row in view["lost"] if row.get("now") is not None]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("task", no_wrap=True, overflow="ellipsis", max_width=max(8, width // 3))
    if width >= FIRM:
        table.add_column("over the stream", no_wrap=True, max_width=min(30, max(8, width - 52)), overflow="crop")
    table.add_column("now", justify="right", no_wrap=True, min_width=5)
    table.add_column("best", justify="right", no_wrap=True, min_width=5)
    table.add_column("change", justify="right", no_wrap=True, min_width=6)
    if width >= 70:
        table.add_column("95 % interval", no_wrap=True, style="dim")
    if width >= 84 and any("probe" in row for row in rows):
        table.add_column("probe", justify="right", no_wrap=True)
    for row in rows[:most]:
        change = -row["lost"]
        style = "bold red" if row["sure"] else "green" if change > 0.05 else ""
        known = row["low"] is not None
        cells: list[Any] = [Text(row["task"])]
        if width >= FIRM:
            cells.append(_curve(view["score"][row["i"]], min(30, max(8, width - 52))))
        cells += [f"{row['now']:.1f}", f"{row['best']:.1f}", Text(f"{change:+.1f}" if known else "new", style)]
        if width >= 70:
            cells.append(f"{-row['high']:+.1f} to {-row['low']:+.1f}" if known else "")
        if len(table.columns) > len(cells):
            cells.append(f"{row['probe'][0]:.1f}" if row.get("probe") else "")
        table.add_row(*cells)
    if len(rows) > most:
        table.add_row(Text(f"and {len(rows) - most} more", "dim"))
    if not rows:
        table.add_row(Text("nothing scored yet", "dim"))
    return table


def _curve(scores: list[float | None], width: int) -> Text:
    """The newest scores as blocks; a blank where none is."""
    signs = [" " if v is None else BLOCKS[min(7, max(0, int(v / 12.5)))] for v in scores]
    while signs and signs[-1] == " ":
        signs.pop()
    return Text("".join(signs[-width:]), "cyan")


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
