"""A strict, sequential scan of WebDataset tars: what lies where, and what is wrong with it.

Nothing is extracted and `tarfile` is not used: it follows extension headers that rename members, reads links and
compressed streams, and stops in silence where a header is damaged. The layout is POSIX ustar (IEEE Std 1003.1,
"ustar Interchange Format"), and of its pax extension and of GNU's what changes a member's name, or neither its name nor
its size nor its kind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from streamcvit.data.images import EXTENSIONS, UNREAD

BLOCK = 512
MAX_MEMBER = 64 << 20
"""Bytes; a larger member is a fault: no picture or record of a stream is that large."""
MAX_SHARD = 64 << 30
"""Bytes; what lies behind them is not read: a stream without end must not be read for ever."""
MAX_EXTENSION = 1 << 20
"""Bytes of an extension header; a Mac puts a file's extended attributes there."""
MAX_NAME = 1024
"""Characters of a member's name."""
PICTURES = (*[ending for endings in EXTENSIONS.values() for ending in endings], *UNREAD)
"""Endings of members that are pictures."""

_MEMBER_NAME = re.compile(r"((?:[^\0-\x1f]*/)?[^./\0-\x1f]+)\.([^/\0-\x1f]+)")
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([0-9]{1,7}) ")
_HARMLESS_PAX = {
    "atime", "charset", "comment", "ctime", "gid", "gname", "hdrcharset", "linkpath", "mtime", "uid", "uname",
}  # fmt: skip
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_PACKED = {
    b"\x1f\x8b": "gzip -dc",
    b"BZh": "bzip2 -dc",
    b"\xfd7zXZ": "xz -dc",
    b"\x28\xb5\x2f\xfd": "zstd -dc",
    b"\x04\x22\x4d\x18": "lz4 -dc",
}
_EXTENSIONS = (b"x", b"X", b"g", b"L", b"K")
_LITTER = (".ds_store", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Member:
    """One file inside a tar: its header starts at byte `header`, its `size` bytes of data at `offset`.

    Attributes:
        key, ext: its name up to, and in small letters behind, the first dot of its last part, as WebDataset parts it.
        kind: its name in small letters behind the last dot: `json`, `png` ...
        data: its bytes; empty where nobody asked for members of its kind.
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


def _name(raw: bytes) -> str:
    """A name as text; one of an old tool, in whatever it wrote, keeps its bytes apart."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _pax(records: bytes) -> Iterator[tuple[str, bytes]]:
    """Keywords and values of a pax header; ValueError where it is malformed."""
    at = 0
    while at < len(records):
        match = _RECORD.match(records, at)
        end = at + int(match[1]) if match else at
        if match is None or not match.end() < end <= len(records) or records[end - 1 : end] != b"\n":
            raise ValueError("malformed extension header")
        key, equals, value = records[match.end() : end - 1].partition(b"=")
        if not equals:
            raise ValueError("malformed extension header")
        yield key.decode(), value
        at = end


@dataclass(frozen=True)
class _Next:
    """What extension headers say of the next member."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False

    def after(self, kind: bytes, data: bytes) -> _Next:
        """The same after one more header; ValueError where that changes what lies where."""
        if len(data) > MAX_EXTENSION:
            raise ValueError(f"an extension header of {len(data)} bytes; at most {MAX_EXTENSION} are allowed")
        if kind == b"L":  # of GNU tar
            return replace(self, name=_name(data.split(b"\0")[0]))
        if kind == b"K":  # a link's target: links are not followed
            return self
        found = self
        for key, value in _pax(data):
            if key == "path" and kind != b"g":
                found = replace(found, name=_name(value))
            elif key == "size" and value.isdigit() and len(value) < 20 and kind != b"g":
                found = replace(found, size=int(value))
            elif key.startswith("GNU.sparse.") or key == "SCHILY.realsize":
                found = replace(found, sparse=True)
            elif key not in _HARMLESS_PAX and "." not in key:  # a dotted one is a vendor's, to be ignored (POSIX)
                raise ValueError(f"extension header sets {key!r:.80}")
        return found


def _is_litter(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith("._") or base.lower() in _LITTER or name.startswith("__MACOSX/") or "/__MACOSX/" in name


def _refusal(name: str, kind: bytes, sparse: bool) -> str:
    """Why a member is not looked at; empty where it is fine."""
    if len(name) > MAX_NAME:
        return f"a member has a name of {len(name)} characters; at most {MAX_NAME} are read"
    if kind not in (b"0", b"\0", b"7"):
        return f"member {name!r} is {_KINDS.get(kind, f'of unknown type {kind!r}')}"
    if sparse:
        return f"member {name!r} is stored as a sparse file; pack it without --sparse"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return f"member {name!r} points out of the shard"
    return ""


def unread(name: str, read: Collection[str]) -> str:
    """What is said of a member that nobody asked for; `read` are the endings of those that somebody did."""
    return f"member {name!r} is none of {', '.join(read)}; it is never read"


def _packed(head: bytes) -> str:
    """What is said of a file that is no plain tar; empty: nothing."""
    if tool := next((tool for magic, tool in _PACKED.items() if head.startswith(magic)), ""):
        return f"it is packed with {tool.split()[0]} (unpack it with {tool}); only plain tars can be read by ranges"
    kinds = {
        b"PK\3\4": "a zip archive",
        b"PAR1": "a Parquet file",
        b"7z\xbc\xaf": "a 7z archive",
        b"\x89HDF": "an HDF5 file",
    }
    kind = next((kind for magic, kind in kinds.items() if head.startswith(magic)), "")
    return f"it is {kind}, no tar" if kind else ""


def scan_members(stream: HashingStream, shard: str, read: Collection[str]) -> Iterator[Member | Fault]:
    """Members and faults of a tar in file order; after a fatal fault only the checksum goes on.

    Args:
        read: the endings of members whose bytes are wanted.
    """
    ended = False
    plain = following = _Next()
    while not ended:
        start = stream.position
        if start >= MAX_SHARD:
            yield Fault(shard, start, "size", f"the shard is larger than {MAX_SHARD} bytes", fatal=True)
            return
        header = stream.read(BLOCK)
        if start == 0 and (packed := _packed(header)):
            yield Fault(shard, start, "packed", packed, fatal=True)
            break
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
            size, kind, name = _header(header)
        except ValueError as fault:
            yield Fault(shard, start, "header", str(fault), fatal=True)
            break
        data = stream.read(size)
        stream.read(-size % BLOCK)
        name = (following.name or name).replace("\\", "/")  # as Windows writes it
        if len(data) < size:
            yield Fault(
                shard, start, "truncated", f"member {name!r:.200} has {len(data)} of its {size} bytes", fatal=True
            )
            return
        try:
            if kind in _EXTENSIONS:
                following = following.after(kind, data)
                continue
            if following.size not in (None, size):
                raise ValueError(f"extension header sets 'size' to {following.size}; the header says {size}")
        except ValueError as fault:
            yield Fault(shard, start, "header", str(fault), fatal=True)
            break
        sparse = following.sparse
        following = plain
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        if kind in (b"5", b"V") or (not size and name.endswith("/")):  # folders and an archive's label hold nothing
            continue
        if _is_litter(name):
            yield Fault(shard, start, "litter", f"member {name!r} is what macOS or Windows puts beside files")
            continue
        if refusal := _refusal(name, kind, sparse):
            yield Fault(shard, start, "member", refusal)
            continue
        match = _MEMBER_NAME.fullmatch(name)
        if match is None:
            yield Fault(shard, start, "member", unread(name, read))
            continue
        ext = match[2].lower()
        last = ext.rpartition(".")[2]
        yield Member(match[1], ext, last, start, start + BLOCK, size, data if last in read else b"")
    rest = stream.position
    if stream.drain() and ended:
        detail = "more follows behind the end-of-archive mark (tars that were put together with cat?)"
        yield Fault(shard, rest, "header", detail, fatal=True)


def _header(header: bytes) -> tuple[int, bytes, str]:
    """A member's size, kind and name by its header; ValueError where it is none."""
    magic = header[257:262]
    if magic not in (b"ustar", bytes(5)):  # zeros: a tar of before 1988, which GNU tar still writes if asked
        raise ValueError("no tar header here")
    if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
        raise ValueError("the header's checksum is wrong" if magic == b"ustar" else "no tar header here")
    size, kind = _number(header[124:136]), header[156:157]
    if size > MAX_MEMBER:
        raise ValueError(f"a member of {size} bytes; at most {MAX_MEMBER} are allowed")
    if kind in (b"S", b"M"):
        what = "a sparse file of GNU tar's own format" if kind == b"S" else "the rest of a file from another volume"
        raise ValueError(f"a member is {what}; pack the shard without")
    name = _name(header[:100].split(b"\0")[0])
    prefix = _name(header[345:500].split(b"\0")[0]) if magic == b"ustar" and header[262:263] == b"\0" else ""
    return size, kind, f"{prefix}/{name}" if prefix else name
