"""From encoded bytes to an RGB picture, the same on every machine; what is none is said from its bytes alone.

What counts where an encoded picture leaves a choice: the EXIF orientation is applied (one that cannot be read is as
none); transparency is laid over white; 16-bit channels keep their 8 high bits; CMYK and others go through Pillow's own
conversion; of an animation (WebP, APNG) the first frame counts.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

T = TypeVar("T")

MAX_PIXELS = 50_000_000
"""Pictures with more pixels are refused before they are decoded."""
MAX_ASPECT = 200
"""Pictures whose sides differ by a larger factor are refused: a processor that scales the short side to 336 pixels
would make gigabytes of a line of 65,535 x 1. (Qwen's own processor draws the line at 200.)"""
MAX_SCANS = 100
"""JPEGs with more scans are refused: a few bytes each, every scan costs a pass over the whole picture. Encoders write
about ten."""

EXTENSIONS: dict[str, tuple[str, ...]] = {"png": ("png",), "jpg": ("jpg", "jpeg", "jpe", "jfif"), "webp": ("webp",)}
"""The kinds of pictures that are read (`Picture.ext`), and the endings of file names that each goes by. What counts is
the content."""

HEAD = 12
"""Bytes that tell the kind of a file."""

_PIXEL_BYTES = 24
"""Memory that decoding takes a pixel: at most 20 bytes of any format and mode (WebP) as measured."""
WHITE = (255, 255, 255)
_FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow's others are never tried; its EPS reader, for one, runs Ghostscript
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def sniff(head: bytes) -> str:
    """A name in `EXTENSIONS` from a file's first `HEAD` bytes; empty for anything else."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return ""


class _Undecodable(ValueError):
    """A decoder gave up: for the bytes, or for want of memory, which few of them tell apart.

    Args:
        fault: what it raised.
        pixels: width x height by the header; 0 where even that was not read.
    """

    def __init__(self, fault: Exception, pixels: int) -> None:
        # Pillow's own message holds an address of this process; a verdict must be the same everywhere.
        what = "no picture" if isinstance(fault, UnidentifiedImageError) else f"{type(fault).__name__}: {fault}"
        super().__init__(f"the picture cannot be decoded: {what}")
        self.pixels = pixels


def image_fault(data: bytes, max_pixels: int = MAX_PIXELS, decode: bool = True) -> str:
    """What is wrong with an encoded picture; empty where nothing is.

    Args:
        data: the file's bytes.
        max_pixels: width x height allowed; checked before any pixel is decoded.
        decode: also decode the picture, which finds truncation and damage.

    Raises:
        MemoryError: this machine has not the memory to tell.
    """
    try:
        if decode:
            decode_image(data, max_pixels)
        else:
            image_size(data, max_pixels)
    except ValueError as fault:
        return str(fault)
    return ""


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) by the header, before it is turned upright; no pixel is decoded.

    Raises:
        ValueError: as `decode_image`, as far as the header tells.
        MemoryError: as `decode_image`.
    """

    def size() -> tuple[int, int]:
        with _open(data, max_pixels) as picture:
            return picture.size

    return _with_memory(size, data)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in `data` as 8-bit RGB, upright, by the rules in this module's docstring.

    Raises:
        ValueError: the bytes are no PNG, JPEG or WebP, are damaged or cut off, or unpack to more than the limits allow
            (the message says which).
        MemoryError: this machine has not the memory to tell.
    """
    return _with_memory(lambda: _decode(data, max_pixels), data)


def _with_memory(work: Callable[[], T], data: bytes) -> T:
    """What `work` gives; where it fails, only a failure with memory to spare is the bytes' own."""
    try:
        return work()
    except _Undecodable as fault:
        pixels = fault.pixels
    # Out of the handler: the exception holds the failed decoder, and with it the memory.
    needed = pixels * _PIXEL_BYTES + 2 * len(data) + (16 << 20)
    try:
        bytes(needed)  # set aside, but never written to
    except MemoryError:
        raise MemoryError(f"decoding a picture of {pixels} pixels needs {needed >> 20} MiB free") from None
    return work()


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    with _open(data, max_pixels) as picture:
        try:
            picture.load()
            turn = _turn(picture)
            rgb = _to_rgb(picture)
            return rgb if turn is None else rgb.transpose(turn)
        except MemoryError:
            raise  # says something of this machine, not of the bytes
        except Exception as fault:  # Pillow's plugins raise a dozen unrelated classes on damaged bytes
            raise _Undecodable(fault, picture.width * picture.height) from fault


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ValueError("the picture has 0 bytes")
    kind = sniff(data[:HEAD])
    if not kind:
        raise ValueError("the picture is neither PNG, JPEG nor WebP")
    # Within a JPEG's coded data 0xFF is always followed by 0: these two bytes mark a scan, or stand in a comment.
    if kind == "jpg" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"the picture has {scans} scans; at most {MAX_SCANS} are decoded")
    width, height = _webp_size(data[:30]) if kind == "webp" else (0, 0)
    if width:  # opening one sets memory aside by its size
        _check_size(width, height, max_pixels)
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except MemoryError:
        raise
    except Exception as fault:
        raise _Undecodable(fault, width * height) from fault
    _check_size(*picture.size, max_pixels)
    return picture


def _webp_size(head: bytes) -> tuple[int, int]:
    """(width, height) in the first 30 bytes of a WebP file (RFC 9649); zeros where they hold none."""
    kind, number = head[12:16], int.from_bytes
    if kind == b"VP8X":
        return number(head[24:27], "little") + 1, number(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = number(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return number(head[26:28], "little") & 0x3FFF, number(head[28:30], "little") & 0x3FFF


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"the picture has {width} x {height} pixels; at most {max_pixels} are allowed")
    if min(width, height) < 1:
        raise ValueError(f"the picture has {width} x {height} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"the picture has {width} x {height} pixels; its sides may differ {MAX_ASPECT}-fold at most")


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION))  # type: ignore[arg-type]
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data says nothing of the pixels
        return None


def _to_rgb(picture: Image.Image) -> Image.Image:
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture.copy()
    if mode.startswith("I"):
        # PIL's own conversion clips 16-bit values at 255, which turns most of a scan white.
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if "A" in mode or "a" in mode or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        flat = Image.new("RGB", layer.size, WHITE)
        flat.paste(layer, mask=layer.getchannel("A"))
        return flat
    return picture.convert("RGB")
