"""An HTTP server on the loopback interface that serves ranges of a folder's files, and misbehaves when told to."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Site:
    """What is served, what was asked for, and what goes wrong next.

    Attributes:
        url: of the folder.
        asked: (file name, first byte, byte after the last) of every GET.
        faults: kinds of misbehaviour, one for each GET of a shard that comes; when they are used up all is well.
        always: a kind that every GET of a shard meets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.asked: list[tuple[str, int, int]] = []
        self.faults: deque[str] = deque()
        self.always = ""

    def fault(self, name: str) -> str:
        if not name.endswith(".tar"):
            return ""
        return self.always or (self.faults.popleft() if self.faults else "")


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
            path = site.folder / self.path.lstrip("/")
            fault = site.fault(path.name) if body else ("503" if site.always == "503" else "")
            if fault == "503":
                self.send_error(503)
                return
            if not path.is_file() or fault == "gone":
                self.send_error(404)
                return
            if fault == "redirect":
                self.send_response(302)
                self.send_header("Location", path.resolve().as_uri())
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            start, stop, status = 0, len(data), 200
            if body and (found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
                start, stop, status = int(found[1]), int(found[2]) + 1, 206
            if body:
                site.asked.append((path.name, start, stop))
            if fault == "whole":
                start, stop, status = 0, len(data), 200
            part = data[start:stop]
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
            self.send_header("Content-Length", str(len(part)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
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
def serving(folder: Path) -> Iterator[Site]:
    """Serve a folder."""
    site = Site(folder)
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
