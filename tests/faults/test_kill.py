"""kill -9 of any actor changes nothing about what a run leaves behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
from chaos import differences, restarts
from nodes import Cluster, kill, tree
from running import METHODS, ROOT, SMALL, Run, command, environment, streamcvit

from streamcvit.learning import commit

ALL = ["zero-shot", "lora", "smolora", "replay", "joint"]
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
    assert differences(local_run.folder, tmp_path / "runs" / "small", ALL) == []


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
    assert differences(local_run.folder, folder, ALL) == []


def test_an_actor_that_is_killed_again_and_again_ends_the_run_with_its_name(local_run: Run, tmp_path: Path) -> None:
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", *METHODS, *SMALL]
    words += ["--set", "cluster.restarts=2", "--set", "cluster.backoff_seconds=0.1"]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "runs" / "small"
    while process.poll() is None:
        time.sleep(0.05)
        for victim in actors_of(process, "EvaluatorActor") if (folder / "config.yaml").exists() else ():
            victim.kill()
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 2, printed + said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "evaluator-0 was lost 3 times, the last time it died" in line and "--resume" in line
    assert restarts(folder)["evaluator", "died"] == 3
    done = streamcvit("run", str(folder / "config.yaml"), "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(local_run.folder, folder, ALL) == []


def test_a_cluster_whose_head_is_gone_ends_the_run_with_one_line_and_it_is_resumed_elsewhere(
    local_run: Run, tmp_path: Path
) -> None:
    cluster = Cluster(1, cpus=6)
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", *METHODS, *SMALL]
    words += ["--set", f"cluster.address={cluster.address}", "--set", "cluster.silent_seconds=5"]
    folder = tmp_path / "runs" / "small"
    try:
        process = subprocess.Popen(
            command(*words),
            cwd=tmp_path,
            env=environment() | cluster.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not commit.list_commits(folder / "lora" / "commits"):
            time.sleep(0.05)
        kill(tree(cluster.head))
        said = process.communicate(timeout=120)[1]
    finally:
        cluster.close()
    assert process.returncode == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"{cluster.address}: the cluster's head has been gone for 5 s" in line and "--resume" in line
    done = streamcvit("run", str(folder / "config.yaml"), "--resume", "--set", "cluster.address=local", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(local_run.folder, folder, ALL) == []


def test_a_private_ray_that_loses_its_only_node_ends_the_run_with_one_line_and_it_is_resumed(
    local_run: Run, tmp_path: Path
) -> None:
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", *METHODS, *SMALL]
    process = subprocess.Popen(
        command(*words, "--set", "cluster.silent_seconds=5"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "runs" / "small"
    while process.poll() is None and not commit.list_commits(folder / "lora" / "commits"):
        time.sleep(0.05)
    kill([child for child in tree(process) if child.name() == "raylet"])
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Ray's only node has been gone for 5 s" in line and "--resume" in line
    done = streamcvit("run", str(folder / "config.yaml"), "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(local_run.folder, folder, ALL) == []
