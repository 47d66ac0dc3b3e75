"""A strict, sequential scan of WebDataset tars: what lies where, and what is wrong with it.

Nothing is extracted and `tarfile` is not used: it follows extension headers that rename members, reads links and
compressed streams, and stops in silence where a header is damaged. The layout is POSIX ustar (IEEE Std 1003.1,
"ustar Interchange Format"); of its pax extension only time stamps and names are accepted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from streamcvit.data.images import EXTENSIONS

BLOCK = 512
MAX_MEMBER = 64 << 20
"""Bytes; a larger member is a fault: no picture or record of a stream is that large."""
MAX_SHARD = 64 << 30
"""Bytes; what lies behind them is not read: a stream without end must not be read for ever."""
MAX_EXTENSION = 64 << 10
"""Bytes of a pax header: some thousand times what names and time stamps need."""
MAX_NAME = 1024
"""Characters of a member's name."""
PICTURES = tuple(ending for endings in EXTENSIONS.values() for ending in endings)
LOOKED_AT = ("json", "txt", *PICTURES)
"""The endings of the only members that are ever looked at."""

_MEMBER_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_HARMLESS_PAX = ("mtime", "atime", "ctime", "comment")


@dataclass(frozen=True)
class Member:
    """One file inside a tar: its header starts at byte `header`, its `size` bytes of data at `offset`.

    Attributes:
        key, ext: its name up to, and in small letters behind, the first dot of its last part, as WebDataset parts it.
        kind: its name in small letters behind the last dot: `json`, `png` ...
        data: its bytes; empty where it is none of `LOOKED_AT`.
    """

    key: str
    ext: str
    kind: str
    header: int
    offset: int
    size: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Fault:
    """Something wrong in a shard.

    Attributes:
        shard: path of the shard.
        offset: byte position it is wrong at.
        reason: `truncated`, `header`, `member`, `order`, `incomplete`, `checksum`, `json`, `image` ...
        detail: for a person.
        fatal: whether what follows in the shard cannot be told any more.
    """

    shard: str
    offset: int
    reason: str
    detail: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.shard}: byte {self.offset}: {self.detail}"


class HashingStream:
    """Reads on through a binary stream; knows position, and SHA-256 of everything once drained."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.position = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        parts, left = [], size
        while left:
            part = self._stream.read(left)
            if not part:
                break
            self._sha256.update(part)
            parts.append(part)
            left -= len(part)
        self.position += size - left
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def drain(self) -> bool:
        """Read to the end, or to `MAX_SHARD`; true where any byte of the rest is not zero."""
        dirty = False
        while self.position < MAX_SHARD and (part := self.read(1 << 20)):
            dirty = dirty or part.count(0) != len(part)
        return dirty

    def hexdigest(self) -> str:
        """SHA-256 of what was read."""
        return self._sha256.hexdigest()


def _number(raw: bytes) -> int:
    match = _OCTAL.fullmatch(raw)
    if not match:
        raise ValueError(f"{raw!r} is no octal number")
    return int(match[1] or b"0", 8)


def _pax_path(records: bytes) -> str | None:
    """The name a pax header gives the next member; ValueError where it changes anything else."""
    if len(records) > MAX_EXTENSION:
        raise ValueError(f"an extension header of {len(records)} bytes; at most {MAX_EXTENSION} are allowed")
    path = None
    while records:
        digits = records[:8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record, records = records[:length], records[length:]
        if length != len(record) or not record.endswith(b"\n"):
            raise ValueError("malformed extension header")
        key, _, value = record.partition(b" ")[2][:-1].partition(b"=")
        name = key.decode()
        if name == "path":
            path = value.decode()
        elif name not in _HARMLESS_PAX:
            raise ValueError(f"extension header sets {name!r}")
    return path


def _refusal(name: str, kind: bytes) -> str:
    """Why a member is not looked at; empty where it is fine."""
    if len(name) > MAX_NAME:
        return f"a member has a name of {len(name)} characters; at most {MAX_NAME} are read"
    if kind not in (b"0", b"\0"):
        kinds = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
        return f"member {name!r} is {kinds.get(kind, f'of unknown type {kind!r}')}"
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        return f"member {name!r} points out of the shard"
    if not _MEMBER_NAME.fullmatch(name):
        return unread(name)
    return ""


def unread(name: str) -> str:
    """What is said of a member that is none of `LOOKED_AT`."""
    return f"member {name!r} is none of {', '.join(LOOKED_AT)}; it is never read"


def scan_members(stream: HashingStream, shard: str) -> Iterator[Member | Fault]:
    """Members and faults of a tar in file order; after a fatal fault only the checksum goes on."""
    ended = False
    pax_name: str | None = None
    while not ended:
        start = stream.position
        if start >= MAX_SHARD:
            yield Fault(shard, start, "size", f"the shard is larger than {MAX_SHARD} bytes", fatal=True)
            return
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            yield Fault(shard, start, "truncated", "the file ends without the end-of-archive mark", fatal=True)
            return
        if not any(header):
            if any(stream.read(BLOCK)):
                yield Fault(shard, start, "header", "a zeroed block where a header should be", fatal=True)
                break
            if start == 0:
                yield Fault(shard, start, "empty", "the shard holds no member", fatal=True)
            ended = True
            continue
        try:
            if header[257:262] != b"ustar":
                raise ValueError("no tar header here")
            if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
                raise ValueError("the header's checksum is wrong")
            size, kind = _number(header[124:136]), header[156:157]
            if size > MAX_MEMBER:
                raise ValueError(f"a member of {size} bytes; at most {MAX_MEMBER} are allowed")
            name = header[:100].split(b"\0")[0].decode()
            prefix = header[345:500].split(b"\0")[0].decode() if header[262:263] == b"\0" else ""
        except ValueError as fault:
            yield Fault(shard, start, "header", str(fault), fatal=True)
            break
        data = stream.read(size)
        stream.read(-size % BLOCK)
        name = pax_name or (f"{prefix}/{name}" if prefix else name)
        if len(data) < size:
            yield Fault(
                shard, start, "truncated", f"member {name!r:.200} has {len(data)} of its {size} bytes", fatal=True
            )
            return
        if kind == b"x":
            try:
                pax_name = _pax_path(data)
            except ValueError as fault:
                yield Fault(shard, start, "header", str(fault), fatal=True)
                break
            continue
        pax_name = None
        if kind in (b"5", b"g"):  # folders hold nothing; a global header of `git archive` is a comment
            continue
        name = name.removeprefix("./")
        if refusal := _refusal(name, kind):
            yield Fault(shard, start, "member", refusal)
            continue
        match = _MEMBER_NAME.fullmatch(name)
        assert match is not None
        ext = match[2].lower()
        last = ext.rpartition(".")[2]
        yield Member(match[1], ext, last, start, start + BLOCK, size, data if last in LOOKED_AT else b"")
    rest = stream.position
    if stream.drain() and ended:
        yield Fault(shard, rest, "header", "data after the end-of-archive mark")
