"""What a browser asks for: the page, the stream of what changes, and the report's file."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from streamcvit.monitoring.watch.follow import Follower
from streamcvit.monitoring.watch.hub import MOST_VIEWERS, Hub, joined

SCRIPTS = ("dom.js", "draw.js", "panels.js", "keys.js", "live.js")
"""In the order in which they stand in the page, as one script."""
Start = Callable[..., Any]

_PAGE_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALWAYS = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


@functools.cache
def _page() -> tuple[Any, dict[str, Any], str]:
    """Template, what of it is the same for every visit, and its policy."""
    folder = files("streamcvit.monitoring.watch") / "templates"
    parts = [(folder / name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"
    style = (folder / "watch.css").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "watch.html.jinja").read_text(encoding="utf-8"))
    edition = hashlib.sha256((script + style).encode()).hexdigest()[:12]
    policy = _PAGE_POLICY.format(script=_digest(script), style=_digest(style))
    return template, {"script": Markup(script), "style": Markup(style), "edition": edition}, policy


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class Site:
    """The live page of a run, as a WSGI application for `exporter.serve`.

    Args:
        follower: of the run.
        title: shown until the first state is.
        chosen: the method that is shown first; empty: the one that learns.
    """

    def __init__(self, follower: Follower, title: str = "streamcvit", chosen: str = "") -> None:
        self.follower, self.title, self.chosen = follower, title, chosen
        self.hub = Hub(follower.look)

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path in ("/", "/index.html"):
            return self._html(environ, start_response)
        if path == "/events":
            return self._events(environ, start_response)
        if path == "/state.json":
            return _answer(start_response, joined(self.hub.state()[1]).encode(), "application/json")
        if path == "/edition":
            return _answer(start_response, _page()[1]["edition"].encode(), "text/plain; charset=utf-8")
        if path == "/report.html":
            return self._report(start_response)
        body = b"Nothing here. The page is at /, metrics are at /metrics.\n"
        return _answer(start_response, body, "text/plain; charset=utf-8", "404 Not Found")

    def close(self) -> None:
        """End the streams of all viewers."""
        self.hub.close()

    def _html(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        template, same, policy = _page()
        version, parts = self.hub.state()
        # In JSON these signs stand in strings only.
        state = joined(parts).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
        last = f"{self.hub.boot}.{version}"
        body = template.render(title=self.title, chosen=self.chosen, last=last, state=Markup(state), **same).encode()
        more = [("Content-Security-Policy", policy), ("Vary", "Accept-Encoding")]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body, more = gzip.compress(body, 4), [*more, ("Content-Encoding", "gzip")]
        return _answer(start_response, body, "text/html; charset=utf-8", more=more)

    def _events(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        if self.hub.viewers >= MOST_VIEWERS:
            body = f"{MOST_VIEWERS} tabs are open already; close one.\n".encode()
            return _answer(start_response, body, "text/plain; charset=utf-8", "503 Service Unavailable")
        if environ.get("REQUEST_METHOD") == "HEAD":
            return _answer(start_response, b"", "text/event-stream")
        asked = parse_qs(environ.get("QUERY_STRING", "")).get("after", [""])[0]
        last = environ.get("HTTP_LAST_EVENT_ID") or asked
        start_response("200 OK", [("Content-Type", "text/event-stream"), *_ALWAYS])
        return _bytes(self.hub.news(last))

    def _report(self, start_response: Start) -> Iterable[bytes]:
        try:
            body = (self.follower.folder / "report.html").read_bytes()
        except OSError:
            body = b"No report yet: it is written when the run ends.\n"
            return _answer(start_response, body, "text/plain; charset=utf-8", "404 Not Found")
        more = [("Content-Security-Policy", _REPORT_POLICY)]
        return _answer(start_response, body, "text/html; charset=utf-8", more=more)


def _bytes(texts: Iterator[str]) -> Iterator[bytes]:
    for text in texts:
        yield text.encode()


def _answer(
    start_response: Start, body: bytes, kind: str, status: str = "200 OK", more: list[tuple[str, str]] | None = None
) -> list[bytes]:
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *_ALWAYS, *(more or [])])
    return [body]
