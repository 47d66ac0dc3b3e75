"""Rows of task files, one at a time, whatever kind of file they lie in; the kind is told by the file.

JSON (a list of rows), JSON lines, CSV, Parquet, Arrow; a folder of Parquet or Arrow files (as Hugging Face `datasets`
saves one), or a pattern (`train-*.parquet`). All are read row by row, so memory does not grow with the file.
"""

from __future__ import annotations

import csv
import difflib
import errno
import io
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from streamcvit.data import strictjson
from streamcvit.data.files import tables
from streamcvit.data.files.origins import REFUSED
from streamcvit.data.locations import open_regular
from streamcvit.errors import UserError

MAX_FILE = 2 << 30
"""Bytes of a JSON list (LLaVA's mix of 665,000 rows has half of it), or of a file of annotations."""
MAX_LINE = 4 * strictjson.MAX_TEXT
"""Bytes of a line of JSON lines."""

_REFUSED = REFUSED.encode()
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_PACKED = {b"\x1f\x8b": "packed with gzip", b"PK\x03\x04": "a ZIP archive or an Excel workbook", b"BZh": "packed"}
_PART_OF = re.compile(r"[^0-9]*")  # train-00000-of-00005, part-0-c000, 0000
_READ = "JSON, JSON lines, CSV, Parquet, and folders that `datasets` saved, are read"


def rows_of(path: Path) -> Iterator[tuple[Path, int, Any]]:
    """(file, number in it, row); a row that is no sound one comes as the ValueError that says so.

    Raises:
        UserError: nothing is there, or it is none of the kinds that are read (rows before the fault have been given).
    """
    for file in files_of(path):
        for number, row in enumerate(_rows_of_file(file)):
            yield file, number, row


