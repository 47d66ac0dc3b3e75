"""Rows of Parquet and Arrow files, as Hugging Face `datasets` writes them too; read with pyarrow alone, in small parts.

Nothing is unpickled: extension types come as what they are stored as. What JSON has no word for becomes
text (dates, decimals), binary values excepted; NaN and null count as absent.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from streamcvit.data.strictjson import MAX_DEPTH
from streamcvit.errors import UserError

PART = 4 << 20
"""Bytes of rows that are taken apart at once, about."""
_BUFFER = 1 << 20
_STREAM = b"\xff\xff\xff\xff"
_DAMAGE = (
    pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, AttributeError
)  # fmt: skip


def is_table(head: bytes) -> bool:
    """Whether a file that begins so is Parquet or Arrow."""
    return head.startswith((b"PAR1", b"ARROW1", _STREAM))


def files_in(folder: Path) -> list[Path]:
    """The Arrow or Parquet files of a folder in order, those it keeps as a cache left out.

    A folder that `datasets` saved names its files in `state.json`.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [Path(one["filename"]).name for one in state["_data_files"]]
    except (OSError, ValueError, TypeError, LookupError):
        names = []
    files = [folder / name for name in names] or [
        one for one in sorted(folder.glob("*.arrow")) if not one.name.startswith("cache-")
    ]
    return files or sorted(folder.glob("*.parquet"))


def table_rows(stream: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    """Each row as {column: value}, its pictures as bytes.

    Raises:
        UserError: the file is damaged.
    """
    try:
        for batch in _batches(_File(stream.fileno(), closefd=False)):
            batch.validate(full=True)  # first of all: a forged offset must not lead out of the file's own buffers
            step = _step(batch.nbytes, batch.num_rows)
            for start in range(0, batch.num_rows, step):
                for row in batch.slice(start, step).to_pylist():
                    yield {name: value for name, one in row.items() if (value := _value(one)) is not None}
    except MemoryError:
        raise
    except _DAMAGE as fault:
        if isinstance(fault, OSError) and fault.errno:
            raise  # says something of the disk, not of the file
        what = " ".join(str(fault).split())
        raise UserError(f"is damaged: {what:.300}", where=str(path), fix="Fetch the file again") from None


class _File(io.FileIO):
    """A file that sets no more memory aside for a read than it has bytes left, whatever it says it holds."""

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left)) or b""


def _batches(file: _File) -> Iterator[pa.RecordBatch]:
    head = file.read(8)
    file.seek(0)
    if head.startswith(b"PAR1"):
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            yield from parquet.iter_batches(_step(group.total_byte_size, group.num_rows), [number], use_threads=False)
    elif head.startswith(b"ARROW1"):
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from pa.ipc.open_stream(file)


def _step(size: int, rows: int) -> int:
    """How many of `rows` rows of `size` bytes make a part."""
    return max(1, min(1024, PART * rows // max(size, 1)))


def _value(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it, pictures (bytes) excepted; None: it counts as absent."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {str(key): one for key, inner in value.items() if (one := _value(inner, depth + 1)) is not None}
    if isinstance(value, list | tuple):
        return [_value(inner, depth + 1) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bytes) else str(value)
