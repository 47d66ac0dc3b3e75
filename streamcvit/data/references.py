"""Pictures as rows name them: a path beneath the image root, or the picture itself as bytes, base64 or a data URI."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from streamcvit.data.images import sniff

Reference = str | bytes
"""A path beneath the image root as the row writes it (perhaps with backslashes), or an encoded picture."""

IMAGE_ROOT_MARK = "<STRCVIT_IMAGE_ROOT>"


class BadRow(Exception):
    """A row that cannot be read; the message says why, `reason` classes it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def references(row: Mapping[str, Any], *keys: str) -> tuple[Reference, ...]:
    """The pictures that a row names under these keys, one or a list of them; under one key only.

    Raises:
        BadRow: see `one_reference`; or two keys name pictures.
    """
    found: list[tuple[str, tuple[Reference, ...]]] = []
    for key in keys:
        value = row.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if pictures := tuple(one_reference(one) for one in values if one != ""):
            found.append((key, pictures))
    if len(found) > 1:
        raise BadRow("pictures", f"the row names pictures in {' and in '.join(repr(key) for key, _ in found)}")
    return found[0][1] if found else ()


def one_reference(value: Any) -> Reference:
    """A picture as a row names it: a path, bytes, base64, a data URI, or an object with `bytes` or `path`.

    Raises:
        BadRow: it is none of them, leads out of the image root, or is an address.
    """
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("bytes", "path", "url") if value.get(key) is not None), None)
        if isinstance(inner, str) and inner == value.get("bytes"):
            return _from_base64(inner)
        value = inner
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise BadRow("shape", f"the picture's path is {value!r:.80}")
    if value.startswith("data:"):
        head, _, data = value.partition(",")
        if not (head.startswith("data:image/") and head.endswith(";base64")):
            raise BadRow("shape", f"the picture {value!r:.40} is no data URI of a picture in base64")
        return _from_base64(data)
    if len(value) > 100 and _is_base64_picture(value):
        return _from_base64(value)
    return _path(value)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadRow("shape", f"the picture {text!r:.40} is no base64") from None


def _is_base64_picture(text: str) -> bool:
    try:
        return bool(sniff(base64.b64decode(text[:16].encode("ascii"), validate=True)))
    except (binascii.Error, UnicodeEncodeError):
        return False


def _path(path: str) -> str:
    """The path without what may stand before it; BadRow where it, or the same with slashes, leads out of the root."""
    if "://" in path and not path.startswith("file:"):
        raise BadRow(
            "address", f"the picture {path!r:.80} lies at an address: pictures are not fetched, download them first"
        )
    if path.startswith(IMAGE_ROOT_MARK):
        path = path.removeprefix(IMAGE_ROOT_MARK).lstrip("/\\")
    path = path.removeprefix("./").removeprefix(".\\")
    slashes = path.replace("\\", "/")
    if not slashes or slashes.startswith("/") or "\0" in path or ":" in path or ".." in slashes.split("/"):
        raise BadRow("path", f"the picture {path!r:.80} lies out of the image root")
    return path
