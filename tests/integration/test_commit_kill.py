"""A commit is atomic under kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streamcvit.learning import commit


def fill(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "w").write_text("old")
    (folder / commit.RESUME).mkdir()
    (folder / commit.RESUME / "o").write_text("old")


KILL = """
import os, signal, sys
from pathlib import Path
from streamcvit.learning import commit
calls = 0
def dying(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("fsync", "rename", "replace", "open"):
    setattr(os, name, dying(getattr(os, name)))
def fill(folder):
    (folder / "adapter").mkdir(); (folder / "adapter" / "w").write_text("new")
    (folder / commit.RESUME).mkdir(); (folder / commit.RESUME / "o").write_text("new")
commit.write_commit(Path(sys.argv[1]), 2, fill, {"cursor": 16})
"""


@pytest.mark.parametrize("call", [1, 3, 5, 7, 9, 11])
def test_a_process_killed_inside_a_commit_leaves_the_old_or_the_new_one(tmp_path: Path, call: int) -> None:
    commit.write_commit(tmp_path, 1, fill, {"cursor": 8})
    done = subprocess.run([sys.executable, "-c", KILL, str(tmp_path), str(call)], env=os.environ, check=False)
    assert done.returncode in (-signal.SIGKILL, 0)
    found = commit.newest_resumable(tmp_path)
    assert found is not None
    assert found[1]["cursor"] in (8, 16)
    assert found[2] == []
