"""Samples by position: exact byte ranges, checked before anything looks into them."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamcvit.data import locations
from streamcvit.data.formats import FORMATS, BadRow
from streamcvit.data.images import MAX_PIXELS, image_fault
from streamcvit.data.index import StreamIndex
from streamcvit.data.sample import Quarantined, Sample
from streamcvit.data.tarscan import IMAGE_EXTENSIONS, Fault
from streamcvit.errors import UserError

_GAP = 64 << 10
_SPAN = 8 << 20
_OPEN_FILES = 64
_WAITS = (0.1, 0.5, 2.0)


@dataclass
class _Span:
    """Neighbouring samples of one shard, fetched at once: their positions and bytes [start, stop)."""

    shard: int
    start: int
    stop: int
    places: list[int]


class ShardReader:
    """Reads samples of a stream by position; what the bytes disallow comes back as `Quarantined` at its place.

    Reading is a pure function of (index, position): the same bytes give the same answer. Input and output errors
    are no such answer: they are tried again and then raised. One reader a thread is meant; a pickled reader opens
    its files anew.

    Args:
        index: the stream's, or its test sets'.
        max_pixels: larger pictures are quarantined; the size is read from the header.
        decode: decode every picture again. The index already tells which do not decode, and checksums that the bytes
            are still those.
    """

    def __init__(self, index: StreamIndex, max_pixels: int = MAX_PIXELS, decode: bool = False) -> None:
        self.index, self.max_pixels, self.decode = index, max_pixels, decode
        self._shards = index.shards
        self._parse = FORMATS[index.meta["format"]] if index.meta["format"] != "streamcvit" else None
        self._extensions = index.table["image_ext"].to_pylist()
        self._image_faults = index.table["image_fault"].to_pylist()
        names = ("shard", "json_offset", "json_size", "image_offset", "image_size", "json_crc32", "image_crc32")
        self._columns = {name: index.column(name) for name in names}
        self._files: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return (ShardReader, (self.index, self.max_pixels, self.decode))

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        with self._lock:
            for file in self._files.values():
                _close(file)
            self._files.clear()

    def read(self, positions: Sequence[int]) -> list[Sample | Quarantined]:
        """The samples at these positions, in their order.

        Raises:
            UserError: a shard cannot be read (the message names it).
            IndexError: a position is not in the stream.
        """
        ids = self.index.sample_id_of
        return [
            Quarantined(position, str(ids[position]), found.reason, str(found)) if isinstance(found, Fault) else found
            for position, found in self.examine(positions)
        ]

    def examine(self, positions: Sequence[int]) -> list[tuple[int, Sample | Fault]]:
        """As `read`, but says of a bad sample in which shard and at which byte it is bad."""
        places = [int(position) for position in positions]
        for place in places:
            if not 0 <= place < len(self.index):
                raise IndexError(f"position {place} is not in a stream of {len(self.index)} samples")
        found: list[tuple[int, Sample | Fault]] = []
        for span in self._spans(places):
            data = memoryview(self._fetch(span.shard, span.start, span.stop - span.start))
            found.extend((place, self._sample(place, data, span.start)) for place in span.places)
        return found

    def _bounds(self, position: int) -> tuple[int, int]:
        columns = self._columns
        text, image = int(columns["json_offset"][position]), int(columns["image_offset"][position])
        ends = text + int(columns["json_size"][position]), image + int(columns["image_size"][position])
        return min(text, image), max(ends)

    def _spans(self, places: Sequence[int]) -> Iterator[_Span]:
        span: _Span | None = None
        for place in places:
            shard, (start, stop) = int(self._columns["shard"][place]), self._bounds(place)
            near = span and span.shard == shard and span.stop <= start <= span.stop + _GAP
            if span and near and stop - span.start <= _SPAN:
                span.stop = stop
                span.places.append(place)
                continue
            if span:
                yield span
            span = _Span(shard, start, stop, [place])
        if span:
            yield span

    def _sample(self, position: int, data: memoryview, base: int) -> Sample | Fault:
        columns = self._columns
        shard = self.index.meta["shards"][int(columns["shard"][position])]["path"]
        parts = []
        for name in ("json", "image"):
            start, size = int(columns[f"{name}_offset"][position]), int(columns[f"{name}_size"][position])
            part = bytes(data[start - base : start - base + size])
            if len(part) < size:
                return Fault(shard, start, "truncated", f"the shard ends within the {name}")
            if zlib.crc32(part) != columns[f"{name}_crc32"][position]:
                return Fault(shard, start, "checksum", f"the {name} is not what was indexed")
            parts.append(part)
        text, image = parts
        ext = self._extensions[position]
        start = int(columns["image_offset"][position])
        if ext not in IMAGE_EXTENSIONS:
            return Fault(shard, start, "image", f"a picture of type {ext!r}")
        if fault := self._image_faults[position] or image_fault(image, self.max_pixels, self.decode):
            return Fault(shard, start, "image", fault)
        try:
            return self._read_text(text, position, image, "jpg" if ext == "jpeg" else ext)
        except (ValueError, RecursionError, BadRow) as bad:
            return Fault(shard, int(columns["json_offset"][position]), "json", str(bad))

    def _read_text(self, text: bytes, position: int, image: bytes, ext: str) -> Sample:
        sample_id = str(self.index.sample_id_of[position])
        if self._parse is None:
            sample = Sample.from_bytes(text, image, ext)
            return sample if sample.sample_id == sample_id else replace(sample, sample_id=sample_id)
        record = self._parse(json.loads(text.decode()))
        task = str(self.index.task_of[position])
        return Sample(sample_id, task, *record.parts(), record.answers, image, ext, record.meta)

    def _fetch(self, shard: int, offset: int, size: int) -> bytes:
        for wait in (*_WAITS, None):
            try:
                return self._fetch_once(shard, offset, size)
            except FileNotFoundError:
                raise UserError(
                    "the shard is gone", where=self._shards[shard], fix="Bring it back, or write the stream again"
                ) from None
            except OSError as fault:
                self.close()
                if wait is None:
                    raise UserError(
                        f"the shard cannot be read: {fault}", where=self._shards[shard], fix="Check disk and network"
                    ) from None
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _fetch_once(self, shard: int, offset: int, size: int) -> bytes:
        # Under the lock no other thread can close the file that is being read.
        with self._lock:
            file = self._file(shard)
            if isinstance(file, int):
                parts = []
                while size > 0 and (part := os.pread(file, size, offset)):
                    parts.append(part)
                    offset, size = offset + len(part), size - len(part)
                return parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            return file.fs.cat_file(file.path, start=offset, end=offset + size)
        except OSError:
            raise
        except Exception as fault:  # each protocol's client has its own errors; none says anything of the bytes
            raise OSError(f"{type(fault).__name__}: {fault}") from fault

    def _file(self, shard: int) -> Any:
        if shard not in self._files:
            if len(self._files) >= _OPEN_FILES:
                _close(self._files.pop(next(iter(self._files))))  # the one opened first: streams are read onwards
            self._files[shard] = _open(self._shards[shard])
        return self._files[shard]


def _open(location: str) -> Any:
    if not locations.is_url(location):
        return os.open(location, os.O_RDONLY | os.O_CLOEXEC)
    import fsspec

    return fsspec.open(location, "rb")


def _close(file: Any) -> None:
    with contextlib.suppress(OSError):
        os.close(file) if isinstance(file, int) else file.close()
