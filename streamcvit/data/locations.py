"""Where bytes lie, and how they are fetched: a local file or a URL that only fetches. Nothing here runs a command.

A fetch that fails is tried again with growing pauses, for it says nothing of the bytes; then it stops the caller with
the location's name.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import posixpath
import re
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

from streamcvit.errors import UserError

URL_SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf", "memory")
WAITS = (0.1, 0.5, 2.0, 5.0)
"""Seconds between the attempts of a fetch."""
PART = 8 << 20
"""Bytes fetched at once where a URL is read from end to end."""
MAX_RESPONSE = 256 << 20
"""Bytes of an HTTP answer that are taken in; a server that goes on is cut off."""
_NETRC = "into ~/.netrc, or the file that NETRC names (machine, login, password)"
_OTHER_LOGINS = "where the protocol's own tools look for them"
_LOGINS = {
    "http": _NETRC,
    "https": _NETRC,
    "s3": "into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
}
_CONNECT, _PAUSE, _TOTAL = 10.0, 30.0, 120.0  # seconds to connect, between two packets, and for a whole answer

T = TypeVar("T")


_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@\[\]]+)(:[0-9]+)?")
_ODD = re.compile(r"[%?#\\\x00-\x1f\x7f]")  # what a client reads as something else than a part of a path, or leaves out


def check_location(location: str) -> str:
    """The location, if it is a plain path or a URL of a scheme that only fetches bytes.

    Raises:
        UserError: `pipe:` and other schemes that run something, chained URLs, member paths; URLs that hold a password,
            a query or a fragment, as locations stand in messages and in a run's files (this message repeats nothing).
    """
    scheme, colon, rest = location.partition(":")
    if "::" in location or "\0" in location or (colon and "/" not in scheme and scheme not in URL_SCHEMES):
        raise UserError(
            f"{_shown(location)!r} is no location to read from",
            fix=f"Give a path, or a URL starting with one of {', '.join(URL_SCHEMES)}",
        )
    if not (colon and scheme in URL_SCHEMES):
        return location
    if not rest.startswith("//"):
        raise UserError(f"{_shown(location)!r} is neither a path nor a URL", fix=f"Write {scheme}://...")
    place = re.split("[/?#]", rest[2:])[0]
    # `abfs://container@account` names no user, and S3 knows names with colons.
    if not _HOST.fullmatch(place) if scheme in ("http", "https") else ":" in place and "@" in rest:
        raise UserError(
            "expected host, or host:port, without a user's name and password",
            where=f"{scheme}://...",
            fix=f"A location is written down with every run, so put logins {_LOGINS.get(scheme, _OTHER_LOGINS)}",
        )
    if odd := re.search("[?#]", location):
        raise UserError(
            f"a location holds no {odd[0]!r}",
            where=location[: odd.start()],
            fix=f"It is written down with every run, so put logins {_LOGINS.get(scheme, _OTHER_LOGINS)}",
        )
    return location


def _shown(location: str) -> str:
    """A location that was refused, without what may be a password or a token."""
    return re.sub("[?#].*", "?...", re.sub(":.*@", ":...@", location, flags=re.DOTALL), flags=re.DOTALL)


def is_url(location: str) -> bool:
    """Whether a checked location is a URL."""
    return location.partition("://")[0] in URL_SCHEMES


def join(folder: str, name: str) -> str:
    """A file's location from its name in an index: beneath `folder`; an index on this machine may name URLs, too.

    Raises:
        UserError: the name leads out of the folder, or might, once a client has read it as a part of a URL.
    """
    check_location(name)
    if is_url(name) and not is_url(folder):
        return name
    if is_url(name) or os.path.isabs(name) or ".." in name.split("/") or (is_url(folder) and _ODD.search(name)):
        fix = "Index the shards again, under names without %, ?, # and backslash"
        raise UserError(f"shard {name!r} points out of its folder", where=folder, fix=fix)
    return posixpath.join(folder, name) if is_url(folder) else os.path.join(folder, name)


class NotRegular(OSError):
    """A folder, pipe or device where a file should be: a pipe would keep its reader waiting, a device never end."""


def open_regular(path: str | os.PathLike) -> int:
    """A descriptor of a file to read.

    Raises:
        NotRegular: it is no file.
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotRegular(errno.EINVAL, "no regular file", os.fspath(path))
    return handle


