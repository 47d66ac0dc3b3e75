"""Several seeds and a sweep in one go: killed, stopped, gone on with, and what they show together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
from running import ROOT, command, environment, streamcvit

TINY = [
    "--set", "stream.scenario.chunks=3", "--set", "stream.scenario.samples_per_chunk=24",
    "--set", "stream.test_samples=4", "--set", "evaluation.draws=20", "--set", "learner.commit_every=1",
]  # fmt: skip
PIPELINE = str(ROOT / "pipelines/embedded.yaml")
WORDS = ["run", PIPELINE, "--method", "smolora", "--method", "zero-shot", *TINY]


def digests(folder: Path) -> list[str]:
    """Of the adapters at the ends of chunks."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event["digest"] for line in lines if (event := json.loads(line))["event"] == "chunk"]


def learning(folder: Path) -> bool:
    return any(path.name[0] != "." for path in folder.glob("*/commits/*"))


def until(what, process: subprocess.Popen, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)


def test_seeds_that_are_killed_and_stopped_go_on_to_what_each_comes_to_alone(tmp_path: Path) -> None:
    whole = tmp_path / "runs" / "mine"
    words = [*WORDS, "--name", "mine", "--seeds", "1-3", "--set", "cluster.side_by_side=2"]
    process = subprocess.Popen(command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: learning(whole / "seed-1"), process)
        lane = json.loads((whole / "seed-1" / "lock.json").read_text())["pid"]
        assert not (whole / "seed-3").exists()
        os.kill(lane, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(lane) and learning(whole / "seed-2"), process)
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=120)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM and "seed-2 stopped after" in printed
    state = json.loads(streamcvit("status", "mine", "--json", cwd=tmp_path).stdout)
    assert state["state"] == "stopped" and state["go_on"].endswith("runs/mine/config.yaml --resume")
    done = streamcvit("run", "runs/mine/config.yaml", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Paired differences" in done.stdout and "over 3 seeds" in done.stdout
    assert (whole / "report.html").is_file()
    shown = streamcvit("status", "mine", cwd=tmp_path).stdout
    assert "mine is finished" in shown and "seed-3  finished" in shown
    for command_of_one in ("watch", "logs"):
        told = streamcvit(command_of_one, "mine", cwd=tmp_path)
        assert (told.returncode, told.stdout) == (2, "") and "Name one of them: runs/mine/seed-1" in told.stderr
    alone = streamcvit(*WORDS, "--name", "alone", "--local", "--set", "seed=2", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert digests(whole / "seed-2" / "smolora")[-3:] == digests(tmp_path / "runs" / "alone" / "smolora")
    again = streamcvit(*words, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "") and "this run exists" in again.stderr


def test_a_sweep_prints_a_row_for_each_value_and_a_failed_run_does_not_end_the_others(tmp_path: Path) -> None:
    words = ["run", PIPELINE, "--method", "lora", *TINY, "--name", "grid", "--local"]
    done = streamcvit(*words, "--sweep", "learner.lr=1e-4,1e-2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lora, lr 1e-4" in done.stdout and "lora, lr 1e-2" in done.stdout
    (row,) = (line.split() for line in done.stdout.splitlines() if line.startswith(" AP "))
    summaries = [tmp_path / f"runs/grid/lr-{lr}/lora/summary.json" for lr in ("1e-4", "1e-2")]
    aps = [json.loads(summary.read_text())["metrics"]["ap"]["value"] for summary in summaries]
    assert row[2:] == [f"{ap:.1f}" for ap in aps]
    blocked = tmp_path / "runs" / "other"
    (blocked / "lr-1e-4").mkdir(parents=True)
    (blocked / "lr-1e-4" / "stream").write_text("in the way")
    words[words.index("grid")] = "other"
    done = streamcvit(*words, "--sweep", "learner.lr=1e-4,1e-2", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: lr-1e-4: 1 of 2 runs failed")
    assert (blocked / "lr-1e-2" / "lora" / "summary.json").is_file()
