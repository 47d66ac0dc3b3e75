"""The guard on the embedded stream: what it does is learned from the same weights however the run gets there.

Four chunks of one task each, at a rate at which LoRA keeps nothing: after the second chunk the first one's task is
lost, after the third the second one's too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from running import ROOT, boundaries, command, environment

from streamcvit import cliguard
from streamcvit.errors import Stopped
from streamcvit.launch import execute
from streamcvit.learning import commit as commits
from streamcvit.learning.epochs import parse_name
from streamcvit.learning.ledger import read_ledger
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.figures import score_heat, stream_charts
from streamcvit.monitoring.states import state_of
from streamcvit.pipeline import load_config

STREAM = {
    "seed": 1,
    "stream.scenario.preset": "generate",
    "stream.scenario.tasks_per_chunk": 1,
    "stream.scenario.chunks": 4,
    "stream.scenario.samples_per_chunk": 48,
    "stream.test_samples": 16,
    "evaluation.draws": 100,
    "evaluation.audit": 0,
    "learner.lr": 1e-2,
    "learner.commit_every": 2,
}
BACK = {"guard.action": "rollback"}
PAUSE = {"guard.action": "pause"}
REPLAY = {"guard.action": "replay", "guard.share": 2.0, "learner.lr": 5e-3, "stream.scenario.chunks": 5}


def settings(**more: Any) -> list[str]:
    return [f"{key}={value}" for key, value in {**STREAM, **more}.items()]


def learned(root: Path, name: str, **more: Any) -> Path:
    """A whole run in this process; its method's folder."""
    config = load_config("embedded", settings(**more), name=name, out=str(root))
    config = config.model_copy(update={"methods": {"lora": config.methods["lora"]}})
    execute(config, local=True)
    return config.folder("lora")


def go_on(run: Path) -> None:
    execute(load_config(run / "config.yaml"), local=True, resume=True)


@contextmanager
def started(root: Path, name: str, *words: str, **more: Any) -> Iterator[subprocess.Popen]:
    """A run in a process of its own, which is killed at the end at the latest."""
    sets = [word for setting in settings(**more) for word in ("--set", setting)]
    words = ("run", str(ROOT / "pipelines/embedded.yaml"), "--name", name, "--method", "lora", *words, *sets)
    process = subprocess.Popen(command(*words), cwd=root, env=environment(), stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(found: Callable[[], Any], seconds: float = 900) -> Any:
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return value


def committed_after(folder: Path, step: int) -> bool:
    there = [parse_name(path.name) for path in (folder / "commits").glob("*")]
    return any(place is not None and place[0] > step for place in there)


def told(folder: Path) -> list[tuple[str, int, Any]]:
    """What the guard did: (what, chunk, task or tasks) in order."""
    events = RunRecord.load(folder).events_of("guard")
    return [(event["what"], event["chunk"], event.get("task", event.get("tasks"))) for event in events]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder := tmp_path_factory.mktemp("guard") / "runs").mkdir()
    return folder


@pytest.fixture(scope="module")
def unguarded(root: Path) -> dict[int, str]:
    """Digests of the boundaries of the run without a guard."""
    folder = learned(root, "none")
    assert not told(folder)
    return boundaries(folder)


@pytest.fixture(scope="module")
def rolled_back(root: Path) -> Path:
    return learned(root, "back", **BACK)


def test_a_rollback_puts_the_best_weights_back_once_and_versions_grow(
    rolled_back: Path, unguarded: dict[int, str]
) -> None:
    # `count`, which the undone chunk taught, is not lost by learning; `colour` is lost again, and not acted on twice.
    assert told(rolled_back) == [("lost", 1, "colour"), ("rolled back", 1, "colour")]
    (event,) = [event for event in RunRecord.load(rolled_back).events_of("guard") if event["what"] == "rolled back"]
    found = boundaries(rolled_back)
    assert {chunk: found[chunk] for chunk in (0, 1)} == {chunk: unguarded[chunk] for chunk in (0, 1)}
    assert (event["to_version"], event["digest"], event["version"]) == (6, found[0], 13)
    assert event["points"] > 10 and event["low"] > 0
    steps = [parse_name(path.name) for path in commits.list_commits(rolled_back / "commits")]
    assert [step for step, _ in filter(None, steps) if step in (6, 12, 19, 25)] == [6, 12, 19, 25]
    rows = read_ledger(rolled_back / "ledger")
    assert sorted(rows["position"].to_pylist()) == list(range(192))
    assert sorted(set(rows["step"].to_pylist())) == [*range(1, 13), *range(14, 26)]  # 13: the weights put back


def test_the_chunk_after_a_rollback_is_learned_from_the_weights_put_back(
    rolled_back: Path, unguarded: dict[int, str]
) -> None:
    found = boundaries(rolled_back)
    assert found[2] not in unguarded.values()
    notes = [event.get("guard") for event in RunRecord.load(rolled_back).chunk_events()]
    assert notes[:2] == [None, None] and notes[2]["digest"] == found[0] and notes[2]["boundary"] == 0
    assert notes[3]["held"] == ["colour"] and notes[3]["boundary"] is None


