"""Run the command as a user does, whole runs included."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """A finished run: its folder, what it printed, what /metrics said, and what a tab of its page was told."""

    folder: Path
    printed: str
    scrapes: list[str]
    told: list[dict[str, Any]] = field(default_factory=list)


class StopAfter:
    """Asks a learner to stop after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches + 1

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def boundaries(folder: Path) -> dict[int, str]:
    """chunk -> digest of a method's run folder at the end of that chunk."""
    return {chunk: report.digest for chunk, report in boundary_reports(folder, folder.name).items()}


def watched(words: list[str], cwd: Path) -> tuple[str, list[str], list[dict[str, Any]]]:
    """Run a command; as soon as it prints its metrics address, scrape it and have its page open until the end."""
    process = subprocess.Popen(
        command(*words), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    scrapes: list[str] = []
    told: list[dict[str, Any]] = []
    assert process.stdout is not None

    def scrape(url: str) -> None:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    scrapes.append(answer.read().decode())
            except OSError:
                return
            time.sleep(0.3)

    def look(url: str) -> None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(url.replace("metrics", "events"), timeout=60) as answer,
        ):
            told.extend(json.loads(line[5:]) for line in answer if line.startswith(b"data: {"))

    watchers: list[threading.Thread] = []
    for line in process.stdout:
        lines.append(line)
        found = re.search(r"metrics: (http://\S+)", line)
        if found and not watchers:
            watchers = [threading.Thread(target=one, args=(found[1],), daemon=True) for one in (scrape, look)]
            for watcher in watchers:
                watcher.start()
    code = process.wait(timeout=60)
    for watcher in watchers:
        watcher.join(timeout=10)
    printed = "".join(lines)
    assert code == 0, printed
    return printed, scrapes, told
