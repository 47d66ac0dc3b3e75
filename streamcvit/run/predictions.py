"""Files of predictions: written whole, and never read as anything but what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamcvit.learning.durable import checksum, replacing

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prediction", pa.string()),
        ("reference", pa.string()),
        ("score", pa.float64()),
        ("score_strcvit", pa.float64()),
        ("follows", pa.bool_()),
        ("follows_strcvit", pa.bool_()),
        ("instruction", pa.string()),
    ]
)

LATER = ("follows_strcvit", "instruction")
"""Columns that a file has only where they hold something; older files have none."""


def write_predictions(path: Path, columns: dict[str, Any], meta: dict[str, Any]) -> pa.Table:
    """Put a task's predictions at a boundary on disk, durably; the folder must have one writer.

    Args:
        path: the file; its folder is created if absent.
        columns: of `SCHEMA`.
        meta: JSON values: of which chunk, task and weights.

    Returns:
        The table as `read_predictions` gives it.
    """
    names = [name for name in SCHEMA.names if name not in LATER or columns.get(name, [None])[0] is not None]
    table = pa.table({name: columns[name] for name in names}, schema=pa.schema([SCHEMA.field(name) for name in names]))
    # Parquet's own checksums cover its pages only, not what says how to read them.
    sealed = {**meta, "sha256": checksum([meta, table.to_pydict()])}
    table = table.replace_schema_metadata({"streamcvit": json.dumps(sealed)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, table)
    return table


def write_table(path: Path, table: pa.Table) -> None:
    """Replace a Parquet file atomically and durably; its folder must have one writer."""
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_predictions(path: Path) -> pa.Table:
    """A file's table, with `meta` as JSON in its metadata under `streamcvit`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        meta = json.loads(table.schema.metadata[b"streamcvit"])
        whole = meta.pop("sha256") == checksum([meta, table.to_pydict()])
    except (OSError, pa.ArrowException, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    if not whole:
        raise ValueError("its checksum differs")
    return table