def files_of(path: Path) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, in order.

    Raises:
        UserError: nothing is there, or the folder holds several splits, of which one must be named.
    """
    if "\0" in str(path):
        raise UserError("no path holds a NUL character", where=str(path).replace("\0", "?"))
    if "*" in path.name and not os.path.exists(path):
        named = sorted(one for one in path.parent.glob("*") if fnmatchcase(one.name, path.name))
        if not named:
            raise _absent(path)
        return named
    if not os.path.isdir(path):
        return [path]
    if files := tables.files_in(path):
        names = sorted({_PART_OF.match(file.stem)[0] for file in files})  # type: ignore[index]
        if len(names) > 1:  # train and test must not be read as one
            fix = f"Name one: {path / names[0]}*{files[0].suffix}"
            raise UserError(f"holds files of several sets: {', '.join(names)}", where=str(path), fix=fix)
        return files
    if inner := sorted(one.name for one in path.iterdir() if one.is_dir() and tables.files_in(one)):
        fix = f"Name one: {path / inner[0]}"
        raise UserError(f"holds the sets {', '.join(inner)}", where=str(path), fix=fix)
    raise UserError("is a folder without Parquet or Arrow files", where=str(path), fix="Name a file of rows")


def _rows_of_file(path: Path) -> Iterator[Any]:
    try:
        with os.fdopen(open_regular(path), "rb") as stream:
            kind = _kind(stream, path)
            if kind == "table":
                yield from tables.table_rows(stream, path)
            elif kind == "csv":
                yield from _csv_rows(stream, path)
            elif kind == "lines":
                yield from _line_rows(stream)
            else:
                yield from _list_rows(stream, path)
    except FileNotFoundError:
        raise _absent(path) from None
    except OSError as fault:
        raise UserError(f"cannot be read: {fault.strerror or fault}", where=str(path), fix="Check the path") from None
    except UnicodeDecodeError as fault:
        raise UserError(f"is not UTF-8: {fault}", where=str(path), fix="Convert the file to UTF-8") from None


def _kind(stream: BinaryIO, path: Path) -> str:
    """`table`, `csv`, `lines` or `list`; the stream then stands behind the byte order mark, if there is one."""
    head = stream.read(4096)
    if tables.is_table(head):
        stream.seek(0)
        return "table"
    for magic, what in _PACKED.items():
        if head.startswith(magic):
            raise UserError(f"is {what}", where=str(path), fix=f"Unpack or export it; {_READ}")
    if head.startswith(_UTF16) or (b"\0" in head[:4] and head.strip(b"\0")):
        raise UserError("is UTF-16, not UTF-8", where=str(path), fix="Convert the file to UTF-8")
    stream.seek(len(_BOM) if head.startswith(_BOM) else 0)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "csv"
    start = head.removeprefix(_BOM).lstrip()[:1]
    if start == b"[":
        return "list"
    return "lines" if suffix in (".jsonl", ".ndjson") or (start == b"{" and _has_lines(stream)) else "list"


def _has_lines(stream: BinaryIO) -> bool:
    """Whether what begins with `{` is JSON lines, whatever it is called: the first line is whole, others follow."""
    place = stream.tell()
    whole = stream.readline(MAX_LINE).rstrip().endswith(b"}")
    more = bool(stream.read(64).strip())
    stream.seek(place)
    return whole and more


def _list_rows(stream: BinaryIO, path: Path) -> Iterator[Any]:
    if (size := os.fstat(stream.fileno()).st_size) > MAX_FILE:
        fix = "Split the file, or write JSON lines, which may have any length"
        raise UserError(f"{size} bytes; at most {MAX_FILE} are read", where=str(path), fix=fix)
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    try:
        yield from strictjson.read_rows(text.read)
    except UnicodeDecodeError:
        raise
    except ValueError as fault:
        fix = f"Fetch the file again, or name it after its kind (*.jsonl, *.csv); {_READ}"
        raise UserError(f"is no JSON list of rows: {fault}", where=str(path), fix=fix) from None


def _line_rows(stream: BinaryIO) -> Iterator[Any]:
    while line := stream.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while (part := stream.readline(1 << 20)) and not part.endswith(b"\n"):
                pass
            yield ValueError(f"a line of more than {MAX_LINE} bytes")
        elif line.strip():
            try:
                if line.startswith(_REFUSED):
                    raise ValueError(strictjson.loads(line.removeprefix(_REFUSED)))
                yield strictjson.loads(line)
            except ValueError as fault:
                yield fault


def _csv_rows(stream: BinaryIO, path: Path) -> Iterator[Any]:
    """Each row as {column: text}, without its empty cells."""
    csv.field_size_limit(strictjson.MAX_TEXT)
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    head = text.readline(1 << 16)
    delimiter = max(",;\t", key=head.count)
    try:
        columns = [name.strip() for name in next(csv.reader([head], delimiter=delimiter, strict=True), [])]
        if not all(columns) or len(set(columns)) < len(columns):
            fix = "Name every column once in the first line, e.g. image,question,answer"
            raise UserError(f"its first line names the columns {columns!r:.200}", where=str(path), fix=fix)
        for row in csv.reader(text, delimiter=delimiter, strict=True):
            if len(row) == len(columns):
                yield {name: cell for name, cell in zip(columns, row, strict=True) if cell.strip()}
            elif row:
                yield ValueError(f"{len(row)} cells; the first line names {len(columns)} columns")
    except csv.Error as fault:
        raise UserError(f"is no CSV: {fault}", where=str(path), fix="Mend the quotes, or export it again") from None


def _absent(path: Path) -> UserError:
    """Says which part of a path is missing, and what lies there that is called alike."""
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    fix = "Check the path"
    try:
        there = sorted(one.name for one in missing.parent.iterdir())
    except OSError as fault:
        return UserError(f"cannot be read: {fault.strerror}", where=str(path), fix=fix)
    if alike := difflib.get_close_matches(missing.name, there, 3):
        fix = f"In {missing.parent} there is {', '.join(alike)}"
    what = os.strerror(errno.ENOENT) if missing == path else f"there is no {missing}"
    return UserError(f"cannot be read: {what}", where=str(path), fix=fix)
