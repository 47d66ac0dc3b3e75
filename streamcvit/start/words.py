"""What `streamcvit init` says."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from streamcvit.start import Start

SHOWN = 20
"""Lines of what is odd, and of what was passed over."""


def said(start: Start) -> Iterator[str]:
    """Lines for a person: what was found, what is odd, what was written, and what to do next."""
    yield from found_lines(start)
    yield "\nWritten:"
    yield from (f"  {_near(file)}" for file in start.written[:SHOWN])
    if len(start.written) > SHOWN:
        yield f"  and {len(start.written) - SHOWN} more files of rows"
    name = shlex.quote(_near(start.pipeline))
    yield f"\nNext:\n  streamcvit check {name}\n  streamcvit run {name}"


def found_lines(start: Start) -> Iterator[str]:
    """Lines for a person: what was found, and what is odd."""
    widths = [max(map(len, column)) for column in zip(*start.table, strict=True)]
    for row in start.table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for title, lines in (("Odd", start.odd), ("Not used", _by_reason(start.unused))):
        if lines:
            yield f"\n{title}:"
            yield from (f"  {' '.join(line.split()):.500}" for line in lines[:SHOWN])
            if len(lines) > SHOWN:
                yield f"  and {len(lines) - SHOWN} more"


def _by_reason(unused: list[tuple[str, str]]) -> list[str]:
    """A line a reason, with the first three names."""
    names: dict[str, list[str]] = {}
    for name, why in unused:
        names.setdefault(why, []).append(name)
    return [
        f"{', '.join(of[:3])}{f' and {len(of) - 3} more' if len(of) > 3 else ''}: {why}" for why, of in names.items()
    ]


def _near(path: Path) -> str:
    """The path from where the person is, if it is beneath."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
