"""From shards to the rows of an index: every sample's place, checksums and verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from streamcvit.data import locations, strictjson
from streamcvit.data.images import HEAD, image_fault, sniff
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Picture
from streamcvit.data.shards.groups import MAX_SAMPLE, Group, scan_groups
from streamcvit.data.shards.records import OWN, Records
from streamcvit.data.shards.tar import Fault, HashingStream, Member
from streamcvit.errors import UserError

SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("sample_id", pa.string()),
        ("task", pa.string()),
        ("chunk", pa.int32()),
        ("shard", pa.int32()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("image_ext", pa.string()),
        ("json_crc32", pa.uint32()),
        ("image_crc32", pa.uint32()),
        ("image_fault", pa.string()),
    ]
)
"""One row a picture, in stream order; a sample without pictures has one row, whose `image_ext` is empty. Rows of one
position differ in nothing but their picture. (Flat columns, not lists: of those, few bytes can unpack to gigabytes.)

`image_fault` is empty where the picture decodes. It is tried once, when the shards are indexed: with equal checksums
the verdict holds wherever the stream is read, whichever Pillow is there."""
PICTURE_COLUMNS = ("image_offset", "image_size", "image_ext", "image_crc32", "image_fault")
_NO_PICTURE = {"image_offset": 0, "image_size": 0, "image_ext": "", "image_crc32": 0, "image_fault": ""}


@dataclasses.dataclass
class ShardScan:
    """What a scan of shards found: samples and pictures by column, the shards and their faults.

    Attributes:
        columns: columns of `SCHEMA` but `position` and `chunk`; those of pictures [rows], the others [samples].
        rows: of each sample.
    """

    columns: dict[str, list] = dataclasses.field(default_factory=lambda: {name: [] for name in SCHEMA.names})
    rows: list[int] = dataclasses.field(default_factory=list)
    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    faults: list[Fault] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def broken(self) -> list[tuple[int, str]]:
        """Samples with a picture that does not decode, each with its place and the first fault."""
        ends = np.cumsum(self.rows).tolist()
        faults = self.columns["image_fault"]
        whole = [next(filter(None, faults[end - rows : end]), "") for end, rows in zip(ends, self.rows, strict=True)]
        return [(place, fault) for place, fault in enumerate(whole) if fault]

    def pick(self, places: Sequence[int] | np.ndarray) -> ShardScan:
        """The samples at these places, of the same shards."""
        ends = np.cumsum(self.rows).tolist()
        rows = [row for place in places for row in range(ends[place] - self.rows[place], ends[place])]
        columns = {
            name: [values[place] for place in (rows if name in PICTURE_COLUMNS else places)] if values else []
            for name, values in self.columns.items()
        }
        return ShardScan(columns, [self.rows[place] for place in places], self.shards, self.faults)

    @property
    def one_each(self) -> bool:
        """Whether every sample has exactly one picture."""
        return set(self.rows) <= {1} and "" not in self.columns["image_ext"]

    def table(self, chunks: Sequence[int] | np.ndarray, position: int = 0, shard: int = 0) -> pa.Table:
        """The index table; `chunks` [n] gives each sample's chunk, `position` and `shard` are those of the first."""
        columns = {
            **self.columns,
            "position": np.arange(position, position + len(self)),
            "chunk": np.asarray(chunks, dtype=np.int32),
            "shard": np.asarray(self.columns["shard"], dtype=np.int32) + np.int32(shard),
        }
        arrays = {field.name: pa.array(columns[field.name], field.type) for field in SCHEMA}
        if set(self.rows) - {1}:
            sample = pa.array(np.repeat(np.arange(len(self)), self.rows))
            arrays |= {name: arrays[name].take(sample) for name in SCHEMA.names if name not in PICTURE_COLUMNS}
        return pa.table([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


class Shard(NamedTuple):
    """A shard to scan.

    Attributes:
        name: in the index.
        location: path or URL.
        task: of its records that name none.
        given: the location as a person gave it, for messages.
    """

    name: str
    location: str
    task: str = ""
    given: str = ""


OURS = Records(OWN)


def scan_shards(shards: Iterable[Shard], records: Records = OURS, pictures: Sequence[str] = ()) -> ShardScan:
    """Scan shards in stream order.

    Args:
        records: reads their records.
        pictures: which members are pictures, in their order (see `scan_groups`).

    Raises:
        UserError: one cannot be read (the message gives the byte).
    """
    scan = ShardScan()
    for shard in shards:
        with contextlib.closing(locations.open_binary(shard.location)) as raw:
            stream = HashingStream(raw)
            try:
                for found in scan_groups(stream, shard.name, records.ending, pictures):
                    fault = found if isinstance(found, Fault) else _add_sample(scan, found, shard, records)
                    if fault:
                        scan.faults.append(fault)
            except OSError as error:
                what = f"cannot be read on from byte {stream.position}: {error.strerror or error}"
                raise UserError(what, where=shard.location, fix="Check the disk") from None
            scan.shards.append({"path": shard.name, "bytes": stream.position, "sha256": stream.hexdigest()})
    return scan


def _add_sample(scan: ShardScan, group: Group, shard: Shard, records: Records) -> Fault | None:
    text, count = group.record, len(group.pictures)
    key = f"key {group.key!r:.200}"
    try:
        row = records.read(text.data, shard.task)
        wanted = row.count if row.count is not None else len(row.pictures) or records.pictures
        if fault := _picture_fault(group, wanted):
            return Fault(shard.name, text.header, "incomplete", f"{key} {fault}")
        sample_id, task = row.sample_id or group.key, row.task or shard.task
        # Written again, one of our own is hardly longer (1E5 becomes 100000.0), and nested as deep.
        ours = records.format == OWN and (row.sample_id, row.task) == (sample_id, task)
        if not (ours and text.size <= strictjson.MAX_TEXT // 16):
            records.sample(row, sample_id, task, [Picture(b"")] * count)
    except (ValueError, BadRow) as wrong:
        reason = "json" if records.ending == "json" else "label"
        return Fault(shard.name, text.offset, reason, f"{key}: {wrong}")
    if not task:
        return Fault(shard.name, text.offset, "task", f"{key} names no task")
    if text.size + sum(picture.size for picture in group.pictures) > MAX_SAMPLE:
        return Fault(shard.name, text.header, "incomplete", f"{key} takes more than {MAX_SAMPLE} bytes")
    values = {
        "sample_id": sample_id,
        "task": task,
        "shard": len(scan.shards),
        "json_offset": text.offset,
        "json_size": text.size,
        "json_crc32": zlib.crc32(text.data),
    }
    _append(scan, values)
    for image in group.pictures:
        _append(scan, _picture_row(image))
    if not count:
        _append(scan, _NO_PICTURE)
    scan.rows.append(count or 1)
    return None


def _append(scan: ShardScan, values: dict[str, Any]) -> None:
    for column, value in values.items():
        scan.columns[column].append(value)


def _picture_row(image: Member) -> dict[str, Any]:
    return {
        "image_offset": image.offset,
        "image_size": image.size,
        "image_ext": sniff(image.data[:HEAD]) or image.kind,
        "image_crc32": zlib.crc32(image.data),
        "image_fault": image_fault(image.data),
    }


def _picture_fault(group: Group, wanted: int | None) -> str:
    """Why a record does not get its pictures, which are `wanted` many (None: those that are there); or empty."""
    there = len(group.pictures)
    if wanted is None:
        if group.cut:
            return "may have lost members: right behind it the shard is damaged"
        return f"has no picture that is read; {group.unread}" if group.unread and not there else ""
    if wanted == there:
        return ""
    if not there:
        return f"has no picture{f'; {group.unread}' if group.unread else ''}"
    names = ", ".join([picture.ext for picture in group.pictures[:8]])
    return f"asks for {wanted} picture{'s' if wanted != 1 else ''} and has {there} ({names})"
