"""The live view in a terminal of every usual size: whole, complete, its numbers uncut, whatever happens meanwhile."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from running import environment
from synthetic_run import write_runs
from terminals import Terminal
from viewed import METHODS, TASKS

from streamcvit.monitoring.liverows import Change, Row, draw
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.terminal import results_tables

VIEWED = Path(__file__).resolve().parents[1] / "viewed.py"
SIZES = [(40, 24), (60, 24), (80, 24), (120, 30), (200, 50)]


def whole(terminal: Terminal) -> None:
    """The view comes to stand on the screen once, all of it, and nothing of it in what went out at the top."""

    def shown(text: str) -> bool:
        once = all(text.count(part) == 1 for part in ("zero-sh", "after chunk 6", "↑12", "↓34", " 45 %"))
        fits = all(cell_len(line) <= terminal.screen.columns for line in terminal.screen.lines)
        return once and fits and "waiting" in text

    terminal.read(0.3)
    terminal.until(shown, 15)


def test_the_view_stays_whole_at_every_size_through_all_that_may_disturb_it(tmp_path: Path) -> None:
    with Terminal([sys.executable, str(VIEWED)], *SIZES[-1], environment(), tmp_path) as terminal:
        terminal.until(lambda text: "↓34" in text and "waiting" in text)
        for place, (columns, rows) in enumerate(SIZES[::-1]):
            terminal.resize(columns, rows)
            whole(terminal)
            for word in ("message", "print", "log", "", ""):  # the last two: somebody types
                terminal.type(f"{word} {place}\n")
                if word:
                    said = f"{word} {place} is said"
                    terminal.until(lambda text, said=said: said in text.replace("\n", " "))  # type: ignore[misc]
                whole(terminal)
        terminal.type("notice\n")
        terminal.until(lambda text: "at once" in text)
        whole(terminal)
        terminal.resize(80, 24)
        whole(terminal)
        terminal.type("finish\n")
        assert terminal.end() == 0, terminal.screen.text
    said = terminal.screen.text.splitlines()
    assert said[-1] == "the end" and "stops at once" in said[-2], terminal.screen.text
    assert [line.split()[1] for line in said[-2 - len(METHODS) : -2]] == ["finished"] * len(METHODS), said
    assert "99 %" not in terminal.screen.text and " left" not in terminal.screen.text


@pytest.mark.parametrize(("columns", "rows"), [*SIZES, (60, 8), (40, 10), (80, 6)])
def test_every_line_fits_and_no_number_is_cut(columns: int, rows: int) -> None:
    busy = Row(METHODS[2], 123_456_789, 25, 100_000_000, 19, 12.345, 123_456.0, TASKS, 55.5, 18, started=1.0)
    busy.changes = {"shape": Change(12.0, True), "digit": Change(-34.0, True), "land": Change(-3.0, False)}
    busy.forgetting = {"digit": 60.0, "land": 20.0}
    over = [Row(f"method-{k}", 10, 1, 10, 1, ap=10.0 + k, started=1.0, learned=2.0, finished=3.0) for k in range(9)]
    lines = [line.plain.replace("\u00a0", " ") for line in draw([*over, busy, Row("later", 10)], columns, rows)]
    assert len(lines) < rows and all(cell_len(line) <= columns - 4 for line in lines), lines
    text = "\n".join(lines)
    assert re.search(r"chunk 20/25 +81 %", text), text  # what is under way is what is shown first
    known = {"chunk", "20/25", "81", "123,456", "12.345", "55.5", *(f"{value:.0f}" for value in TASKS.values())}
    known |= {f"{10.0 + k:.1f}" for k in range(9)} | {"19", "12", "34", "3", "60", "20", "more", "95"}
    for number in re.findall(r"(?<![\w-])\d[\d,./]*(?![\w-])", re.sub(r"\d+:\d\d(:\d\d)?|method-\d", "", text)):
        assert number in known or re.search(rf"and {number} more", text), f"{number} in\n{text}"


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_tables_of_results_cut_names_and_leave_out_intervals_but_never_a_number(columns: int, tmp_path: Path) -> None:
    records = [RunRecord.load(folder) for folder in write_runs(tmp_path, ("joint", "lora", "smolora"))]
    records[1].run["method"] = "lora-with-a-name-of-forty-five-characters-yes"
    console = Console(width=columns, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(results_tables(records))
    text = captured.get()
    assert all(cell_len(line) <= columns for line in text.splitlines())
    for record in records:
        for name in ("ap", "map", "bwt_first", "bwt_last", "maf_best", "mif"):
            value, low, high = record.metric(name)  # type: ignore[misc]
            assert re.search(rf"(?<![\d.]){re.escape(f'{value:.1f}')}(?![\d.])", text), (name, text)
            assert (f"[{low:.1f}, {high:.1f}]" in text) == ("95 % interval]" in text)
    assert ("95 % interval]" in text) == (columns >= 120)
