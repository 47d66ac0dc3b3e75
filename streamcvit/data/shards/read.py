"""Samples by position: exact byte ranges, checked before anything looks into them."""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamcvit.data.images import EXTENSIONS, MAX_PIXELS, image_fault
from streamcvit.data.locations import ByteSource
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Picture, Quarantined, Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.tar import Fault

_GAP = 64 << 10
_SPAN = 8 << 20
_OPEN_FILES = 4
_KINDS = {ending: kind for kind, endings in EXTENSIONS.items() for ending in endings}


class _Part(NamedTuple):
    """Of the sample at `place` the record (`row` is -1) or the picture of a row: bytes [start, stop) of a shard."""

    shard: int
    start: int
    stop: int
    place: int
    row: int
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
        self._records = index.records()
        self._extensions, self._image_faults = index.texts("image_ext"), index.texts("image_fault")
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
        parts: dict[tuple[int, int], bytes | Fault] = {}
        for span in self._spans(places):
            source = self._source(span.shard)
            sound = functools.partial(self._is_sound, span)
            data = memoryview(source.read(span.start, span.stop - span.start, sound))
            for part in span.parts:
                parts[part.place, part.row] = self._cut(part, data, span.start)
        return [(place, self._sample(place, [parts[place, row] for row in self._rows(place)])) for place in places]

    def _rows(self, place: int) -> Sequence[int]:
        """Of its record (-1) and its pictures."""
        first = int(self.index.first_row[place])
        return [-1, *range(first, first + int(self.index.pictures_of[place]))]

    def _spans(self, places: Sequence[int]) -> Iterator[_Span]:
        rows = np.unique(np.array(places, dtype=np.int64))
        first, count = self.index.first_row[rows], self.index.pictures_of[rows]
        before = np.cumsum(count) - count
        pictures = np.arange(count.sum()) + np.repeat(first - before, count)
        wanted = self._parts(rows, np.full(len(rows), -1), "json", rows)
        wanted += self._parts(np.repeat(rows, count), pictures, "image", pictures)
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

    def _parts(self, places: np.ndarray, rows: np.ndarray, kind: str, at: np.ndarray) -> list[_Part]:
        start, size = self._columns[f"{kind}_offset"][at], self._columns[f"{kind}_size"][at]
        columns = (
            self._columns["shard"][places],
            start,
            start + size,
            places,
            rows,
            self._columns[f"{kind}_crc32"][at],
        )
        return list(map(_Part, *(column.tolist() for column in columns)))

    def _is_sound(self, span: _Span, data: bytes) -> bool:
        view = memoryview(data)
        return not any(isinstance(self._cut(part, view, span.start), Fault) for part in span.parts)

    def _cut(self, part: _Part, data: memoryview, base: int) -> bytes | Fault:
        found = bytes(data[part.start - base : part.stop - base])
        if len(found) < part.stop - part.start:
            return self._fault(part.place, part.row, "truncated", f"the shard ends within {self._called(part)}")
        if zlib.crc32(found) != part.crc32:
            return self._fault(part.place, part.row, "checksum", f"{self._called(part)} is not what was indexed")
        return found

    def _called(self, part: _Part) -> str:
        if part.row < 0:
            return "the record"
        count, first = int(self.index.pictures_of[part.place]), int(self.index.first_row[part.place])
        return "the picture" if count == 1 else f"picture {part.row - first + 1} of {count}"

    def _fault(self, place: int, row: int, reason: str, detail: str) -> Fault:
        offset = self._columns["json_offset"][place] if row < 0 else self._columns["image_offset"][row]
        return Fault(self._shard_name(place), int(offset), reason, detail)

    def _shard_name(self, place: int) -> str:
        return self.index.meta["shards"][int(self._columns["shard"][place])]["path"]

    def _sample(self, position: int, parts: Sequence[bytes | Fault]) -> Sample | Fault:
        text, *images = parts
        for part in parts:
            if isinstance(part, Fault):
                return part
        pictures = []
        for row, image in enumerate(images, int(self.index.first_row[position])):
            assert isinstance(image, bytes)
            ext = _KINDS.get(self._extensions[row])
            fault = self._image_faults[row] or image_fault(image, self.max_pixels, self.decode)
            if fault or ext is None:
                return self._fault(position, row, "image", fault or f"a picture of type {self._extensions[row]!r}")
            pictures.append(Picture(image, ext))
        assert isinstance(text, bytes)
        try:
            sample_id, task = str(self.index.sample_id_of[position]), str(self.index.task_of[position])
            return self._records.find(text, sample_id, task, pictures)
        except (ValueError, BadRow) as bad:
            return self._fault(position, -1, "json", str(bad))

    def _source(self, shard: int) -> ByteSource:
        with self._lock:
            if shard not in self._sources:
                if len(self._sources) >= _OPEN_FILES:  # the one opened first goes: streams are read onwards
                    self._sources.pop(next(iter(self._sources))).close()
                self._sources[shard] = ByteSource(self._shards[shard])
            return self._sources[shard]
