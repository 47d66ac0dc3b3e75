"""Pictures of every odd kind: one upright RGB picture, or one verdict."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from running import ROOT
from streams import TASKS, picture, raw_tar, sample

from streamcvit.data import images
from streamcvit.data.images import decode_image, image_fault
from streamcvit.data.shards.foreign import index_shards
from streamcvit.models.rows import MAX_DECODED


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *more):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + bytes(3 * width)) * height if width * height < 1e6 else b""))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + rows + chunk(b"IEND", b"")


CORNER = np.zeros((8, 16), dtype=np.uint8)
CORNER[:4, :4] = 255


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_applied_in_all_formats(format, orientation):
    """The array that a viewer would show, by the definition of the EXIF tag."""
    expected = {
        1: CORNER,
        2: CORNER[:, ::-1],
        3: CORNER[::-1, ::-1],
        4: CORNER[::-1],
        5: CORNER.T,
        6: np.rot90(CORNER, -1),
        7: CORNER[::-1, ::-1].T,
        8: np.rot90(CORNER),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = np.asarray(decode_image(encoded(Image.fromarray(CORNER), format, exif=exif, quality=100)))[..., 0]
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).max() < 30


@pytest.mark.parametrize("damage", ["cut", "garbage", "a loop"])
def test_damaged_exif_counts_as_none(damage):
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(Image.new("RGB", (16, 8)), "JPEG", exif=exif)
    at = good.index(b"Exif\0\0") + 6
    bad = {
        "cut": b"MM\0*\xff\xff\xff\xff" + good[at + 8 : at + 14],
        "garbage": b"\xff" * 14,
        "a loop": b"MM\0*\0\0\0\x08\0\x01\0\0\0\0",
    }[damage]
    assert decode_image(good).size == (8, 16)
    assert decode_image(good[:at] + bad + good[at + 14 :]).size == (16, 8)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF"])
def test_of_an_animation_the_first_frame_counts(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    moving = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decode_image(moving).getpixel((4, 4)) == (255, 0, 0)


def test_of_a_jpeg_that_holds_several_pictures_the_first_counts():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    shown = decode_image(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95))
    assert shown.size == (16, 16) and shown.getpixel((8, 8))[0] > 240


REFUSED = {
    "TIFF": "is a TIFF file",
    "JPEG2000": "is a JPEG 2000 file",
    "AVIF": "is an AVIF file",
    "ICO": "is an icon file",
    "PDF": "is a PDF file",
    "EPS": "is an EPS file",
    "PPM": "is neither PNG, JPEG, WebP, GIF nor BMP",
}


@pytest.mark.parametrize("format", REFUSED)
def test_other_formats_are_refused_by_their_names_whatever_they_are_called(format, monkeypatch):
    """Among them EPS, for which Pillow would run Ghostscript."""
    data = encoded(Image.new("RGB", (8, 8)), format)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert image_fault(data).startswith(f"the picture {REFUSED[format]}")
    with pytest.raises(ValueError, match=REFUSED[format]):
        decode_image(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><title>404 Not Found</title>", "an HTML file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIF or a video file"),
        (b"BMW is a maker of cars", "neither PNG"),
    ],
)
def test_what_stands_in_place_of_a_picture_is_named(data, says):
    with pytest.raises(ValueError, match=says):
        decode_image(data)


def test_a_hidden_picture_of_another_format_is_not_opened():
    eps = encoded(Image.new("RGB", (8, 8)), "EPS")
    assert "no picture" in image_fault(b"\xff\xd8\xff" + eps)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("I;16", 0x80FF, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_by_the_stated_rule(mode, value, expected):
    shown = decode_image(encoded(Image.new(mode, (3, 2), value)))
    assert (shown.mode, shown.size, shown.getpixel((1, 1))) == ("RGB", (3, 2), expected)


GIF_FRAME = b"\x00\x02\x02\x44\x01\x00;"  # one pixel


def gif(screen, frame=(0, 0, 1, 1), front=b"", tail=GIF_FRAME):
    head = b"GIF89a" + struct.pack("<2H", *screen) + b"\x80\0\0" + b"\xff\0\0" + b"\0\0\xff"
    return head + front + b"," + struct.pack("<4H", *frame) + tail


def test_a_gif_is_measured_before_memory_is_set_aside_for_it(monkeypatch):
    assert decode_image(gif((1, 1))).getpixel((0, 0)) == (255, 0, 0)
    assert decode_image(gif((2, 1), (1, 0, 1, 1))).size == (2, 1)
    assert decode_image(gif((1, 1), (1, 1, 1, 1))).size == (2, 2)  # frames may stand out
    disposed = b"!\xf9\4\x0c\0\0\0\0"  # replaced by as many pixels when the next one comes
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for data in (gif((60_000, 50_000)), gif((1, 1), (0, 0, 60_000, 50_000), disposed)):
        assert image_fault(data) == "the picture has 60000 x 50000 pixels; at most 50000000 are allowed"
    assert "may differ 200-fold" in image_fault(gif((1, 1), (5000, 0, 1, 1)))


def test_a_gif_of_endless_blocks_before_its_frame_is_refused_before_it_is_opened(monkeypatch):
    profile = b"!\xff\x0bICCRGBG1012" + b"\xff" + bytes(255) + b"\0"
    assert image_fault(gif((1, 1), front=profile + b"\0" * 100)) == ""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for front in (b"!\xfe" + b"\1a" * 70_000 + b"\0", b"\0" * 70_000, b"!\xfe\0" * 70_000):
        assert "more than 65536 blocks before its first frame" in image_fault(gif((1, 1), front=front))


@pytest.mark.parametrize("tail", [b"", b"\2", b"\0;", b"\x0d\2\x44\1\0;", b"\2\xff"])
def test_damaged_gifs_are_refused(tail):
    assert "cannot be decoded" in image_fault(gif((1, 1), tail=tail))
    assert "cannot be decoded" in image_fault(b"GIF89a" + bytes(7) + b";")


def test_the_part_of_a_gif_that_its_first_frame_leaves_transparent_is_white():
    seen = b"!\xf9\4\1\0\0\1\0"
    shown = decode_image(gif((2, 1), (0, 0, 1, 1), seen))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def bmp(width, height, compression=0, bits=24, header=40, rows=b""):
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + header) + head.ljust(header, b"\0") + rows


def test_bmps_are_read_either_way_up_and_refused_where_they_are_packed_or_cut():
    rows = b"\0\0\xff\0" + b"\xff\0\0\0"
    for height, colours in ((2, [(0, 0, 255), (255, 0, 0)]), (-2, [(255, 0, 0), (0, 0, 255)])):
        shown = decode_image(bmp(1, height, rows=rows))
        assert [shown.getpixel((0, y)) for y in (0, 1)] == colours
    assert "RLE-packed" in image_fault(bmp(4, 4, compression=1, bits=8, rows=bytes(2000)))
    assert "cannot be decoded" in image_fault(bmp(4, 4, compression=4, rows=bytes(64)))
    assert "cannot be decoded" in image_fault(bmp(1, 2, rows=rows[:5]))
    assert "cannot be decoded" in image_fault(bmp(1, 2, rows=rows)[:30])
    assert "100000 x 100000 pixels" in image_fault(bmp(100_000, 100_000)) or "Bomb" in image_fault(
        bmp(100_000, 100_000)
    )
    assert "may differ 200-fold" in image_fault(bmp(40_000, 1, rows=bytes(120_000)))


def test_one_pixel_is_a_picture_and_none_is_not():
    assert decode_image(encoded(Image.new("RGB", (1, 1), "red"))).getpixel((0, 0)) == (255, 0, 0)
    for width, height in ((0, 8), (8, 0), (0, 0)):
        assert image_fault(png(width, height)) != ""


def test_a_line_that_would_be_scaled_to_gigabytes_is_refused():
    assert image_fault(png(200, 1)) == ""
    for size in ((201, 1), (1, 201), (65_535, 1)):
        assert "may differ 200-fold at most" in image_fault(png(*size))


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(monkeypatch):
    good = picture(1, 16, "JPEG")
    at = good.index(b"\xff\xda")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert "scans; at most 100" in image_fault(good[:at] + good[at : at + 14] * 200 + good[at:])
    monkeypatch.undo()
    assert image_fault(encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)) == ""


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_texts_and_profiles_that_unpack_to_much_stay_small(kind):
    import tracemalloc

    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    data = png(8, 8, chunk(kind, head + zlib.compress(bytes(200 << 20), 9)))
    tracemalloc.start()
    try:
        image_fault(data)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_cut_picture_is_refused(format, share):
    whole = picture(1, 64, format)
    assert "cannot be decoded" in image_fault(whole[: int(len(whole) * share)])


LITTLE_MEMORY = """
import json, os, resource, sys
from PIL import Image
from streamcvit.data.images import image_fault
Image.init()
pages = lambda: int(open("/proc/self/statm").read().split()[0])
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        data = file.read()
    for decode in (True, False):
        for spare in (2, 8, 14, 18, 24, 200):
            if not (child := os.fork()):
                limit = pages() * resource.getpagesize() + (spare << 20)
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                try:
                    said = image_fault(data, decode=decode)
                except MemoryError as error:
                    said = f"MemoryError: {error}"
                os.write(1, json.dumps([path, decode, spare, said]).encode() + b"\\n")
                os._exit(0)
            os.waitpid(child, 0)
