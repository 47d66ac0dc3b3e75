"""Where bytes lie: a local path or a URL that only fetches. Nothing here runs a command."""

from __future__ import annotations

import os
import posixpath
from typing import BinaryIO, cast

from streamcvit.errors import UserError

URL_SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf", "memory")


def check_location(location: str) -> str:
    """The location, if it is a plain path or a URL of a scheme that only fetches bytes.

    Raises:
        UserError: `pipe:` and other schemes that run something, chained URLs, member paths.
    """
    scheme, colon, _ = location.partition(":")
    if "::" in location or (colon and "/" not in scheme and scheme not in URL_SCHEMES):
        raise UserError(
            f"{location!r} is no location to read from",
            fix=f"Give a path, or a URL starting with one of {', '.join(URL_SCHEMES)}",
        )
    if colon and scheme in URL_SCHEMES and "://" not in location:
        raise UserError(f"{location!r} is neither a path nor a URL", fix=f"Write {scheme}://...")
    return location


def is_url(location: str) -> bool:
    """Whether a checked location is a URL."""
    return "://" in location


def join(folder: str, name: str) -> str:
    """A file's location from its name in an index: beneath `folder`, or a location of its own."""
    check_location(name)
    if is_url(name) or os.path.isabs(name):
        return name
    if ".." in name.split("/"):
        raise UserError(f"shard {name!r} points out of its folder", where=folder, fix="Index the shards again")
    return posixpath.join(folder, name) if is_url(folder) else os.path.join(folder, name)


def open_binary(location: str) -> BinaryIO:
    """The bytes at a location, read on from the start.

    Raises:
        UserError: not there or not reachable.
    """
    check_location(location)
    try:
        if not is_url(location):
            return open(location, "rb")
        import fsspec

        return cast(BinaryIO, fsspec.open(location, "rb").open())
    except (OSError, ImportError) as fault:
        raise UserError(
            f"cannot be opened: {fault}", where=location, fix="Check the path and its permissions"
        ) from None
