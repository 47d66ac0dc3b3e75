"""A run is looked at, followed and stopped from another terminal, and says how it goes on."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from running import ROOT, SMALL, command, environment, streamcvit


def test_a_run_is_seen_running_stopped_in_good_order_and_goes_on(tmp_path: Path) -> None:
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "mine", "--method", "lora", "--local", *SMALL]
    words += ["--set", "stream.scenario.samples_per_chunk=400"]
    process = subprocess.Popen(command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        state = {}
        while state.get("state") != "running" or not state["methods"][0]["position"]:
            assert time.monotonic() < until and process.poll() is None
            if (tmp_path / "runs/mine/lock.json").exists():
                state = json.loads(streamcvit("status", "mine", "--json", cwd=tmp_path).stdout)
        assert state["pid"] == process.pid
        (listed,) = json.loads(streamcvit("ls", "--json", cwd=tmp_path).stdout)
        assert (listed["name"], listed["state"]) == ("mine", "running")
        done = streamcvit("stop", "mine", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "mine is stopped" in done.stdout and "runs/mine/config.yaml --resume" in done.stdout
        assert process.wait(timeout=30) != 0
    finally:
        process.kill()
        process.wait()
    printed = streamcvit("logs", "mine", cwd=tmp_path).stdout
    assert "stream: 1600 samples" in printed and printed.splitlines()[-1].endswith(" ended: stopped")
    assert streamcvit("stop", "mine", cwd=tmp_path).stdout.strip() == "mine is not running"
    assert "no such run" in streamcvit("status", "other", cwd=tmp_path).stderr
