"""Nobody gets in: what listens during a run, where, and what it says to somebody without the token."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running import ROOT, SMALL, command, environment

JOIN = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="error")
print("LET IN", len(ray.nodes()))
"""


class Living:
    """A run that goes on until the test is over."""

    def __init__(self, cwd: Path, *more: str) -> None:
        words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "open", "--method", "lora", *SMALL]
        words += ["--set", "stream.scenario.samples_per_chunk=1500", "--set", "learner.batch_size=1", *more]
        self.process = subprocess.Popen(
            command(*words), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        printed = []
        for line in self.process.stdout:
            printed.append(line)
            if found := re.search(r"metrics: http://[\d.]+:(\d+)/metrics", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("".join(printed))

    def listeners(self) -> dict[str, set[tuple[str, int]]]:
        """Title and number of each process below the run -> the addresses it listens at."""
        found: dict[str, set[tuple[str, int]]] = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = f"{os.path.basename((process.cmdline() or [''])[0])} {process.pid}"
                for socket in process.net_connections(kind="inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        found.setdefault(title, set()).add(socket.laddr[:2])
        return found

    def close(self) -> None:
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def secret(self) -> Path:
        """The file with Ray's token, as a process of the run knows it."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if path := process.environ().get("RAY_AUTH_TOKEN_PATH"):
                    return Path(path)
        raise AssertionError("no process of the run has a token")


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    run = Living(tmp_path_factory.mktemp("open"))
    yield run
    run.close()


def test_our_only_listener_is_the_metrics_on_loopback(living: Living) -> None:
    found = living.listeners()
    ours = {title: places for title, places in found.items() if "Actor" in title}
    assert ours
    (monitor,) = [places for title, places in ours.items() if title.startswith("ray::MonitorActor")]
    assert ("127.0.0.1", living.port) in monitor
    for title, places in ours.items():
        ray_own = {place for place in places if not place[0].startswith("127.")}
        loopback = places - ray_own
        assert loopback == ({("127.0.0.1", living.port)} if places is monitor else set()), title
        assert len(ray_own) == 1, f"{title} listens at more than Ray's one port: {places}"


def test_the_token_of_the_private_ray_is_its_owners_alone(living: Living) -> None:
    token = living.secret()
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    assert len(token.read_text()) == 64


@pytest.mark.parametrize("token", ["the right one", None, "0" * 64])
def test_ray_lets_nobody_in_without_the_token(living: Living, tmp_path: Path, token: str | None) -> None:
    (places,) = [places for title, places in living.listeners().items() if title.startswith("gcs_server")]
    ((_, port),) = places
    env = {key: value for key, value in environment().items() if not key.startswith("RAY_")} | {"HOME": str(tmp_path)}
    env |= {"RAY_gcs_rpc_server_connect_timeout_s": "2", "RAY_USAGE_STATS_ENABLED": "0"}
    right = token == "the right one"
    if token:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": living.secret().read_text() if right else token}
    asked = subprocess.run(
        [sys.executable, "-c", JOIN, f"127.0.0.1:{port}"],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if right:
        assert asked.returncode == 0 and "LET IN 1" in asked.stdout, asked.stderr
        return
    assert asked.returncode != 0
    assert "LET IN" not in asked.stdout
    assert re.search(r"InvalidAuthToken|Unauthenticated|token authentication", asked.stdout + asked.stderr), (
        asked.stderr
    )


def test_metrics_that_other_machines_reach_want_the_token(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    run = Living(tmp_path, "--set", "monitor.host=0.0.0.0", "--set", f"monitor.token_file={secret}")
    try:
        status = {}
        for token in ("s3cret", "other", ""):
            asked = http.client.HTTPConnection("127.0.0.1", run.port)
            asked.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"} if token else {})
            status[token] = asked.getresponse().status
            asked.close()
        assert status == {"s3cret": 200, "other": 401, "": 401}
    finally:
        run.close()
