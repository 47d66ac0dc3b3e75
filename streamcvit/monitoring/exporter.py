"""The one HTTP endpoint: `/metrics` for Prometheus, `/healthz` and, where wanted, pages for people at `/`."""

from __future__ import annotations

import base64
import errno
import hmac
import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from socketserver import ThreadingMixIn
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

from streamcvit.errors import UserError

LONGEST_INTERVAL = 60.0
"""Between two scrapes of whoever counts as watching."""


class Pages(Protocol):
    """A WSGI application for people, asked for every path but `/metrics` and `/healthz`, after token and host."""

    def __call__(self, environ: dict[str, Any], start_response: Callable, /) -> Iterable[bytes]: ...

    def close(self) -> None:
        """End answers that go on."""


class Readers:
    """When the metrics were asked for: who asks again and again should see how a run ends."""

    def __init__(self) -> None:
        self._asked = threading.Condition()
        self._times: deque[float] = deque(maxlen=3)

    def note(self) -> None:
        """Somebody has the metrics."""
        with self._asked:
            self._times.append(time.monotonic())
            self._asked.notify_all()

    def wait_for_next(self) -> bool:
        """Until the metrics are asked for again, twice the time between the last askings at most; at once where
        nobody does. Whether somebody asked."""
        with self._asked:
            gaps = [later - earlier for earlier, later in pairwise((*self._times, time.monotonic()))]
            if len(gaps) < 2 or max(gaps) > LONGEST_INTERVAL:
                return False
            before = self._times[-1]
            return self._asked.wait_for(lambda: self._times[-1] > before, timeout=2 * max(gaps))


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    timeout = 60.0  # that a client may take to ask, or to read on

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


class Server:
    """A running endpoint.

    Attributes:
        port: the port it listens on (the one chosen where 0 was asked for).
        url: address of the metrics.
        readers: who asked for them.
    """

    def __init__(self, server: WSGIServer, host: str, readers: Readers, site: Pages | None = None) -> None:
        self._server, self.readers, self._site = server, readers, site
        self.port: int = server.server_port
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/metrics"
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and free the port."""
        if self._site is not None:
            self._site.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def serve(
    store: Collector | None,
    port: int = 0,
    host: str = "127.0.0.1",
    site: Pages | None = None,
    token: str = "",
) -> Server:
    """Serve a store's metrics at `/metrics`, and pages for people.

    Args:
        store: what to export, as a rule a `MetricStore`; None: pages alone.
        port: where to listen; 0 takes any free port.
        host: address to listen at; the default is reachable from this machine only.
        site: answers at `/` and what lies below; without it `/` names the metrics' address.
        token: what a reader must show, as a bearer token or (a browser) as the password of any name; empty: nothing,
            and only the loopback interface is listened at.

    Raises:
        UserError: the port is taken or may not be used, or other machines would get in without a token.
    """
    if not (token or is_loopback(host)):
        raise UserError("other machines reach this address: a token is needed", where=host, fix="Give one")
    registry = CollectorRegistry()
    if store is not None:
        registry.register(store)
    metrics, readers = make_wsgi_app(registry), Readers()

    def application(environ: dict, start_response: Callable) -> Iterable[bytes]:
        if token and not _shown(environ.get("HTTP_AUTHORIZATION", ""), token):
            headers = [("Content-Type", "text/plain; charset=utf-8"), ("WWW-Authenticate", 'Basic realm="streamcvit"')]
            start_response("401 Unauthorized", [*headers, ("WWW-Authenticate", "Bearer")])
            return [b"A token is needed; the run printed where it is.\n"]
        if not (token or is_loopback(_host(environ.get("HTTP_HOST", host)))):
            # A page from elsewhere whose name was made to point here; a browser must not read this for it.
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"Ask for this machine by a loopback name, or give the run a monitor.token_file.\n"]
        path = environ.get("PATH_INFO", "/")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            headers = [("Content-Type", "text/plain; charset=utf-8"), ("Allow", "GET, HEAD")]
            start_response("405 Method Not Allowed", headers)
            return [b"Nothing can be changed here.\n"]
        if path == "/metrics" and store is not None:
            answer = list(metrics(environ, start_response))
            readers.note()
            return answer
        if path == "/healthz":
            start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"ok\n"]
        if site is not None:
            return site(environ, start_response)
        if path not in ("/", "/index.html"):
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"Nothing here. Metrics are at /metrics.\n"]
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")])
        return [b'<!doctype html><title>streamcvit</title><a href="/metrics">Metrics</a>']

    return Server(_listen(host, port, application), host, readers, site)


def check_address(host: str, port: int) -> None:
    """Listen for a moment.

    Raises:
        UserError: nobody can listen there: the port is taken or no port, the host is another machine's.
    """
    _listen(host, port, None).server_close()


def _listen(host: str, port: int, application: Any) -> WSGIServer:
    where = f"{host}:{port}"
    try:
        return make_server(host, port, application, _ThreadingServer, _SilentHandler)
    except OverflowError:
        raise UserError(f"{port} is no port", fix="Give a number from 0 to 65535; 0 takes any free port") from None
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            fix = "Stop the program that uses it, or give another port; 0 takes any free one"
            raise UserError("this port is in use", where=where, fix=fix) from None
        if number == errno.EACCES:
            fix = "Give a port from 1024 on; 0 takes any free one"
            raise UserError("this port is the system's own", where=where, fix=fix) from None
        if number == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror | UnicodeError):
            fix = "Give monitor.host an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them"
            raise UserError("this host is none of this machine's addresses", where=where, fix=fix) from None
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen here ({reason})", where=where, fix="Give another host or port") from None


def is_loopback(host: str) -> bool:
    """Whether an address or name is that of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    return header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]


def _shown(header: str, token: str) -> bool:
    """Whether an Authorization header holds the token; the time it takes says nothing about the token."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value.strip().encode(), token.encode())
