"""From encoded bytes to an RGB picture, the same on every machine."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

WHITE = (255, 255, 255)


def decode_image(encoded: bytes) -> Image.Image:
    """The picture in `encoded` as 8-bit RGB, upright.

    The EXIF orientation is applied; transparency is laid over white; 16-bit grey keeps its 8 high bits (32-bit
    integer and float grey are read as 0..65535 and 0..255); everything else goes through PIL's own conversion. Of an
    animation the first frame counts.

    Raises:
        ValueError: the bytes are no picture, are cut off, or unpack to more pixels than PIL deems safe.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture
    if mode.startswith("I"):
        # PIL's own conversion clips 16-bit values at 255, which turns most of a scan white.
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if "A" in mode or "a" in mode or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        flat = Image.new("RGB", layer.size, WHITE)
        flat.paste(layer, mask=layer.getchannel("A"))
        return flat
    return picture.convert("RGB")