class ByteSource:
    """The bytes of one location by ranges; threads may share it. Opened at the first fetch.

    Args:
        location: path or URL.
    """

    def __init__(self, location: str) -> None:
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._size: int | None = None
        self.location = check_location(location)
        self.remote = is_url(location)

    def read(self, offset: int, size: int, sound: Callable[[bytes], bool] = lambda _: True) -> bytes:
        """`size` bytes from `offset`; of a local file fewer, where it ends.

        Args:
            offset, size: bytes.
            sound: whether the bytes that came are the wanted ones. From a URL others are fetched again, as what comes
                over a network may not be what lies there; from a local file they are returned as they are.

        Raises:
            UserError: not there, not reachable, or never sound.
        """
        if not self.remote:
            return self._again(lambda: self._read_local(offset, size))

        def attempt() -> bytes:
            system, path = self._system()
            data = system.cat_file(path, start=offset, end=offset + size) if size else b""
            if len(data) != size:
                raise OSError(f"{len(data)} bytes came instead of {size} from byte {offset}")
            if not sound(data):
                raise OSError(f"the {size} bytes from byte {offset} are not those that were indexed")
            return data

        return self._again(attempt)

    def size(self) -> int:
        """Bytes in all.

        Raises:
            UserError: as `read`, or the server does not say.
        """
        if self._size is None:
            self._size = self._again(self._size_once)
        return self._size

    def close(self) -> None:
        """Close the file; the next fetch opens it again."""
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    def _read_local(self, offset: int, size: int) -> bytes:
        parts = []
        with self._lock:  # under it no other thread can close the file that is being read
            if self._handle is None:
                self._handle = open_regular(self.location)
            while size > 0 and (part := os.pread(self._handle, min(size, 1 << 30), offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _size_once(self) -> int:
        if not self.remote:
            return os.stat(self.location).st_size
        system, path = self._system()
        try:
            size = system.info(path).get("size")
        except FileNotFoundError as gone:
            # fsspec's HTTP client says so of every failure; the cause tells.
            if gone.__cause__ is None or getattr(gone.__cause__, "status", 0) == 404:
                raise
            raise OSError(str(gone.__cause__)) from gone
        if not isinstance(size, int):
            raise OSError("the server does not say how large it is")
        return size

    def _system(self) -> tuple[Any, str]:
        import fsspec

        options = _OPTIONS.get(self.location.partition(":")[0], dict)()
        system, path = fsspec.core.url_to_fs(self.location, **options)
        if hasattr(system, "retries"):
            system.retries = 1  # of s3fs; it would try again within each of our attempts
        return system, path

    def _again(self, attempt: Callable[[], T]) -> T:
        for wait in (*WAITS, None):
            try:
                return attempt()
            except FileNotFoundError:
                fix = "Bring it back, or check the path"
                raise UserError("there is no such file", where=self.location, fix=fix) from None
            except ImportError as missing:
                fix = f"Install the package {missing.name}" if missing.name else "Install the protocol's package"
                raise UserError(f"cannot be fetched: {missing}", where=self.location, fix=fix) from None
            except Exception as fault:  # each protocol's client has its own errors; none says anything of the bytes
                if not (self.remote or isinstance(fault, OSError)):
                    raise
                self.close()
                if wait is None or isinstance(fault, NotRegular):
                    what = (
                        str(fault) if isinstance(fault, OSError) and str(fault) else f"{type(fault).__name__}: {fault}"
                    )
                    raise UserError(
                        f"cannot be read: {what}", where=self.location, fix="Check disk and network, then try again"
                    ) from None
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


class _Remote(io.RawIOBase):
    """A URL read on from the start, each part fetched by its range."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self._at, self._end = source, 0, source.size()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(self._at, min(len(buffer), self._end - self._at, PART))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_binary(location: str) -> BinaryIO:
    """The bytes at a location, read on from the start.

    Raises:
        UserError: not there or not reachable.
    """
    check_location(location)
    if is_url(location):
        return cast(BinaryIO, io.BufferedReader(_Remote(ByteSource(location)), PART))
    try:
        return os.fdopen(open_regular(location), "rb")
    except OSError as fault:
        raise UserError(
            f"cannot be opened: {fault.strerror}", where=location, fix="Check the path and its permissions"
        ) from None


@functools.cache
def _http_options() -> dict[str, Any]:
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        """An answer that is cut off where it passes all bounds."""

        async def read(self) -> bytes:
            parts, left = [], MAX_RESPONSE
            async for part in self.content.iter_chunked(1 << 20):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise OSError(f"the answer is larger than {MAX_RESPONSE} bytes")
            return b"".join(parts)

    # Packed answers are not asked for and not unpacked: a few bytes can unpack to gigabytes.
    timeout = aiohttp.ClientTimeout(total=_TOTAL, sock_connect=_CONNECT, sock_read=_PAUSE)
    return {
        # Logins come from .netrc, proxies from http_proxy and its kin: the environment is this machine's own.
        "client_kwargs": {"timeout": timeout, "auto_decompress": False, "response_class": Bounded, "trust_env": True},
        "headers": {"Accept-Encoding": "identity"},
    }


def _s3_options() -> dict[str, Any]:
    waits = {"connect_timeout": _CONNECT, "read_timeout": _PAUSE, "retries": {"total_max_attempts": 1}}
    return {"config_kwargs": waits}


_OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "http": _http_options, "https": _http_options, "s3": _s3_options,
}  # fmt: skip
"""What a protocol's client is told, so that an attempt ends in time and trying again is left to us."""
