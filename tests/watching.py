"""Real servers that watch a run: Prometheus, Alertmanager and a webhook's receiver, on loopback."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).resolve().parents[1] / "deploy" / "prometheus" / "rules.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def program(*names: str) -> str:
    """Path of the first of these programs that is installed; skips the test where none is."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


@contextlib.contextmanager
def running(words: list[str], port: int, cwd: Path) -> Iterator[None]:
    """A server that has said that it is ready."""
    with open(cwd / f"{port}.log", "w+") as log:
        process = subprocess.Popen(words, cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5).close()
                    break
                assert process.poll() is None and time.monotonic() < until, Path(log.name).read_text()
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextlib.contextmanager
def receiving() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a webhook, and the alerts that it was sent."""
    alerts: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            alerts.extend(said.get("alerts", [said]))  # an Alertmanager's come together
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", alerts
    finally:
        server.shutdown()
        server.server_close()


class Prometheus:
    """One that scrapes a target every second and sends alerts on."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What a query gives, labels and value of each series."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?{query}", timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return [(row["metric"], float(row["value"][1])) for row in found["data"]["result"]]

    def over(self, expression: str, begin: float, end: float) -> int:
        """How many series a query gives between two moments (Unix time), a step a second."""
        query = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": "1"})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query_range?{query}", timeout=60) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return len(found["data"]["result"])


@contextlib.contextmanager
def watching(target: int, cwd: Path) -> Iterator[tuple[Prometheus, list[dict[str, Any]]]]:
    """A Prometheus that reads `target`, and what an Alertmanager behind it sent to a webhook."""
    prometheus = program("prometheus")
    manager = program("prometheus-alertmanager", "alertmanager")
    ports = free_port(), free_port()
    with receiving() as (url, alerts):
        route = {"receiver": "hook", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"}
        hook = {"name": "hook", "webhook_configs": [{"url": url, "send_resolved": False}]}
        (cwd / "alertmanager.yml").write_text(yaml.safe_dump({"route": route, "receivers": [hook]}))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "streamcvit", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[1]}"]}]}]},
        }
        (cwd / "prometheus.yml").write_text(yaml.safe_dump(config))
        at = [f"--web.listen-address=127.0.0.1:{port}" for port in ports]
        words = [prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=data", at[0], "--log.level=warn"]
        also = [
            manager,
            "--config.file=alertmanager.yml",
            "--storage.path=silences",
            at[1],
            "--cluster.listen-address=",
        ]
        with running(also, ports[1], cwd), running(words, ports[0], cwd):
            yield Prometheus(ports[0]), alerts
