"""A head that is gone is noticed; one that comes back, or is slow, is not given up."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from streamcvit.cluster.head import Head
from streamcvit.config import ClusterConfig
from streamcvit.errors import UserError

OFTEN = ClusterConfig(heartbeat_seconds=0.05, silent_seconds=1.0)


@pytest.fixture
def head() -> Iterator[Head]:
    with Head(OFTEN) as head:
        yield head


def gone(head: Head, seconds: float) -> bool:
    """Whether it is given up within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            head.check()
        except UserError:
            return True
        time.sleep(0.02)
    return False


def test_a_head_that_is_gone_is_named_after_silent_seconds_and_one_that_returns_is_not(
    head: Head,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        head.watch("the cluster's head", f"127.0.0.1:{port}")
        assert not gone(head, 0.5)
    assert not gone(head, 0.5)
    with socket.create_server(("127.0.0.1", port)):
        assert not gone(head, 1.5)
    assert gone(head, 10)
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: the cluster's head has been gone for 1 s.*--resume"):
        head.check()


def test_a_head_whose_machine_does_not_answer_at_all_is_named_as_soon(head: Head) -> None:
    with socket.socket() as door, contextlib.ExitStack() as queue:
        door.bind(("127.0.0.1", 0))
        door.listen(0)
        for _ in range(4):  # more than may wait: whoever knocks now hears nothing
            early = queue.enter_context(socket.socket())
            early.setblocking(False)
            early.connect_ex(door.getsockname())
        time.sleep(0.2)
        head.watch("the cluster's head", f"127.0.0.1:{door.getsockname()[1]}")
        assert not gone(head, 0.5) and gone(head, 10)


@pytest.mark.parametrize(("blocked", "code"), [(True, 2), (False, 0)])
def test_a_driver_that_waits_for_a_head_in_vain_is_ended_and_one_that_is_through_with_it_is_not(
    blocked: bool, code: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]  # nobody's from here on
    script = f"""
import time
from streamcvit.cluster.head import Head
from streamcvit.config import ClusterConfig

with Head(ClusterConfig(heartbeat_seconds=0.05, silent_seconds=0.2), leave_seconds=0.5) as head:
    head.watch("the cluster's head", "127.0.0.1:{port}")
    if {blocked}:
        time.sleep(60)
    while not head._gone.is_set():
        time.sleep(0.01)
time.sleep(1.5)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    line = f"error: 127.0.0.1:{port}: the cluster's head has been gone for 0 s. "
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1 if blocked else done.stderr == ""
