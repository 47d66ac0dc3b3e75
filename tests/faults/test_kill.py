"""kill -9 of any actor changes nothing about what a run leaves behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from running import METHODS, ROOT, SMALL, Run, boundaries, command, environment, streamcvit

from streamcvit.learning import commit, read_ledger

pytestmark = pytest.mark.xdist_group("whole-run")

ACTORS = ("IngestActor", "LearnerActor", "EvaluatorActor", "MonitorActor")


def actors_of(process: subprocess.Popen, kind: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith(f"ray::{kind}"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def same_as(undisturbed: Path, folder: Path) -> None:
    for method in ("lora", "smolora", "replay", "joint"):
        assert boundaries(folder / method) == boundaries(undisturbed / method)
        assert Counter(read_ledger(folder / method / "ledger")["position"].to_pylist()) == Counter(range(4 * 48))
        summaries = [(root / method / "summary.json").read_text() for root in (folder, undisturbed)]
        assert summaries[0] == summaries[1]


def test_actors_killed_at_random_moments_are_replaced_and_nothing_is_lost(local_run: Run, tmp_path: Path) -> None:
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", *METHODS, *SMALL]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    rng, killed = random.Random(7), []
    due = list(ACTORS)
    started = tmp_path / "runs" / "small" / "lora" / "run.json"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(rng.uniform(0.2, 1.0))
        if due and started.exists() and (victims := actors_of(process, due[0])):
            os.kill(rng.choice(victims).pid, signal.SIGKILL)
            killed.append(due.pop(0))
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 0, printed
    assert killed == list(ACTORS)
    same_as(local_run.folder, tmp_path / "runs" / "small")


def test_a_killed_driver_is_resumed_to_the_same_result(local_run: Run, tmp_path: Path) -> None:
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", "--local", *METHODS, *SMALL]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = tmp_path / "runs" / "small"
    deadline = time.monotonic() + 120
    while len(commit.list_commits(folder / "smolora" / "commits")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (folder / "report.html").exists()
    done = streamcvit("run", str(folder / "config.yaml"), "--resume", "--local", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    same_as(local_run.folder, folder)
