"""From shards to the rows of an index: every sample's place, checksums and verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from streamcvit.data import locations, strictjson
from streamcvit.data.formats import FORMATS, BadRow
from streamcvit.data.images import image_fault
from streamcvit.data.sample import Picture
from streamcvit.data.tarscan import Fault, Group, HashingStream, scan_groups
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
"""`image_fault` is empty where the picture decodes. It is tried once, when the shards are indexed: with equal checksums
the verdict holds wherever the stream is read, whichever Pillow is there."""


@dataclasses.dataclass
class ShardScan:
    """What a scan of shards found: index rows by column, the shards and their faults."""

    columns: dict[str, list] = dataclasses.field(default_factory=lambda: {name: [] for name in SCHEMA.names})
    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    faults: list[Fault] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.columns["sample_id"])

    def table(self, chunks: Sequence[int] | np.ndarray) -> pa.Table:
        """The index table; `chunks` [n] gives each row's chunk."""
        columns = {**self.columns, "position": np.arange(len(self)), "chunk": np.asarray(chunks, dtype=np.int32)}
        return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def scan_shards(named: Iterable[tuple[str, str]], format: str = "streamcvit", task: str = "") -> ShardScan:
    """Scan shards, given as (name in the index, location), in stream order.

    Raises:
        UserError: one cannot be read (the message gives the byte).
    """
    scan = ShardScan()
    for name, location in named:
        with contextlib.closing(locations.open_binary(location)) as raw:
            stream = HashingStream(raw)
            try:
                for found in scan_groups(stream, name):
                    fault = found if isinstance(found, Fault) else _add_row(scan, found, name, format, task)
                    if fault:
                        scan.faults.append(fault)
            except OSError as error:
                what = f"cannot be read on from byte {stream.position}: {error.strerror or error}"
                raise UserError(what, where=location, fix="Check the disk") from None
            scan.shards.append({"path": name, "bytes": stream.position, "sha256": stream.hexdigest()})
    return scan


def _add_row(scan: ShardScan, group: Group, name: str, format: str, task: str) -> Fault | None:
    text, image = group.members["json"], group.image
    assert image is not None
    try:
        row = FORMATS[format](strictjson.loads(text.data))
        row.sample(row.sample_id or group.key, row.task or task, [Picture(b"")])
    except (ValueError, BadRow) as wrong:
        return Fault(name, text.offset, "json", f"key {group.key!r:.200}: {wrong}")
    if not (row.task or task):
        return Fault(name, text.offset, "json", f"key {group.key!r:.200} names no task")
    values = {
        "sample_id": row.sample_id or group.key,
        "task": row.task or task,
        "shard": len(scan.shards),
        "json_offset": text.offset,
        "json_size": text.size,
        "image_offset": image.offset,
        "image_size": image.size,
        "image_ext": image.ext,
        "json_crc32": zlib.crc32(text.data),
        "image_crc32": zlib.crc32(image.data),
        "image_fault": image_fault(image.data),
    }
    for column, value in values.items():
        scan.columns[column].append(value)
    return None
