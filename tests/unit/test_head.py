"""A head that is gone is noticed; one that comes back, or is slow, is not given up."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from streamcvit.cluster.head import Head
from streamcvit.config import ClusterConfig
from streamcvit.errors import UserError

OFTEN = ClusterConfig(heartbeat_seconds=0.05, silent_seconds=1.0)


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


def test_a_head_that_is_gone_is_named_after_silent_seconds_and_one_that_returns_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        head = Head(f"127.0.0.1:{port}", OFTEN)
        assert not gone(head, 0.5)
    assert not gone(head, 0.5)
    with socket.create_server(("127.0.0.1", port)):
        assert not gone(head, 1.5)
    assert gone(head, 10)
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: the cluster's head has been gone for 1 s.*--resume"):
        head.check()


def test_a_head_whose_machine_does_not_answer_at_all_is_named_as_soon() -> None:
    with socket.socket() as door, contextlib.ExitStack() as queue:
        door.bind(("127.0.0.1", 0))
        door.listen(0)
        for _ in range(4):  # more than may wait: whoever knocks now hears nothing
            early = queue.enter_context(socket.socket())
            early.setblocking(False)
            early.connect_ex(door.getsockname())
        time.sleep(0.2)
        head = Head(f"127.0.0.1:{door.getsockname()[1]}", OFTEN)
        assert not gone(head, 0.5) and gone(head, 10)
