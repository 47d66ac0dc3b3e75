"""From encoded bytes to an RGB picture, the same on every machine; what is none is said from its bytes alone.

What counts where an encoded picture leaves a choice: the EXIF orientation is applied (one that cannot be read is as
none); transparency is laid over white; 16-bit channels keep their 8 high bits; CMYK and others go through Pillow's own
conversion; of an animation (GIF, WebP, APNG) and of several pictures in one file (MPO) the first counts.

What is read is what Pillow decodes in bounded time and memory without help from outside. Of its other formats TIFF and
JPEG 2000 stay out as their decoders come with many codecs, old and new, AVIF and HEIF as theirs set memory and threads
aside before a size can be checked, RLE-packed BMP as it is unpacked in Python byte by byte, EPS as it runs Ghostscript.
"""

from __future__ import annotations

import io
import struct
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

MAX_GIF_BLOCKS = 65_536
"""GIFs with more blocks before their first frame are refused: Pillow reads them one by one. A profile has hundreds."""
EXTENSIONS: dict[str, tuple[str, ...]] = {
    "png": ("png", "apng"),
    "jpg": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "webp": ("webp",),
    "gif": ("gif",),
    "bmp": ("bmp",),
}
"""The kinds of pictures that are read (`Picture.ext`), and the endings of file names that each goes by. What counts is
the content."""
UNREAD = ("tif", "tiff", "avif", "heic", "heif", "jp2", "jxl", "svg", "ico", "ppm", "pgm", "pbm", "psd", "eps")
"""Endings of pictures that are not read: they count as pictures, and each is refused by what it holds."""

HEAD = 12
"""Bytes that tell the kind of a file."""

_PIXEL_BYTES = 24
"""Memory that decoding takes a pixel: at most 20 bytes of any format and mode (WebP) as measured."""
WHITE = (255, 255, 255)
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow's others are never tried
_STARTS = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
}
_OTHERS = {
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a TIFF",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xffO\xffQ": "a JPEG 2000",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop",
    b"%!PS": "an EPS",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"<?xml": "an XML",
    b"<html": "an HTML",
    b"<!doctype": "an HTML",
    b"version http": "a Git LFS pointer",
    b"\x1f\x8b": "a gzip",
    b"PK\3\4": "a zip",
}
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
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "bmp" if head[:2] == b"BM" and head[6:10] == bytes(4) else ""  # four reserved bytes tell it from a text


def no_picture(head: bytes) -> str:
    """What a file is instead of a picture, by its first `HEAD` bytes; empty where it is one."""
    if sniff(head):
        return ""
    what = next((what for start, what in _OTHERS.items() if head.lower().startswith(start.lower())), "")
    if head[4:8] == b"ftyp":
        what = "an AVIF" if head[8:11] == b"avi" else "a HEIF or a video"
    if what == "a Git LFS pointer":
        return "is a Git LFS pointer; fetch the file itself with git lfs pull"
    return (
        f"is {what} file; PNG, JPEG, WebP, GIF and BMP are read" if what else "is neither PNG, JPEG, WebP, GIF nor BMP"
    )


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
        ValueError: the bytes are no picture of `EXTENSIONS`, are damaged or cut off, or unpack to more than the limits
            allow (the message says which).
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
        raise ValueError(f"the picture {no_picture(data[:HEAD])}")
    # Within a JPEG's coded data 0xFF is always followed by 0: these two bytes mark a scan, or stand in a comment.
    if kind == "jpg" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"the picture has {scans} scans; at most {MAX_SCANS} are decoded")
    if kind == "bmp" and data[14:15] != b"\x0c" and data[30:31] in (b"\1", b"\2"):
        raise ValueError("an RLE-packed BMP is not read; save the picture as PNG")
    width, height = _SIZES[kind](data) if kind in _SIZES else (0, 0)
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


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) in the first 30 bytes of a WebP file (RFC 9649); zeros where they hold none."""
    head, number = data[:30], int.from_bytes
    kind = head[12:16]
    if kind == b"VP8X":
        return number(head[24:27], "little") + 1, number(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = number(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return number(head[26:28], "little") & 0x3FFF, number(head[28:30], "little") & 0x3FFF


def _gif_size(data: bytes) -> tuple[int, int]:
    """(width, height) that hold both the screen and the first frame of a GIF (its specification of 1989).

    Raises:
        ValueError: too many blocks before the first frame.
    """
    head = data[:13].ljust(13, b"\0")
    at, blocks, inside = 13 + (6 << (head[10] & 7) if head[10] & 128 else 0), 0, False
    while at < len(data):
        if (blocks := blocks + 1) > MAX_GIF_BLOCKS:
            raise ValueError(f"the picture has more than {MAX_GIF_BLOCKS} blocks before its first frame")
        mark = data[at]
        if inside:  # an extension: blocks behind their lengths, up to one of no length
            inside, at = mark > 0, at + 1 + mark
        elif mark == ord(","):
            left, top, width, height = struct.unpack("<4H", data[at + 1 : at + 9].ljust(8, b"\0"))
            screen = struct.unpack("<2H", head[6:10])
            return max(screen[0], left + width), max(screen[1], top + height)
        elif mark == ord(";"):
            break
        else:  # Pillow passes over bytes that are nothing
            inside = mark == ord("!")
            at += 2 if inside else 1
    return 0, 0


_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {"webp": _webp_size, "gif": _gif_size}


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
