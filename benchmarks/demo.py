"""How long the demo takes, and which process works for how long.

    python benchmarks/demo.py [--full-size] [--times 3]

Runs `streamcvit demo` in an empty folder and asks twice a second for the CPU time of every process below it. Prints
wall and CPU seconds of each time, and writes them to results/demo.json. `--full-size` takes the whole benchmark's
samples and test questions, with the demo's three methods.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from streamcvit.run.folder import machine

RESULT = Path(__file__).parent / "results" / "demo.json"
WHOLE = ["--set", "stream.scenario.samples_per_chunk=480", "--set", "stream.test_samples=100"]


def role(process: psutil.Process) -> str:
    """What a process is for: an actor's kind, a part of Ray, or the driver."""
    title = " ".join(process.cmdline())
    if title.startswith("ray::"):
        return title[5:].partition(".")[0].split()[0]
    return "driver" if "streamcvit" in title else "ray"


def measure(words: list[str]) -> dict[str, Any]:
    """Wall seconds of a command, and CPU seconds by role."""
    seen: dict[int, tuple[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        began = time.perf_counter()
        running = subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        root = psutil.Process(running.pid)
        while running.poll() is None:
            with contextlib.suppress(psutil.Error):
                for process in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        times = process.cpu_times()
                        seen[process.pid] = role(process), times.user + times.system
            time.sleep(0.5)
        wall = time.perf_counter() - began
        if running.returncode:
            raise SystemExit((Path(folder) / "log").read_text())
    cpu: dict[str, float] = {}
    for name, seconds in seen.values():
        cpu[name] = round(cpu.get(name, 0.0) + seconds, 1)
    return {"wall": round(wall, 1), "cpu": dict(sorted(cpu.items(), key=lambda item: -item[1]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    words = [sys.executable, "-m", "streamcvit", "demo", *(WHOLE if given.full_size else ())]
    runs = []
    for _ in range(given.times):
        runs.append(measure(words))
        shares = ", ".join(f"{name} {seconds}" for name, seconds in runs[-1]["cpu"].items())
        print(f"wall {runs[-1]['wall']} s; CPU {sum(runs[-1]['cpu'].values()):.1f} s: {shares}", flush=True)
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    record["whole" if given.full_size else "demo"] = {
        "date": f"{datetime.date.today()}", "machine": machine(), "runs": runs
    }  # fmt: skip
    RESULT.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
