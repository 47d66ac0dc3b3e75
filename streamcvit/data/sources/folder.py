"""A folder in which shards keep arriving.

| file | is |
|---|---|
| `NAME.tar` | a shard; complete once one of the next three lies beside it |
| `NAME.tar.parquet` | its index (`streamcvit push` writes it) |
| `NAME.tar.sha256` | its checksum, as `sha256sum` writes it |
| `NAME.tar.done` | an empty file: it is complete |
| `NAME.test.tar` | a test set, complete likewise; a manifest names it |
| `NAME.task.json` | the manifest of a task |
| `stream.json` | `{"stream": NAME}`: which stream this is |
| `END` | an empty file: nothing follows |

Files whose names begin with a dot are in the making; those whose names cannot be printed are none of a stream.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container
from pathlib import Path

from streamcvit.data.sources.base import INDEXED, Look
from streamcvit.errors import UserError

SHARD, TEST, MANIFEST = ".tar", ".test.tar", ".task.json"
CHECKSUM, DONE = ".sha256", ".done"
END, STREAM = "END", "stream.json"
MAX_MANIFEST = 1 << 20
"""Bytes of a manifest, of a checksum and of `stream.json`."""
LINK = "in"
"""Beneath a run's stream folder: a link to the folder."""


class FolderSource:
    """A folder on this machine, or on a file system that every machine of the run sees under one path.

    Args:
        address: the folder.

    Raises:
        UserError: there is none.
    """

    def __init__(self, address: str) -> None:
        self.folder = Path(os.path.expanduser(address)).absolute()
        if not self.folder.is_dir():
            fix = "Make the folder, or check the path: streamcvit push makes the folder of a stream"
            raise UserError("there is no such folder to follow", where=str(address), fix=fix)

    def look(self, known: Container[str]) -> Look:
        """What is complete, shards in the order of their names; errors as `Source.look`."""
        ended = (self.folder / END).exists()  # asked first: whatever was complete before it came is found now
        try:
            with os.scandir(self.folder) as entries:
                names = {name for entry in entries if (name := entry.name).isprintable() and not name.startswith(".")}
        except OSError as fault:
            raise UserError(
                f"the followed folder cannot be read ({fault.strerror})",
                where=str(self.folder),
                fix="Bring it back, then continue with --resume",
            ) from None
        found = Look(ended=ended)
        news = (name for name in names if name.endswith((SHARD, MANIFEST)) and name not in known)
        for name in sorted(news, key=_in_order):
            beside = [name + ending for ending in (INDEXED, CHECKSUM, DONE) if name + ending in names]
            if name.endswith(MANIFEST):
                text = self._text(name)
                if text is not None:
                    found.manifests[name] = text
            elif name.endswith(TEST):
                continue
            elif beside:
                found.shards.append(name)
            else:
                found.waiting.append(name)
            found.stamps[name] = ";".join(self._stamp(one) for one in (name, *beside))
        return found

    def complete(self, name: str) -> bool:
        """Whether a shard or test set is there as a whole."""
        path = os.path.join(self.folder, name)  # a manifest may name anything
        return os.path.isfile(path) and any(os.path.isfile(path + ending) for ending in (INDEXED, CHECKSUM, DONE))

    def fetch(self, name: str, folder: Path) -> str:
        """A path through a link to the folder; errors as `Source.fetch`."""
        link = folder / LINK
        if not link.is_symlink() or link.readlink() != self.folder:
            link.unlink(missing_ok=True)
            link.symlink_to(self.folder, target_is_directory=True)
        if not self.complete(name):
            raise UserError("there is no such shard, or it is not complete", where=str(self.folder / name))
        return f"{LINK}/{name}"

    def checksum(self, name: str) -> str:
        """Of the checksum file beside a shard; empty where there is none."""
        text = self._text(name + CHECKSUM) or ""
        found = re.match(r"\s*([0-9a-fA-F]{64})\b", text)
        return found[1].lower() if found else ""

    def stream(self) -> str:
        """Of `stream.json`; empty where there is none."""
        try:
            said = json.loads(self._text(STREAM) or "{}")
        except ValueError:
            return ""
        name = said.get("stream") if isinstance(said, dict) else None
        return name if isinstance(name, str) else ""

    def _text(self, name: str) -> str | None:
        try:
            with open(self.folder / name, "rb") as file:
                return file.read(MAX_MANIFEST).decode("utf-8", errors="replace")
        except OSError:
            return None

    def _stamp(self, name: str) -> str:
        try:
            found = os.stat(self.folder / name)
        except OSError:
            return ""
        return f"{found.st_size} {found.st_mtime_ns}"


def _in_order(name: str) -> list[tuple[str, int]]:
    """Sorts shard-9 before shard-10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