def test_the_report_tells_of_a_rollback_and_marks_it_in_matrix_and_curves(rolled_back: Path) -> None:
    record = RunRecord.load(rolled_back)
    assert score_heat(record).columns == ["1", "2 ↶", "3", "4"]
    assert all(chart.count('class="break"') == 1 for chart in stream_charts([("lora", record)]))
    page = (rolled_back.parent / "report.html").read_text()
    assert "the weights after chunk 1 are put back for colour: chunk 2 undone" in page
    assert "colour has lost 100.0 points" in page


def test_a_run_killed_after_a_rollback_goes_on_to_the_same_weights(root: Path, rolled_back: Path) -> None:
    with started(root.parent, "killed", "--local", **BACK) as process:
        folder = root / "killed/lora"
        wait_for(lambda: committed_after(folder, 13) or process.poll() is not None)
        assert process.poll() is None
    go_on(folder.parent)
    assert boundaries(folder) == boundaries(rolled_back) and told(folder) == told(rolled_back)


def test_actors_whose_learner_is_killed_after_a_rollback_give_the_same_weights(root: Path, rolled_back: Path) -> None:
    patient = {"cluster.ingest_actors": 1, "cluster.start_seconds": 900, "cluster.silent_seconds": 300}
    with started(root.parent, "ray", **patient, **BACK) as process:
        folder = root / "ray/lora"
        wait_for(lambda: committed_after(folder, 13) or process.poll() is not None)
        assert process.poll() is None
        below = psutil.Process(process.pid).children(recursive=True)
        learner = next(child for child in below if "ray::LearnerActor" in " ".join(child.cmdline()))
        learner.kill()
        assert process.wait(timeout=900) == 0
    assert boundaries(folder) == boundaries(rolled_back) and told(folder) == told(rolled_back)
    assert RunRecord.load(folder).events_of("restart")


def test_replay_is_raised_until_what_was_lost_has_recovered_and_a_killed_run_replays_the_same(root: Path) -> None:
    whole = learned(root, "replay", **REPLAY)
    done = told(whole)
    raised, lowered = (next(act for act in done if act[0] == f"replay {what}") for what in ("raised", "lowered"))
    assert raised[1] < lowered[1] and any(act[0] == "recovered" for act in done)
    shares = [event.get("guard", {}).get("share", 0) for event in RunRecord.load(whole).chunk_events()]
    assert shares == [2.0 if raised[1] < chunk <= lowered[1] else 0 for chunk in range(5)]
    rows = read_ledger(whole / "ledger")  # what is rehearsed is no sample of the stream
    assert sorted(rows["position"].to_pylist()) == list(range(5 * 48))
    with started(root.parent, "torn", "--local", **REPLAY) as process:
        folder = root / "torn/lora"
        wait_for(lambda: committed_after(folder, 6 * raised[1] + 6) or process.poll() is not None)
        assert process.poll() is None
    go_on(folder.parent)
    assert boundaries(folder) == boundaries(whole) and told(folder) == told(whole)


def test_a_paused_run_stands_still_over_kill_and_stop_until_it_is_let_go_on(
    root: Path, unguarded: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = root / "pause"

    def paused_after(chunk: int) -> bool:
        return (run / "lock.json").exists() and state_of(run).state == "paused" and told(run / "lora")[-1][1] == chunk

    with started(root.parent, "pause", "--local", **PAUSE) as process:
        wait_for(lambda: paused_after(1) or process.poll() is not None)
        state = state_of(run)
        assert state.go_on == f"streamcvit resume {run}" and state.pid == process.pid
        assert "lora paused: colour has lost 100.0 points" in state.why and state.methods[0].state == "paused"
        time.sleep(0.5)
        assert len(boundaries(run / "lora")) == 2
    assert state_of(run).state == "stopped" and "it waits for streamcvit resume" in state_of(run).why

    def let_go_then_stop() -> None:
        wait_for(lambda: paused_after(1))
        cliguard.resume(str(run), 60)
        wait_for(lambda: paused_after(2))
        os.kill(os.getpid(), signal.SIGINT)

    def signal_it() -> None:
        wait_for(lambda: paused_after(2))
        os.kill(os.getpid(), signal.SIGUSR1)

    helper = threading.Thread(target=let_go_then_stop)
    helper.start()
    with pytest.raises(Stopped):
        go_on(run)
    helper.join()
    assert (state_of(run).state, len(boundaries(run / "lora"))) == ("stopped", 3)
    helper = threading.Thread(target=signal_it)
    helper.start()
    go_on(run)
    helper.join()
    acts = [(what, chunk) for what, chunk, _ in told(run / "lora") if what in ("paused", "resumed")]
    assert acts == [("paused", 1), ("resumed", 1), ("paused", 2), ("resumed", 2)]
    assert boundaries(run / "lora") == unguarded  # a pause changes nothing that is learned
    assert "it goes on with: streamcvit resume" in (run / "run.log").read_text()
    assert np.isfinite(RunRecord.load(run / "lora").ap_by_chunk()).all()
