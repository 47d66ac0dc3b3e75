"""Run the command as a user does, whole runs included."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from streamcvit.run.boundaries import boundary_reports

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--set", "stream.scenario.chunks=4",
    "--set", "stream.scenario.samples_per_chunk=48",
    "--set", "stream.test_samples=12",
    "--set", "evaluation.draws=100",
]  # fmt: skip
OWN_FILE = ROOT / "tests" / "ownfile.py"
OWN = [
    "--set", f"methods.joint.strategy={OWN_FILE}:Noise",
    "--set", f"evaluation.metrics=['{OWN_FILE}:lowest']",
]  # fmt: skip
METHODS = [
    "--method",
    "zero-shot",
    "--method",
    "lora",
    "--method",
    "smolora",
    "--method",
    "replay",
    "--method",
    "joint",
    *OWN,
]


def streamcvit(*words: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run the command as a user does."""
    return subprocess.run(command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "streamcvit", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@dataclass
class Run:
    """A finished run: its folder, what it printed, and what /metrics said meanwhile."""

    folder: Path
    printed: str
    scrapes: list[str]


def boundaries(folder: Path) -> dict[int, str]:
    """chunk -> digest of a method's run folder at the end of that chunk."""
    return {chunk: report.digest for chunk, report in boundary_reports(folder, folder.name).items()}


def watched(words: list[str], cwd: Path) -> tuple[str, list[str]]:
    """Run a command; as soon as it prints its metrics address, scrape it until the end."""
    process = subprocess.Popen(
        command(*words), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    scrapes: list[str] = []
    assert process.stdout is not None

    def scrape(url: str) -> None:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    scrapes.append(answer.read().decode())
            except OSError:
                return
            time.sleep(0.3)

    watcher = None
    for line in process.stdout:
        lines.append(line)
        found = re.search(r"metrics: (http://\S+)", line)
        if found and watcher is None:
            watcher = threading.Thread(target=scrape, args=(found[1],), daemon=True)
            watcher.start()
    code = process.wait(timeout=60)
    if watcher is not None:
        watcher.join(timeout=10)
    printed = "".join(lines)
    assert code == 0, printed
    return printed, scrapes
