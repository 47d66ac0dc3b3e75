"""From encoded bytes to an RGB picture, the same on every machine; what is none is said from its bytes alone.

What counts where an encoded picture leaves a choice: the EXIF orientation is applied (one that cannot be read is as
none); transparency is laid over white; 16-bit channels keep their 8 high bits; CMYK and others go through Pillow's own
conversion; of an animation (WebP, APNG) the first frame counts.
"""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000
"""Pictures with more pixels are refused before they are decoded."""
MAX_ASPECT = 200
"""Pictures whose sides differ by a larger factor are refused: a processor that scales the short side to 336 pixels
would make gigabytes of a line of 65,535 x 1. (Qwen's own processor draws the line at 200.)"""
MAX_SCANS = 100
"""JPEGs with more scans are refused: a few bytes each, every scan costs a pass over the whole picture. Encoders write
about ten."""

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
        decode: also decode the picture, which finds truncation and damage.
    """
    try:
        if decode:
            decode_image(data, max_pixels)
        else:
            _open(data, max_pixels).close()
    except ValueError as fault:
        return str(fault)
    return ""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in `data` as 8-bit RGB, upright, by the rules in this module's docstring.

    Raises:
        ValueError: the bytes are no PNG, JPEG or WebP, are damaged or cut off, or unpack to more than the limits allow
            (the message says which).
    """
    with _open(data, max_pixels) as picture:
        try:
            picture.load()
            turn = _turn(picture)
            rgb = _to_rgb(picture)
        except MemoryError:
            raise  # says something of this machine, not of the bytes
        except Exception as fault:  # Pillow's plugins raise a dozen unrelated classes on damaged bytes
            raise ValueError(_describe(fault)) from fault
    return rgb if turn is None else rgb.transpose(turn)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ValueError("the picture has 0 bytes")
    kind = sniff(data[:12])
    if not kind:
        raise ValueError("the picture is neither PNG, JPEG nor WebP")
    # Within a JPEG's coded data 0xFF is always followed by 0: these two bytes mark a scan, or stand in a comment.
    if kind == "jpg" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"the picture has {scans} scans; at most {MAX_SCANS} are decoded")
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except MemoryError:
        raise
    except Exception as fault:
        raise ValueError(_describe(fault)) from fault
    width, height = picture.size
    if width * height > max_pixels:
        raise ValueError(f"the picture has {width} x {height} pixels; at most {max_pixels} are allowed")
    if min(width, height) < 1:
        raise ValueError(f"the picture has {width} x {height} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"the picture has {width} x {height} pixels; its sides may differ {MAX_ASPECT}-fold at most")
    return picture


def _describe(fault: Exception) -> str:
    # Pillow's own message holds an address of this process; a verdict must be the same everywhere.
    what = "no picture" if isinstance(fault, UnidentifiedImageError) else f"{type(fault).__name__}: {fault}"
    return f"the picture cannot be decoded: {what}"


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