"""


def test_want_of_memory_is_never_taken_for_damage(tmp_path):
    """libjpeg and libwebp report it as they report damage."""
    sound = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)).resize((1800, 1800))
    files = {"JPEG": encoded(sound, "JPEG", progressive=True, subsampling=0), "WEBP": encoded(sound, "WEBP", method=0)}
    files["PNG"] = encoded(sound, "PNG", compress_level=1)
    files |= {"GIF": encoded(sound, "GIF"), "BMP": encoded(sound, "BMP")}
    files |= {f"cut {format}": data[: len(data) // 2] for format, data in files.items()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    ran = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, *files],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(said) == 10 * 2 * 6
    for name, decode, spare, verdict in said:
        truth = image_fault(files[name], decode=decode)
        assert bool(truth) == (name.startswith("cut") and (decode or name == "cut WEBP"))
        assert verdict == truth if spare == 200 else verdict == truth or verdict.startswith("MemoryError"), name
    lacked = {name for name, decode, _, verdict in said if decode and verdict.startswith("MemoryError: decoding")}
    assert lacked >= {"JPEG", "WEBP", "cut JPEG", "cut WEBP"}


def test_the_command_says_in_a_line_that_memory_is_wanting(tmp_path):
    picture = encoded(Image.new("RGB", (4000, 4000)))
    shard = raw_tar(tmp_path / "x.tar", [("a.json", sample(1).text_bytes()), ("a.png", picture)])
    index_shards([shard], tmp_path, TASKS)
    code = """
