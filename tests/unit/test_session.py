"""The private folder of a run: what killed runs left behind goes, what lives or is somebody else's stays."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from streamcvit.cluster.session import _private_folder


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
        with _private_folder() as folder:
            assert sorted(temporary.iterdir()) == sorted([alive, folder])
            assert folder.stat().st_mode & 0o777 == 0o700
            with _private_folder() as other:
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
    with _private_folder():
        assert linked.exists()
