"""A commit is atomic under kill -9 at any system call, also those that Python does not see (Rust and C++ write too)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faulty import Writer, copy, fork

CALLS = (
    "openat write pwrite64 fsync ftruncate fallocate mkdir mkdirat link linkat rename renameat renameat2 unlink "
    "unlinkat rmdir"
)


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    if subprocess.run([found, "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no process trace another")
    return found


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def killed_at(strace: str, writer: Writer, run: Path, call: str, number: int) -> int:
    """Commit in a process that is killed as it enters its `number`-th such call; how it ended."""
    reading, writing = os.pipe()

    def work() -> None:
        os.read(reading, 1)
        writer.commit(run, 1)

    child = fork(work)
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    tracer = subprocess.Popen([strace, "-qq", "-f", "-o", os.devnull, "-e", inject, "-p", str(child)])
    status = Path(f"/proc/{child}/status")
    while tracer.poll() is None and "TracerPid:\t0" in status.read_text():
        time.sleep(0.001)
    os.write(writing, b"x")
    os.close(writing), os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    tracer.wait()
    return code


def test_killed_at_any_system_call_of_a_commit_the_folder_holds_the_old_or_the_new_one(
    strace: str, memory: Path
) -> None:
    torch.set_num_threads(1)
    writer, run = Writer(memory), memory / "run"
    kills: Counter[str] = Counter()
    seen = set()
    for call in CALLS.split():
        number, code = 0, -signal.SIGKILL
        while code == -signal.SIGKILL:
            number += 1
            copy(writer.before, run)
            code = killed_at(strace, writer, run, call, number)
            assert code in (-signal.SIGKILL, 0)
            kills[call] += code != 0
            seen.add(writer.check_taken_over(run))
            shutil.rmtree(run)
    assert kills["write"] >= 5 and kills["fsync"] >= 8 and kills["openat"] >= 20 and kills["mkdir"] >= 3, kills
    assert kills["rename"] + kills["renameat"] + kills["renameat2"] >= 5, kills
    assert kills.total() >= 50, kills
    assert seen == {2, 3}
