"""Where a stream that goes on comes from. A source of one's own is one file that does what `Source` says, and one line
here."""

from __future__ import annotations

from collections.abc import Callable

from streamcvit.data.sources.base import INDEXED, Look, Source
from streamcvit.data.sources.folder import FolderSource

SOURCES: dict[str, Callable[[str], Source]] = {"folder": FolderSource}
"""Name of a source -> what makes it of an address (`stream.data`)."""

__all__ = ["INDEXED", "SOURCES", "FolderSource", "Look", "Source"]
