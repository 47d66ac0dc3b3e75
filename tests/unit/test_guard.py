"""One run in a folder at a time; signals stop a run in good order."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from streamcvit.config import RunConfig
from streamcvit.errors import Stopped, UserError
from streamcvit.run.guard import LOCK, Stop, alone
from streamcvit.run.resume import changes, check_names, refuse


def test_a_second_run_in_a_folder_is_refused_by_name_until_the_first_is_gone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        with alone(tmp_path):
            os.write(writing, b"x")
            signal.pause()
    os.read(reading, 1)
    try:
        with pytest.raises(UserError, match=f"process {first} on .* since"), alone(tmp_path):
            pass
        os.kill(first, signal.SIGSTOP)  # a stopped run is still a run
        with pytest.raises(UserError, match="another process runs in this folder"), alone(tmp_path):
            pass
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    with alone(tmp_path):  # a killed run's lock is stale, and nobody has to remove it
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_folder_that_came_about_for_the_lock_goes_with_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "runs" / "mine"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    with alone(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "mine" / "config.yaml").touch()
    assert (tmp_path / "runs" / "mine" / LOCK).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_for_good_order_and_the_second_does_not(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stop() as stop, stop.patience(True):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.requested and stop.signal == number
        with pytest.raises(Stopped):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert signal.getsignal(number) == before


def test_where_nothing_is_at_stake_the_first_signal_stops_at_once() -> None:
    with Stop() as stop, stop.patience(True), pytest.raises(Stopped), stop.patience(False):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


@pytest.mark.parametrize("there_is_a_view", [True, False])
def test_a_view_says_that_the_run_stops_where_there_is_one(capfd: pytest.CaptureFixture, there_is_a_view: bool) -> None:
    told = []
    with Stop() as stop, stop.patience(True):
        stop.tell = lambda text: told.append(text) or there_is_a_view
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    words = "stopping after this batch; a second signal stops at once"
    assert told == [words] and capfd.readouterr().err == ("" if there_is_a_view else f"{words}\n")


@pytest.fixture
def started(tmp_path: Path) -> RunConfig:
    """A run that was started and not finished."""
    from streamcvit.run.folder import code_version, versions

    config = RunConfig(name="r", out=str(tmp_path), methods={"lora": {"adapter": "lora"}})  # type: ignore[dict-item]
    config.folder("lora").mkdir(parents=True)
    (config.folder() / "config.yaml").write_text(config.dump())
    record = {"versions": versions(), "code": code_version(), "base_digest": "b" * 64, "index_digest": "i" * 64}
    (config.folder("lora") / "run.json").write_text(json.dumps({**record, "finished": None}))
    return config


def changed(config: RunConfig, **values: object) -> RunConfig:
    return RunConfig.model_validate({**config.model_dump(), **values})


def test_the_same_run_has_no_changes_and_actor_counts_are_free(started: RunConfig) -> None:
    other = changed(started, cluster={"ingest_actors": 5, "evaluators": 3}, monitor={"port": 9})
    assert changes(other, "b" * 64, "i" * 64) == {}


def test_every_change_is_named_with_both_values(started: RunConfig) -> None:
    path = started.folder("lora") / "run.json"
    record = json.loads(path.read_text())
    record["code"], record["versions"]["torch"] = "0.0.1+abc", "1.0"
    path.write_text(json.dumps(record))
    methods = {"lora": {"adapter": "lora", "options": {"r": 4}}, "more": {"adapter": "lora"}}
    found = changes(changed(started, learner={"lr": 0.002}, methods=methods), "c" * 64, "j" * 64)
    assert found["learner.lr"] == ("0.001", "0.002")
    assert found["methods.lora.options.r"] == ("absent", "4")
    assert found["methods.more"][0] == "absent" and '"adapter": "lora"' in found["methods.more"][1]
    assert found["code"][0] == "0.0.1+abc" and found["versions.torch"][0] == "1.0"
    assert found["model"] == ("b" * 12, "c" * 12)
    assert found["index"] == ("i" * 12, "j" * 12)
    assert len(found) == 7
    with pytest.raises(UserError) as refused:
        refuse(found, ["learner", "code", "versions.torch", "methods.lora.options.r", "index"], started.folder())
    assert "methods.more: absent -> " in str(refused.value) and f"model: {'b' * 12} -> {'c' * 12}" in str(refused.value)
    assert "--allow-change methods.more --allow-change model" in str(refused.value)
    assert "learner.lr" not in str(refused.value)
    refuse(found, ["learner.lr", "code", "versions", "methods", "index", "model"], started.folder())


@pytest.mark.parametrize(
    "name",
    ["learner", "learner.lr", "code", "index", "model", "versions.torch", "methods.gone", "methods.lora.options.r"],
)
def test_what_may_differ_may_be_allowed(started: RunConfig, name: str) -> None:
    check_names(started, [name])


@pytest.mark.parametrize("name", ["", "learner.l", "lr", "codes", "seed.x", "learner.lr.x"])
def test_a_misspelled_change_is_not_allowed_silently(started: RunConfig, name: str) -> None:
    with pytest.raises(UserError, match="there is no such setting"):
        check_names(started, ["code", name])


def test_a_name_allows_its_section_and_nothing_that_only_begins_like_it(started: RunConfig) -> None:
    with pytest.raises(UserError, match="learner.lr"):
        refuse({"learner.lr": ("1", "2")}, ["learner.l", "lr"], started.folder())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_run_whose_record_is_damaged_is_refused_in_one_line(started: RunConfig, text: str) -> None:
    (started.folder("lora") / "run.json").write_text(text)
    with pytest.raises(UserError, match="run.json: cannot be read"):
        changes(started, "b" * 64, "i" * 64)


def test_a_run_whose_config_is_lost_is_refused_in_one_line(started: RunConfig) -> None:
    (started.folder() / "config.yaml").write_text("")
    with pytest.raises(UserError, match="config.yaml: cannot be read"):
        changes(started, "b" * 64, "i" * 64)
