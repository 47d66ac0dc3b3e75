"""`status` and `ls` tell runs apart by their folders alone: who holds it, what came to an end, and how."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from synthetic_run import write_run

from streamcvit.errors import UserError
from streamcvit.monitoring.runlog import RunLog, noted
from streamcvit.monitoring.states import holder, run_folder, state_of
from streamcvit.run.guard import alone


def a_run(root: Path, **done: int) -> Path:
    """A run's folder with methods that have so many of 15 chunks behind them."""
    folder = root / "mine"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "mine", "methods": dict.fromkeys(done, {})}))
    (folder / "lock.json").write_text("{}")
    for method, chunks in done.items():
        write_run(folder / method, method, done=chunks)
    return folder


def say(folder: Path, **event: str) -> None:
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")


def test_a_run_whose_methods_are_all_finished_is_finished(tmp_path: Path) -> None:
    state = state_of(a_run(tmp_path, lora=15, smolora=15))
    assert (state.state, state.go_on, state.pid) == ("finished", "", None)
    assert [(m.name, m.state, m.chunk, m.chunks) for m in state.methods] == [
        ("lora", "finished", 15, 15),
        ("smolora", "finished", 15, 15),
    ]
    assert all(method.ap is not None for method in state.methods)


def test_a_run_whose_process_is_gone_is_stopped_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = a_run(tmp_path, lora=15, smolora=4)
    say(folder / "smolora", event="started", time="2026-01-01T11:00:00+00:00")
    state = state_of(folder)
    assert (state.state, state.why) == ("stopped", "its process is gone")
    assert state.go_on == f"streamcvit run {folder}/config.yaml --resume"
    say(folder / "smolora", event="stopped", time="2026-01-01T11:00:01+00:00")
    assert (state_of(folder).state, state_of(folder).why) == ("stopped", "")


def test_a_run_that_failed_says_what_failed_until_it_goes_on(tmp_path: Path) -> None:
    folder = a_run(tmp_path, lora=4)
    say(folder / "lora", event="failed", what="the disk is full", time="2026-01-01T11:00:00+00:00")
    assert (state_of(folder).state, state_of(folder).why) == ("failed", "the disk is full")
    say(folder / "lora", event="started", time="2026-01-01T12:00:00+00:00")
    with alone(folder):
        assert (state_of(folder).state, state_of(folder).why) == ("running", "")


def test_a_run_that_somebody_holds_is_starting_and_then_running_with_its_page(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with alone(folder) as tell:
        assert state_of(folder).state == "starting"
        tell(page="http://127.0.0.1:9/")
        held = holder(folder)
        assert held is not None and held["page"] == "http://127.0.0.1:9/"
    folder = a_run(tmp_path, lora=4, smolora=0)
    say(folder / "lora", event="started", time="2026-01-01T11:00:00+00:00")
    with alone(folder) as tell:
        tell(page="http://127.0.0.1:9/")
        state = state_of(folder)
    assert (state.state, state.page) == ("running", "http://127.0.0.1:9/")
    assert [method.state for method in state.methods] == ["learning", "waiting"]
    assert state.seconds_left and state.seconds_left > 0
    assert holder(folder) is None


def test_a_run_is_found_by_its_name_its_folder_and_a_methods_folder(tmp_path: Path) -> None:
    folder = a_run(tmp_path, lora=4)
    assert run_folder("mine", tmp_path) == run_folder(folder) == run_folder(folder / "lora") == folder
    with pytest.raises(UserError, match="no such run.*streamcvit ls"):
        run_folder("other", tmp_path)


def test_a_log_holds_what_was_said_before_the_run_began_too_and_nothing_of_one_that_never_did(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.log")
    log("stream: 10 samples")
    assert not log.path.exists()
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError), noted(log):
        log("lora: chunk 1/2 learned")
        raise UserError("the disk is full")
    lines = log.path.read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "stream: 10 samples",
        "lora: chunk 1/2 learned",
        "ended: the disk is full.",
    ]
    assert all(datetime.fromisoformat(line.split(" ")[0]).tzinfo is UTC for line in lines)
