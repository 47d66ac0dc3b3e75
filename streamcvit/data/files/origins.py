"""Files of rows that were made of others: beside each lies which row of which file every one of its rows was."""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path

import numpy as np

from streamcvit.errors import UserError

ENDING = ".from"
"""Behind the name of the made file: a line of JSON with the names of the files and the made one's size, then file and
row of each, uint32."""
REFUSED = "!row: "
"""Begins a line of a made file in the place of a row that could not be read; what follows says why."""


class Origins:
    """Where the rows of a made file come from.

    Args:
        path: of the made file.

    Attributes:
        files: that its rows come from.
        size: bytes that it had when it was made.
    """

    def __init__(self, path: Path) -> None:
        where = beside(path)
        try:
            with where.open("rb") as stream:
                head = json.loads(stream.readline())
                self.files: list[str] = head["files"]
                self.size: int = head["bytes"]
                start, size = stream.tell(), os.fstat(stream.fileno()).st_size
            count = (size - start) // 8
            self._rows = np.memmap(where, "<u4", "r", start, (count, 2)) if count else np.zeros((0, 2), "<u4")
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(
                "is damaged", where=str(where), fix="Remove it; rows are then named by the made file"
            ) from None

    def of(self, number: int) -> tuple[str, int]:
        """File and row that a row of the made file was."""
        file, row = self._rows[number].tolist()
        return self.files[file], row


def beside(path: Path) -> Path:
    """Where the origins of a made file lie."""
    return path.with_name(path.name + ENDING)


def origins_of(path: Path) -> Origins | None:
    """Of a file; None where it is nobody's making, or was changed since."""
    found = Origins(path) if beside(path).is_file() else None
    return found if found and found.size == path.stat().st_size else None


class Noting:
    """Notes the origins of a file that is being made."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._rows = array("I")

    def add(self, file: str, row: int) -> None:
        """Note the next row's."""
        self._rows.extend((self._files.setdefault(file, len(self._files)), row))

    def save(self, path: Path) -> None:
        """Write them beside the made file, which is whole by now."""
        with beside(path).open("wb") as out:
            out.write(json.dumps({"files": list(self._files), "bytes": path.stat().st_size}).encode() + b"\n")
            out.write(np.frombuffer(self._rows, np.uint32).astype("<u4").tobytes())
