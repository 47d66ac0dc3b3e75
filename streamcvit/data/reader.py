"""Samples by position: exact byte ranges, checked before anything looks into them."""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamcvit.data import strictjson
from streamcvit.data.formats import FORMATS, BadRow
from streamcvit.data.images import MAX_PIXELS, image_fault
from streamcvit.data.index import StreamIndex
from streamcvit.data.locations import ByteSource
from streamcvit.data.sample import Picture, Quarantined, Sample
from streamcvit.data.tarscan import IMAGE_EXTENSIONS, Fault

_GAP = 64 << 10
_SPAN = 8 << 20
_OPEN_FILES = 4


class _Part(NamedTuple):
    """A sample's `json` or `image`: bytes [start, stop) of a shard."""

    shard: int
    start: int
    stop: int
    place: int
    name: str
    crc32: int


@dataclass
class _Span:
    """Neighbouring members of one shard, fetched at once: bytes [start, stop) and what they hold."""

    shard: int
    start: int
    stop: int
    parts: list[_Part]


class ShardReader:
    """Reads samples of a stream by position; what the bytes disallow comes back as `Quarantined` at its place.

    Reading is a pure function of (index, position): the same bytes give the same answer. Input and output errors
    are no such answer: they are tried again and then raised. From a URL, bytes that are not the indexed ones count as
    such an error, as they may have been changed on the way; only a local file can lose a sample by its checksum. One
    reader a thread is meant; a pickled reader opens its files anew.

    Args:
        index: the stream's, or its test sets'.
        max_pixels: larger pictures are quarantined; the size is read from the header.
        decode: decode every picture again. The index already tells which do not decode, and checksums that the bytes
            are still those.
    """

    def __init__(self, index: StreamIndex, max_pixels: int = MAX_PIXELS, decode: bool = False) -> None:
        self.index, self.max_pixels, self.decode = index, max_pixels, decode
        self._shards = index.shards
        self._parse, self._own = FORMATS[index.meta["format"]], index.meta["format"] == "streamcvit"
        self._extensions = index.table["image_ext"].to_pylist()
        self._image_faults = index.table["image_fault"].to_pylist()
        names = ("shard", "json_offset", "json_size", "image_offset", "image_size", "json_crc32", "image_crc32")
        self._columns = {name: index.column(name) for name in names}
        self._sources: dict[int, ByteSource] = {}
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
            for source in self._sources.values():
                source.close()
            self._sources.clear()

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
        parts: dict[tuple[int, str], bytes | Fault] = {}
        for span in self._spans(places):
            source = self._source(span.shard)
            sound = functools.partial(self._is_sound, span)
            data = memoryview(source.read(span.start, span.stop - span.start, sound))
            for part in span.parts:
                parts[part.place, part.name] = self._cut(part, data, span.start)
        return [(place, self._sample(place, parts[place, "json"], parts[place, "image"])) for place in places]

    def _spans(self, places: Sequence[int]) -> Iterator[_Span]:
        rows = np.unique(np.array(places, dtype=np.int64))
        wanted: list[_Part] = []
        for name in ("json", "image"):
            start, size = self._columns[f"{name}_offset"][rows], self._columns[f"{name}_size"][rows]
            columns = (self._columns["shard"][rows], start, start + size, rows, self._columns[f"{name}_crc32"][rows])
            shards, starts, stops, positions, checksums = (column.tolist() for column in columns)
            names = [name] * len(rows)
            wanted += map(_Part, shards, starts, stops, positions, names, checksums)
        span: _Span | None = None
        for part in sorted(wanted):
            near = span is not None and span.shard == part.shard and part.start <= span.stop + _GAP
            if span is not None and near and part.stop - span.start <= _SPAN:
                span.stop = max(span.stop, part.stop)
                span.parts.append(part)
                continue
            if span:
                yield span
            span = _Span(part.shard, part.start, part.stop, [part])
        if span:
            yield span

    def _is_sound(self, span: _Span, data: bytes) -> bool:
        view = memoryview(data)
        return not any(isinstance(self._cut(part, view, span.start), Fault) for part in span.parts)

    def _cut(self, part: _Part, data: memoryview, base: int) -> bytes | Fault:
        found = bytes(data[part.start - base : part.stop - base])
        if len(found) < part.stop - part.start:
            detail = f"the shard ends within the {part.name}"
            return Fault(self._shard_name(part.place), part.start, "truncated", detail)
        if zlib.crc32(found) != part.crc32:
            detail = f"the {part.name} is not what was indexed"
            return Fault(self._shard_name(part.place), part.start, "checksum", detail)
        return found

    def _shard_name(self, place: int) -> str:
        return self.index.meta["shards"][int(self._columns["shard"][place])]["path"]

    def _sample(self, position: int, text: bytes | Fault, image: bytes | Fault) -> Sample | Fault:
        for part in (text, image):
            if isinstance(part, Fault):
                return part
        assert isinstance(text, bytes) and isinstance(image, bytes)
        shard = self._shard_name(position)
        ext = self._extensions[position]
        start = int(self._columns["image_offset"][position])
        if ext not in IMAGE_EXTENSIONS:
            return Fault(shard, start, "image", f"a picture of type {ext!r}")
        if fault := self._image_faults[position] or image_fault(image, self.max_pixels, self.decode):
            return Fault(shard, start, "image", fault)
        try:
            return self._read_text(text, position, image, "jpg" if ext == "jpeg" else ext)
        except (ValueError, BadRow) as bad:
            return Fault(shard, int(self._columns["json_offset"][position]), "json", str(bad))

    def _read_text(self, text: bytes, position: int, image: bytes, ext: str) -> Sample:
        sample_id, task = str(self.index.sample_id_of[position]), str(self.index.task_of[position])
        record = self._parse(strictjson.loads(text))
        if self._own and record.task != task:
            raise BadRow("json", f"the record is of task {record.task!r:.80}, its place in the index of {task!r:.80}")
        return record.sample(sample_id, task, [Picture(image, ext)])

    def _source(self, shard: int) -> ByteSource:
        with self._lock:
            if shard not in self._sources:
                if len(self._sources) >= _OPEN_FILES:  # the one opened first goes: streams are read onwards
                    self._sources.pop(next(iter(self._sources))).close()
                self._sources[shard] = ByteSource(self._shards[shard])
            return self._sources[shard]
