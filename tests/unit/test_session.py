"""Where a private Ray lies, what killed runs left there, and clusters that are not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import ray

from streamcvit.cluster.session import (
    SOCKET,
    SOCKET_BYTES,
    _private_folder,
    _short_root,
    _start_error,
    check_address,
)
from streamcvit.errors import UserError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's temporary directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(temporary: Path, name: str) -> Path:
    folder = temporary / f"scv-{name}"
    folder.mkdir()
    (folder / "lock").touch()
    return folder


def test_what_a_killed_run_left_is_removed_and_a_living_ones_stays(temporary: Path) -> None:
    dead, alive = left(temporary, "dead"), left(temporary, "alive")
    with open(alive / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _private_folder(temporary) as folder:
            assert sorted(temporary.iterdir()) == sorted([alive, folder])
            assert folder.stat().st_mode & 0o777 == 0o700
            with _private_folder(temporary) as other:
                assert folder.exists() and other != folder
        assert list(temporary.iterdir()) == [alive]
    assert not dead.exists()


def test_nobody_waits_for_a_pipe_or_follows_a_link(temporary: Path) -> None:
    pipe = temporary / "scv-pipe"
    pipe.mkdir()
    os.mkfifo(pipe / "lock")
    linked = temporary / "scv-linked"
    linked.mkdir()
    (linked / "lock").symlink_to(left(temporary, "other") / "lock")
    with _private_folder(temporary):
        assert linked.exists()


def test_a_temporary_folder_too_deep_for_sockets_is_not_the_one_that_ray_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = SOCKET_BYTES - len(SOCKET)
    deep, short = tmp_path / "a-path-as-schedulers-make-them", Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr("streamcvit.cluster.session.ROOTS", ("/nowhere", str(short)))
    try:
        assert _short_root() == short
        monkeypatch.setattr("streamcvit.cluster.session.ROOTS", ("/nowhere",))
        with pytest.raises(
            UserError, match=rf"TMPDIR is too long for .*: {len(str(deep))} bytes, at most {longest} are"
        ):
            _short_root()
        full = short / ("x" * (longest - len(str(short)) - 1))
        for root, fits in ((full, True), (Path(f"{full}y"), False)):
            monkeypatch.setattr(tempfile, "tempdir", str(root))
            Path(f"{root}{SOCKET}").parent.mkdir(parents=True)
            if not fits:
                with pytest.raises(UserError):
                    _short_root()
            else:
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.bind(f"{_short_root()}{SOCKET}")
    finally:
        shutil.rmtree(short)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "is no address of a cluster. Give HOST:PORT"),
        ("127.0.0.1:port", "is no address of a cluster"),
        ("127.0.0.1:99999", "no cluster answers there"),
        ("nowhere.invalid:6379", "no cluster answers there"),
    ],
)
def test_a_cluster_that_is_not_there_is_named_at_once(address: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"cluster\.address {address}: {said}"):
        check_address(address)


def test_a_head_is_knocked_at_and_its_door_may_stay_shut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        check_address(f"127.0.0.1:{port}")
        check_address(f"ray://127.0.0.1:{port}")
    with pytest.raises(UserError, match="no cluster answers there .Connection refused.. Start a head there"):
        check_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("error", "address", "said"),
    [
        (ray.exceptions.AuthenticationError("no " * 200 + "token"), "10.0.0.1:6379", "no no token"),
        (ray.exceptions.AuthenticationError("x"), "10.0.0.1:6379", "Give the cluster's token with RAY_AUTH_TOKEN_PATH"),
        (ray.exceptions.AuthenticationError("x"), "10.0.0.1:6379", "RAY_AUTH_MODE=disabled"),
        (ConnectionError("use --address"), "auto", "there is no Ray cluster on this machine. Start one"),
        (RuntimeError("why\n" * 100 + "end"), "local", "why end. Add --local to run without Ray"),
    ],
)
def test_what_ray_says_is_told_whole_and_with_what_helps(error: Exception, address: str, said: str) -> None:
    told = str(_start_error(error, address))
    assert said in told and "\n" not in told and "--address" not in told
