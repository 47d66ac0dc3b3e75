"""The supervisor on small actors and a real Ray: who is found, who is replaced, and when it gives up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamcvit.cluster.session import session
from streamcvit.cluster.supervise import Pulse, Supervisor
from streamcvit.config import ClusterConfig, RunConfig
from streamcvit.errors import UserError


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    import ray  # as a notebook does: the session takes its own settings all the same

    with session(RunConfig()):
        yield ray


def toy_class(ray: Any) -> type:
    """Made when Ray is there: what it takes from the environment it takes when it is imported."""

    class Toy:
        """Notes what it is asked for in a file, so that its successors' lives can be told from its own."""

        def __init__(self, notes: str) -> None:
            self.notes, self.moves, self.working = Path(notes), 0, False

        @ray.method(concurrency_group="pulse")
        def pulse(self) -> Pulse:
            return Pulse(self.moves, self.working)

        def ready(self) -> int:
            return os.getpid()

        def note(self, text: str) -> str:
            self.moves += 1
            with open(self.notes, "a") as file:
                file.write(text + "\n")
            return text

        def block(self, seconds: float) -> str:
            """Wait, the first time it is called."""
            self.working = True
            if self.note("block") and self.notes.read_text().count("block") == 1:
                time.sleep(seconds)
            self.working = False
            return "unblocked"

        def fail(self, times: int) -> str:
            self.note("fail")
            count = self.notes.read_text().count("fail")
            if count <= times:
                raise OSError(f"reading failed at byte {count}")
            return "done"

        def repeat(self) -> None:
            raise OSError("no such device")

        def refuse(self) -> None:
            raise UserError("wrong input", fix="Mend it")

        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    return Toy


@pytest.fixture
def watched(ray: Any, tmp_path: Path) -> Iterator[Callable]:
    """Makes a supervisor with one toy named `toy`."""
    made = []

    def make(**config: Any) -> tuple[Supervisor, Any]:
        supervisor = Supervisor(ray, ClusterConfig(heartbeat_seconds=0.2, **config))
        toy = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups={"pulse": 1})(
            toy_class(ray)
        )
        post = supervisor.start("toy", lambda lives: toy.options(name="toy").remote(str(tmp_path / "notes")))
        made.append((supervisor, post))
        return supervisor, post

    yield make
    for _, post in made:
        if post.actor is not None:
            ray.kill(post.actor)


def causes(supervisor: Supervisor) -> list[str]:
    return [restart.cause for restart in supervisor.restarts]


def test_calls_that_a_dead_actor_did_not_answer_are_made_again_in_their_order(
    watched: Callable, tmp_path: Path
) -> None:
    supervisor, post = watched()
    (pid,) = supervisor.result([supervisor.call(post, "ready")])
    calls = [supervisor.call(post, "block", 60.0), *(supervisor.call(post, "note", text) for text in "abc")]
    while not (tmp_path / "notes").exists():
        supervisor.wait(0.1)
    os.kill(pid, signal.SIGKILL)
    assert supervisor.result(calls) == ["unblocked", "a", "b", "c"]
    assert (tmp_path / "notes").read_text().split() == ["block", "block", "a", "b", "c"]
    assert causes(supervisor) == ["died"]


def test_a_stopped_actor_is_found_by_its_silence_and_ended(watched: Callable) -> None:
    supervisor, post = watched(silent_seconds=3)
    (pid,) = supervisor.result([supervisor.call(post, "ready")])
    os.kill(pid, signal.SIGSTOP)
    assert supervisor.result([supervisor.call(post, "note", "again")]) == ["again"]
    assert causes(supervisor) == ["silent"]
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_actor_with_a_pulse_that_does_not_move_is_replaced(watched: Callable) -> None:
    supervisor, post = watched(stuck_seconds=3)
    assert supervisor.result([supervisor.call(post, "block", 600.0)]) == ["unblocked"]
    assert causes(supervisor) == ["stuck"]


def test_an_idle_actor_is_not_stuck(watched: Callable) -> None:
    supervisor, post = watched(stuck_seconds=1)
    supervisor.result([supervisor.call(post, "note", "x")])
    until = time.monotonic() + 3
    while time.monotonic() < until:
        supervisor.wait(0.1)
    assert causes(supervisor) == []


def test_a_driver_that_was_stopped_itself_does_not_blame_its_actors(watched: Callable) -> None:
    supervisor, post = watched(silent_seconds=1)
    supervisor.result([supervisor.call(post, "ready")])
    for _ in range(3):
        supervisor.wait(0.3)
        time.sleep(1.5)
    assert supervisor.result([supervisor.call(post, "note", "x")]) == ["x"]
    assert causes(supervisor) == []


def test_an_actor_that_dies_each_time_ends_the_run_with_its_name(watched: Callable) -> None:
    supervisor, post = watched(restarts=2, backoff_seconds=0.1)
    with pytest.raises(UserError, match=r"toy was lost 3 times, the last time it died: .*\. .*--resume"):
        supervisor.result([supervisor.call(post, "die")])
    assert causes(supervisor) == ["died"] * 3


def test_restarts_in_a_row_come_ever_later(watched: Callable) -> None:
    supervisor, post = watched(restarts=4, backoff_seconds=0.5)
    call = supervisor.call(post, "die")
    waits = []
    with pytest.raises(UserError):
        while True:
            before = len(supervisor.restarts)
            supervisor.wait(0.05)
            if len(supervisor.restarts) > before:
                waits.append(post.due - supervisor.clock())
    assert call.reference is None
    assert [round(wait, 1) for wait in waits] == [0.0, 0.5, 1.0, 2.0]


def test_an_error_is_tried_again_while_it_changes(watched: Callable) -> None:
    supervisor, post = watched()
    assert supervisor.result([supervisor.call(post, "fail", 2)]) == ["done"]
    assert causes(supervisor) == ["failed"] * 2


def test_the_same_error_twice_ends_the_run(watched: Callable) -> None:
    supervisor, post = watched()
    with pytest.raises(UserError, match="toy failed twice the same way: .*no such device"):
        supervisor.result([supervisor.call(post, "repeat")])
    assert causes(supervisor) == ["failed"]


def test_a_users_mistake_in_an_actor_is_the_users(watched: Callable) -> None:
    supervisor, post = watched()
    with pytest.raises(UserError, match="wrong input"):
        supervisor.result([supervisor.call(post, "refuse")])
    assert causes(supervisor) == []