import resource, sys
from streamcvit.cli import main
from streamcvit.data.shards.index import StreamIndex
StreamIndex.open(".")
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (20 << 20),) * 2)
sys.argv = ["streamcvit", "verify", "."]
main()
"""
    environment = {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: out of memory") and ran.stderr.count("\n") == 1


def test_a_webp_is_measured_before_memory_is_set_aside_for_it(monkeypatch):
    webp = {
        "VP8 ": encoded(Image.new("RGB", (300, 200)), "WEBP"),
        "VP8L": encoded(Image.new("RGB", (300, 200)), "WEBP", lossless=True),
        "VP8X": encoded(Image.new("RGBA", (300, 200), (1, 2, 3, 4)), "WEBP"),
    }
    assert all(data[12:16].decode() == kind for kind, data in webp.items())
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for data in webp.values():
        assert image_fault(data, max_pixels=1000) == "the picture has 300 x 200 pixels; at most 1000 are allowed"


def test_a_verdict_holds_no_address_of_this_process():
    verdict = image_fault(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert verdict == "the picture cannot be decoded: no picture"


def test_the_limits_are_those_that_the_documentation_lists(request):
    text = (request.config.rootpath / "docs" / "security.md").read_text()
    for value in (images.MAX_PIXELS, images.MAX_ASPECT, images.MAX_SCANS, images.MAX_GIF_BLOCKS, MAX_DECODED):
        assert f"{value:,}" in text
