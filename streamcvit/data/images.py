"""Is this picture one the stream may hold? Answered from its bytes alone."""

from __future__ import annotations

import io

from PIL import Image

MAX_PIXELS = 50_000_000
"""Pictures with more pixels are refused before they are decoded."""

_PIL_FORMATS = ("PNG", "JPEG", "WEBP")
# Modes that `convert("RGB")` renders faithfully; 16- and 32-bit greyscale would be clipped to white.
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


def sniff(head: bytes) -> str:
    """`png`, `jpg` or `webp` from a file's first 12 bytes; empty for anything else."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return ""


def image_fault(data: bytes, max_pixels: int = MAX_PIXELS, decode: bool = True) -> str:
    """What is wrong with an encoded picture; empty where nothing is.

    Args:
        data: the file's bytes.
        max_pixels: width x height allowed; checked before any pixel is decoded.
        decode: also decode the first frame, which finds truncation and damage.
    """
    if not data:
        return "the picture has 0 bytes"
    if not sniff(data[:12]):
        return "the picture is neither PNG, JPEG nor WebP"
    try:
        with Image.open(io.BytesIO(data), formats=_PIL_FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                return f"the picture has {width} x {height} pixels; at most {max_pixels} are allowed"
            if picture.mode not in _MODES:
                return f"the picture has mode {picture.mode}, which has no faithful RGB"
            if decode:
                picture.load()
    except MemoryError:
        raise  # says something of this machine, not of the bytes
    except Exception as fault:  # noqa: BLE001  Pillow's plugins raise a dozen unrelated classes on damaged bytes
        return f"the picture cannot be decoded: {type(fault).__name__}: {fault}"
    return ""
