"""kill -9 of any learner of a group changes nothing about what a run leaves behind, nor does their number."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from chaos import differences, restarts
from nodes import tree
from running import ROOT, command, environment, streamcvit

from streamcvit.learning import commit

WORDS = [
    "run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", "--method", "smolora",
    "--set", "stream.scenario.chunks=2", "--set", "stream.scenario.samples_per_chunk=32",
    "--set", "stream.test_samples=8", "--set", "evaluation.draws=100", "--set", "learner.micro_batch=4",
    "--set", "learner.commit_every=1",
]  # fmt: skip


def killed(process: subprocess.Popen, kind: str) -> bool:
    """Kill a learner of that kind, if there is one."""
    for child in tree(process):
        if (child.cmdline() or [""])[0].startswith(f"ray::{kind}"):
            os.kill(child.pid, signal.SIGKILL)
            return True
    return False


def test_two_learners_killed_one_after_another_leave_behind_what_one_undisturbed_leaves(tmp_path: Path) -> None:
    calm = streamcvit(*WORDS, "--local", cwd=tmp_path)
    assert calm.returncode == 0, calm.stdout + calm.stderr
    (tmp_path / "runs" / "small").rename(tmp_path / "alone")
    # What is killed is noticed at once; a busy machine is slow, not silent.
    group = ["--set", "cluster.learners=2", "--set", "cluster.compare_every=2", "--set", "cluster.silent_seconds=120"]
    process = subprocess.Popen(
        command(*WORDS, *group),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    folder, due = tmp_path / "runs" / "small", [("RankActor", 2), ("LearnerActor", 4)]
    deadline = time.monotonic() + 420
    while process.poll() is None and time.monotonic() < deadline:
        there = commit.list_commits(folder / "smolora" / "commits") if (folder / "smolora" / "epochs").exists() else []
        step = int(there[-1].name.split("-")[0]) if there else 0
        if due and step >= due[0][1] and killed(process, due[0][0]):
            due.pop(0)
        time.sleep(0.02)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 0, printed
    assert due == []
    assert restarts(folder)["learner", "died"] == 2
    assert differences(tmp_path / "alone", folder, ["smolora"]) == []
