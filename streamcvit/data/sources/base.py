"""What a source of arriving shards does: it says what is complete, and has a shard lie where it can be read."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

INDEXED = ".parquet"
"""Behind a shard's name: the index beside it."""


@dataclass(frozen=True)
class Look:
    """What a source has that was not taken.

    Attributes:
        shards: names of complete shards, in the order of their arrival as far as the source knows one. Complete means
            that their bytes change no more.
        manifests: the texts of manifests of tasks, by name.
        waiting: names of shards that are there and not complete.
        ended: whether whoever writes the stream has said that nothing follows.
        stamps: by name of a shard or manifest, what changes where it does; a thing that was refused is looked at again
            only then.
    """

    shards: list[str] = field(default_factory=list)
    manifests: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    ended: bool = False
    stamps: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A place where shards of a stream arrive.

    All of it is called from one thread. What a source gave once it must be able to give again, for as long as the run
    may be resumed: a queue whose messages are gone once they are read writes them into the folder that `fetch` names.
    """

    def look(self, known: Container[str]) -> Look:
        """What is there, but for the names in `known`.

        Raises:
            UserError: the source cannot be reached, and waiting would not help.
        """
        ...

    def fetch(self, name: str, folder: Path) -> str:
        """Have a shard (and the index beside it, if it has one, under its name and `INDEXED`) lie beneath `folder`.

        Returns:
            Its path from there: where it lay before, the same again.

        Raises:
            UserError: it is gone.
        """
        ...

    def checksum(self, name: str) -> str:
        """The SHA-256 (hex) that was given with a shard; empty where none was."""
        ...

    def stream(self) -> str:
        """What shards of this stream say of themselves (`stream` in their index); empty: nothing is asked."""
        ...
