"""Watching whole runs: the page of a run on Ray, and the command on one that goes on without."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

from running import METHODS, ROOT, SMALL, Run, command, environment

from streamcvit.monitoring.record import RunRecord


def test_a_tab_sees_a_run_on_ray_from_its_scores_to_its_end(ray_run: Run) -> None:
    assert ray_run.told, ray_run.printed
    runs = [told["run"] for told in ray_run.told if "run" in told]
    assert runs[0]["state"] in ("starting", "running")
    # The monitor goes with the run: the last it said is how the run ended.
    assert runs[-1]["state"] == "finished"
    names = [name for name in METHODS if name in ("lora", "smolora", "replay", "joint")]
    for name in names:
        newest = next(told[f"m/{name}"] for told in reversed(ray_run.told) if f"m/{name}" in told)
        table = RunRecord.load(ray_run.folder / name).matrix()
        shown = [[None if v != v else round(float(v), 1) + 0.0 for v in column] for column in table.T]
        assert newest["score"] == shown and sum(map(sum, newest["fresh"])) == 0
    places = [now["position"] for told in ray_run.told if (now := told.get("now", {}).get("methods", {}).get("lora"))]
    assert places == sorted(places) and places[-1] == 4 * 48


def test_watch_follows_a_run_without_ray_while_it_learns_and_when_it_is_stopped(tmp_path: Path) -> None:
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "mine", "--method", "lora", "--local", *SMALL]
    words += ["--set", "stream.scenario.samples_per_chunk=1500", "--set", "learner.batch_size=1"]
    env = environment()
    run = subprocess.Popen(command(*words), cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "runs" / "mine" / "progress.json").exists():
            assert run.poll() is None
            time.sleep(0.2)
        watch = subprocess.Popen(command("watch", "mine"), cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
        try:
            assert watch.stdout is not None
            found = re.search(r"watching mine: (http://127.0.0.1:\d+/)", watch.stdout.readline())
            assert found
            places, states = set(), []
            until = time.monotonic() + 120
            with urllib.request.urlopen(found[1] + "events", timeout=60) as answer:
                for line in answer:
                    assert time.monotonic() < until
                    if not line.startswith(b"data: {"):
                        continue
                    told = json.loads(line[5:])
                    places |= {
                        now["methods"]["lora"]["position"] for now in [told.get("now")] if now and now["methods"]
                    }
                    states += [told["run"]["state"]] if "run" in told else []
                    if len(places) == 4:  # in the midst of the first chunk
                        run.kill()
                    if states[-1] == "stopped":
                        break
            assert states[0] == "running" and max(places) < 1500
        finally:
            watch.terminate()
            assert watch.wait(timeout=30) is not None
    finally:
        run.kill()
        run.wait()
