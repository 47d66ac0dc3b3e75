"""`streamcvit watch`: what it says of what is no run, and the essentials in a terminal of any width."""

from __future__ import annotations

import io
import re
import socket
import sys
from pathlib import Path

import pytest
from rich.console import Console
from watched_runs import going_on, pause, write_watched

from streamcvit import cli, cliwatch
from streamcvit.monitoring.watch import Follower
from streamcvit.monitoring.watch.screen import screen, show, under_way


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = ("shape", "a task with a very long name of its own", "count", "ocr", "land", "digit", "chart", "yesno")
    return write_watched(tmp_path_factory.mktemp("screen") / "run", done=12, tasks=tasks)


def drawn(folder: Path, width: int, height: int = 40, chosen: str = "lora") -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(screen(Follower(folder).look(), width, height, chosen))
    return console.file.getvalue()  # type: ignore[attr-defined]


def command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(cli, "err", cli.Screen(stderr=True))
    monkeypatch.setattr(sys, "argv", ["streamcvit", "watch", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_at_no_width_is_a_number_cut_or_a_line_too_long(folder: Path, width: int) -> None:
    text = drawn(folder, width)
    assert max(map(len, text.splitlines())) <= width
    rows = Follower(folder).look()["m/lora"]["lost"]
    for row in (row for row in rows if row.get("low") is not None):
        assert any(f"{row['now']:.1f}" in line and f"{-row['lost']:+.1f}" in line for line in text.splitlines())
    listed = [line for line in text.splitlines() if any(line.startswith(row["task"][:7]) for row in rows)]
    assert [line[:7].strip() for line in listed] == [
        row["task"][:7].strip() for row in rows if row.get("now") is not None
    ]


def test_a_low_terminal_keeps_the_worst_and_counts_the_rest(folder: Path) -> None:
    text = drawn(folder, 100, 14)
    assert len(text.splitlines()) <= 14
    assert re.search(r"and \d more", text)


def test_where_no_terminal_is_the_run_is_shown_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with going_on(folder):
        show(Follower(folder), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("running") == 1 and "smolora" in text


def test_on_a_terminal_it_ends_with_the_run(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    show(Follower(folder), console)  # stopped: its last state stays
    assert "stopped" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_paused_run_says_why_and_how_to_go_on(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run")
    pause(run, "smolora")
    with going_on(run):
        text = drawn(run, 120, chosen="")
        parts = Follower(run).look()
    assert "run  paused" in text and "smolora paused: ocr has lost 40.0 points" in text
    assert f"go on: streamcvit resume {run}" in text.replace("\n", "")
    assert under_way(parts["run"]) == "smolora" and parts["now"]["methods"].keys() == {"lora", "smolora"}


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_is_no_run_is_said_in_one_line(
    tmp_path: Path, there: bool, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        (tmp_path / "no run").mkdir()
    code, said = command(capsys, monkeypatch, str(tmp_path / "no run"))
    assert code == 2 and said.count("\n") == 1 and said.startswith("error: ") and "no run" in said


def test_a_port_that_is_taken_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = command(capsys, monkeypatch, str(folder), "--port", str(taken.getsockname()[1]))
    assert code == 2 and said.count("\n") == 1 and "this port is in use" in said


def test_a_methods_folder_opens_its_run_at_that_method(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Console(file=io.StringIO(), width=100, color_system=None)
    monkeypatch.setattr(cliwatch, "out", said)
    cliwatch.watch(str(folder / "smolora"), terminal=True)
    rows = Follower(folder).look()["m/smolora"]["lost"]
    assert f"{rows[0]['best']:.1f}" in said.file.getvalue()  # type: ignore[attr-defined]
