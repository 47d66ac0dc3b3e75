"""Servers on the loopback interface that serve ranges of files, and misbehave when told to: plain HTTP, and S3."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class Site:
    """What is served, what was asked for, and what goes wrong next.

    Args:
        folder: what is served.
        upstream: (host, port) of a server that answers instead; what it answers goes wrong on the way.

    Attributes:
        url: of the folder.
        asked: (file name, first byte, byte after the last) of every GET.
        faults: kinds of misbehaviour, one for each GET of a shard that comes; when they are used up all is well.
        always: a kind that every GET of a shard meets.
        login: `user:password` that every request must bring; empty: anyone may ask.
        store: of an S3 server, a client that writes to it, past all faults.
    """

    store: Any = None

    def __init__(self, folder: Path, upstream: tuple[str, int] | None = None) -> None:
        self.folder, self.upstream, self.url = folder, upstream, ""
        self.asked: list[tuple[str, int, int]] = []
        self.faults: deque[str] = deque()
        self.always = self.login = ""

    def answer(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body where nothing goes wrong."""
        if self.upstream:
            connection = http.client.HTTPConnection(*self.upstream)
            connection.request(request.command, request.path, headers=dict(request.headers))
            reply = connection.getresponse()
            kept = {k: v for k, v in reply.getheaders() if k.lower() not in ("connection", "date", "server")}
            body = reply.read()
            connection.close()
            return reply.status, kept, body
        path = self.folder / request.path.lstrip("/")
        if not path.is_file():
            return 404, {}, b""
        data = path.read_bytes()
        if span := _span(request):
            start, stop = span
            return 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]
        return 200, {}, data

    def replace(self, name: str, data: bytes) -> None:
        """Serve other bytes under a name."""
        if self.store:
            self.store.put_object(Bucket="bucket", Key=f"stream/{name}", Body=data)
        else:
            (self.folder / name).write_bytes(data)

    def fault(self, name: str) -> str:
        if not name.endswith(".tar"):
            return ""
        return self.always or (self.faults.popleft() if self.faults else "")


def _span(request: BaseHTTPRequestHandler) -> tuple[int, int] | None:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
    return (int(found[1]), int(found[2]) + 1) if found else None


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Tests read `asked`."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            wanted = f"Basic {base64.b64encode(site.login.encode()).decode()}"
            if site.login and self.headers.get("Authorization") != wanted:
                self.send_error(401)
                return
            name = self.path.partition("?")[0].rpartition("/")[2]
            fault = site.fault(name) if body else ("503" if site.always == "503" else "")
            if fault in ("503", "gone"):
                self.send_error(503 if fault == "503" else 404)
                return
            if fault == "redirect":
                self.send_response(302)
                self.send_header("Location", (site.folder / name).resolve().as_uri())
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if body and (span := _span(self)):
                site.asked.append((name, *span))
            if fault == "whole":
                del self.headers["Range"]
            status, headers, part = site.answer(self)
            if status >= 400:
                part = b""
            if fault == "page":
                part, status = b"<html>Please log in</html>", 200
            if fault == "short":
                part = part[: len(part) // 2]
            if fault == "wrong":
                part = bytes([part[0] ^ 1]) + part[1:]
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            self.send_response(status)
            size = headers.pop("Content-Length", "0")
            self.send_header("Content-Length", str(len(part)) if body or not site.upstream else size)
            for key, value in headers.items():
                self.send_header(key, value)
            if fault == "packed":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            if fault == "slow":
                time.sleep(3)
            if fault == "cut":
                part, self.close_connection = part[: len(part) // 2], True
            if body:
                with contextlib.suppress(OSError):
                    self.wfile.write(part)

    return Handler


@contextlib.contextmanager
def serving(folder: Path, upstream: tuple[str, int] | None = None) -> Iterator[Site]:
    """Serve a folder, or pass on what another server says."""
    site = Site(folder, upstream)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def storing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An S3 server with a folder's files in a bucket, behind a way on which things go wrong."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        store = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        store.create_bucket(Bucket="bucket")
        for path in folder.rglob("*"):
            if path.is_file():
                store.upload_file(str(path), "bucket", f"stream/{path.relative_to(folder)}")
        with serving(folder, (host, port)) as site:
            monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
            site.url, site.store = "s3://bucket/stream", store
            yield site
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
