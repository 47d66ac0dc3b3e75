"""A Ray cluster of several nodes on this machine, as its commands start it, so that whole nodes can be killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ADDRESS = r"--address='?([0-9.]+:\d+)'?\s"  # in what a head says when it is up


def tree(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all below it, children first."""
    try:
        top = psutil.Process(process.pid)
        return [*reversed(top.children(recursive=True)), top]
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[psutil.Process]) -> None:
    """kill -9."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class Cluster:
    """A head without places for actors, so that its death is none of the cases, and nodes with `cpus` each.

    Attributes:
        address: for `cluster.address`.
        environment: what a driver needs to be let in.
        nodes: number -> its `ray start`.
    """

    def __init__(self, nodes: int, cpus: int = 4) -> None:
        self.private = Path(tempfile.mkdtemp(prefix="scv-"))
        token = self.private / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        self.cpus, self.nodes = cpus, {}  # type: ignore[var-annotated]
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
        }
        try:
            self.head, found = self._start(
                "head", "--head", "--port=0", "--include-dashboard=false", cpus=0, said=ADDRESS
            )
            self.address = found[1]
            for number in range(nodes):
                self.add(number)
        except BaseException:
            self.close()
            raise

    def _start(
        self, name: str, *words: str, cpus: int, said: str = "Ray runtime started", wait: bool = True
    ) -> tuple[subprocess.Popen, re.Match[str] | None]:
        """Start a node and, if asked, wait until its log has said something."""
        log = self.private / f"{name}.log"
        script = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
        size = str(128 << 20)
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", script, "start", "--block", f"--num-cpus={cpus}", "--num-gpus=0"]
                + [f"--object-store-memory={size}", f"--temp-dir={self.private / 'ray'}", "--disable-usage-stats"]
                + [*words],
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 120
        while (found := re.search(said, log.read_text())) is None and wait:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return process, found

    def add(self, number: int, wait: bool = True) -> None:
        """Start node `number`."""
        self.nodes[number], _ = self._start(f"node-{number}", f"--address={self.address}", cpus=self.cpus, wait=wait)

    def kill(self, number: int) -> None:
        """kill -9 of a node with all that runs on it."""
        kill(tree(self.nodes.pop(number)))

    def close(self) -> None:
        for process in [*self.nodes.values(), *([self.head] if hasattr(self, "head") else [])]:
            kill(tree(process))
            process.wait()
        shutil.rmtree(self.private, ignore_errors=True)
