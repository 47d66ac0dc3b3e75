"""Metrics that leave this machine are shown to whoever has the token, and to nobody else."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcvit.cluster.session import metrics_token
from streamcvit.config import MonitorConfig
from streamcvit.errors import UserError
from streamcvit.monitoring.exporter import Server, serve
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.watch import Follower, Site


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve(MetricStore(), site=Site(Follower(tmp_path)), token="s3cret") as server:
        yield server


def ask(server: Server, path: str, header: str | None) -> int:
    request = urllib.request.Request(server.url.removesuffix("/metrics") + path)
    if header is not None:
        request.add_header("Authorization", header)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize("path", ["/metrics", "/", "/events", "/state.json", "/report.html", "/nowhere"])
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer s3cre", "s3cret", "Digest s3cret", basic("no"), "Basic %%%"]
)
def test_nothing_is_shown_without_the_token(server: Server, path: str, header: str | None) -> None:
    assert ask(server, path, header) == 401


@pytest.mark.parametrize("header", ["Bearer s3cret", "bearer s3cret", basic("s3cret")])
def test_the_token_opens_metrics_and_page(server: Server, header: str) -> None:
    assert ask(server, "/metrics", header) == ask(server, "/", header) == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_nothing_is_served_to_other_machines_without_a_token(host: str) -> None:
    with pytest.raises(UserError, match=f"{host}: .*a token is needed"):
        serve(MetricStore(), host=host)


@pytest.mark.parametrize(
    ("name", "status"),
    [("127.0.0.1", 200), ("localhost", 200), ("[::1]", 200), ("evil.example", 403), ("192.0.2.1", 403), ("", 403)],
)
@pytest.mark.parametrize("path", ["/metrics", "/"])
def test_a_page_from_elsewhere_cannot_read_it_by_a_name_that_points_here(path: str, name: str, status: int) -> None:
    with serve(MetricStore()) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", path, headers={"Host": f"{name}:{server.port}"})
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_wants_no_token(host: str) -> None:
    with metrics_token(MonitorConfig(host=host)) as found:
        assert found == ("", "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_every_other_address_gets_a_private_token_for_the_run(host: str) -> None:
    with metrics_token(MonitorConfig(host=host)) as (token, path):
        assert len(token) >= 32
        assert Path(path).read_text() == token
        assert Path(path).stat().st_mode & 0o777 == 0o600
    assert not Path(path).exists()


def test_a_token_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("mine\n")
    with metrics_token(MonitorConfig(token_file=str(file))) as found:
        assert found == ("mine", str(file))


@pytest.mark.parametrize(("text", "mode", "said"), [("x", 0o644, "every user"), ("\n", 0o600, "empty")])
def test_a_bad_token_file_is_named(tmp_path: Path, text: str, mode: int, said: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(UserError, match=said), metrics_token(MonitorConfig(token_file=str(file))):
        pass
    with pytest.raises(UserError, match="cannot be read"), metrics_token(MonitorConfig(token_file=str(file) + "x")):
        pass
