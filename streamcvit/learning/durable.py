"""Small files that are there whole or not at all, and what to say when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically and durably; its folder must have one writer."""
    draft = path.with_name(f".{path.name}")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically and durably."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True))


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
