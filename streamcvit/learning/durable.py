"""Small files that are there whole or not at all, and what to say when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from streamcvit.errors import UserError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file gets too big",
}


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: Any) -> Any:
    """A JSON value with None in place of every number that is not finite: JSON has no word for those."""
    if isinstance(value, dict):
        return {key: finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that replaces `path` atomically and durably at the block's end; its folder must have one writer."""
    draft = path.with_name(f".{path.name}")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        draft.unlink(missing_ok=True)  # the disk may be full
        raise
    os.replace(draft, path)
    fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file of UTF-8 text as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Replace a JSON file atomically and durably; without `indent` on one line, which is much quicker if it is long."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=True))


def checksum(value: Any) -> str:
    """SHA-256 of a JSON value, however it is laid out in a file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file as `write_json` does, with its content's checksum in it (`sha256`)."""
    value = json.loads(json.dumps(value))  # as a reader will have it
    write_json(path, {**value, "sha256": checksum(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what was written.
    """
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict) or value.pop("sha256", None) != checksum(value):
        raise ValueError("its checksum differs")
    return value


@contextlib.contextmanager
def room(where: Path) -> Iterator[None]:
    """What is written inside may find the disk full; what was committed before stays whole.

    Args:
        where: the folder to name.

    Raises:
        UserError: in place of the system's error, where that means that there is no room.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = getattr(error, "errno", None)
        # safetensors gives the system's error as text only.
        what = _FULL.get(code) if code else next((_FULL[c] for c in _FULL if f"os error {c})" in str(error)), None)  # type: ignore[arg-type]
        if what is None:
            raise
        name = getattr(error, "filename", None) or where
        raise UserError(f"{what}; the last commit is whole", where=str(name), fix="Make room, then --resume") from None
