"""Samples by position: exact byte ranges, checked before anything looks into them."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from streamcvit.data import locations
from streamcvit.data.formats import FORMATS, BadRow
from streamcvit.data.images import MAX_PIXELS, image_fault
from streamcvit.data.index import StreamIndex
from streamcvit.data.sample import Quarantined, Sample
from streamcvit.data.tarscan import IMAGE_EXTENSIONS
from streamcvit.errors import UserError

_GAP = 64 << 10
_SPAN = 8 << 20
_WAITS = (0.1, 0.5, 2.0)


@dataclass
class _Span:
    """Neighbouring samples of one shard, fetched at once: rows of the request and bytes [start, stop)."""

    shard: int
    start: int
    stop: int
    rows: list[int]


class ShardReader:
    """Reads samples of a stream by position; what the bytes disallow comes back as `Quarantined` at its place.

    Reading is a pure function of (index, position): the same bytes give the same answer. Input and output errors
    are no such answer: they are tried again and then raised. One reader a thread is meant; a pickled reader opens
    its files anew.

    Args:
        index: the stream's, or its test sets'.
        max_pixels: larger pictures are quarantined before they are decoded.
        decode: also decode every picture once here, so that a damaged one is quarantined and not met later.
    """

    def __init__(self, index: StreamIndex, max_pixels: int = MAX_PIXELS, decode: bool = True) -> None:
        self.index, self.max_pixels, self.decode = index, max_pixels, decode
        self._shards = index.shards
        self._parse = FORMATS[index.meta["format"]] if index.meta["format"] != "streamcvit" else None
        self._extensions = index.table["image_ext"].to_pylist()
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
                with contextlib.suppress(OSError):
                    os.close(file) if isinstance(file, int) else file.close()
            self._files.clear()

    def read(self, positions: Sequence[int]) -> list[Sample | Quarantined]:
        """The samples at these positions, in their order.

        Raises:
            UserError: a shard cannot be read (the message names it).
            IndexError: a position is not in the stream.
        """
        places = [int(position) for position in positions]
        for place in places:
            if not 0 <= place < len(self.index):
                raise IndexError(f"position {place} is not in a stream of {len(self.index)} samples")
        found: list[Sample | Quarantined | None] = [None] * len(places)
        for span in self._spans(places):
            data = memoryview(self._fetch(span.shard, span.start, span.stop - span.start))
            for row in span.rows:
                found[row] = self._sample(places[row], data, span.start)
        return [sample for sample in found if sample is not None]

    def _bounds(self, position: int) -> tuple[int, int]:
        columns = self._columns
        text, image = int(columns["json_offset"][position]), int(columns["image_offset"][position])
        ends = text + int(columns["json_size"][position]), image + int(columns["image_size"][position])
        return min(text, image), max(ends)

    def _spans(self, places: Sequence[int]) -> Iterator[_Span]:
        span: _Span | None = None
        for row, place in enumerate(places):
            shard, (start, stop) = int(self._columns["shard"][place]), self._bounds(place)
            near = span and span.shard == shard and span.stop <= start <= span.stop + _GAP
            if span and near and stop - span.start <= _SPAN:
                span.stop = stop
                span.rows.append(row)
                continue
            if span:
                yield span
            span = _Span(shard, start, stop, [row])
        if span:
            yield span

    def _sample(self, position: int, data: memoryview, base: int) -> Sample | Quarantined:
        columns, sample_id = self._columns, str(self.index.sample_id_of[position])
        where = self.index.meta["shards"][int(columns["shard"][position])]["path"]

        def cut(name: str) -> bytes:
            start = int(columns[f"{name}_offset"][position])
            part = bytes(data[start - base : start - base + int(columns[f"{name}_size"][position])])
            if len(part) < columns[f"{name}_size"][position]:
                raise BadRow("truncated", f"{where}: byte {start}: the shard ends within the {name}")
            if zlib.crc32(part) != columns[f"{name}_crc32"][position]:
                raise BadRow("checksum", f"{where}: byte {start}: the {name} is not what was indexed")
            return part

        try:
            text, image = cut("json"), cut("image")
            ext = self._extensions[position]
            if ext not in IMAGE_EXTENSIONS:
                raise BadRow("image", f"{where}: a picture of type {ext!r}")
            sample = self._read_text(text, position, image, "jpg" if ext == "jpeg" else ext)
            if fault := image_fault(image, self.max_pixels, self.decode):
                raise BadRow("image", f"{where}: byte {int(columns['image_offset'][position])}: {fault}")
        except BadRow as fault:
            return Quarantined(position, sample_id, fault.reason, str(fault))
        except (ValueError, RecursionError) as fault:
            place = int(columns["json_offset"][position])
            return Quarantined(position, sample_id, "json", f"{where}: byte {place}: {fault}")
        return sample

    def _read_text(self, text: bytes, position: int, image: bytes, ext: str) -> Sample:
        if self._parse is None:
            return Sample.from_bytes(text, image, ext)
        record = self._parse(json.loads(text.decode()))
        task, sample_id = str(self.index.task_of[position]), str(self.index.sample_id_of[position])
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
        location = self._shards[shard]
        with self._lock:
            if shard not in self._files:
                self._files[shard] = _open(location)
            file = self._files[shard]
        if not isinstance(file, int):
            return file.fs.cat_file(file.path, start=offset, end=offset + size)
        parts = []
        while size > 0 and (part := os.pread(file, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _open(location: str) -> Any:
    if not locations.is_url(location):
        return os.open(location, os.O_RDONLY | os.O_CLOEXEC)
    import fsspec

    return fsspec.open(location, "rb")
