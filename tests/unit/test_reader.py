"""Reading samples by position, and what their bytes may do."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import threading
import zlib
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from PIL import Image
from streams import TASKS, only, picture, raw_tar, sample, stream_samples, test_sets

from streamcvit.data import locations
from streamcvit.data.images import image_fault
from streamcvit.data.sample import Picture, Quarantined, Sample
from streamcvit.data.shards import read as reader_module
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError


@pytest.fixture
def index(tmp_path):
    return write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0, samples_per_shard=15)


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_any_order_and_repeats_give_each_position_its_sample(index):
    rows = [one for _, one in stream_samples()]
    reader = ShardReader(index)
    for positions in ([39, 0, 14, 15, 16], [5, 5], [], [20, 19, 18]):
        assert reader.read(positions) == [rows[place] for place in positions]


def test_resume_is_a_seek(index, monkeypatch):
    fetched = []
    plain = os.pread

    def watched(file, size, at):
        fetched.append((at, size))
        return plain(file, size, at)

    monkeypatch.setattr(os, "pread", watched)
    ShardReader(index).read([37, 38])
    assert len(fetched) == 1
    assert fetched[0][1] < 4096


def test_a_position_out_of_the_stream_is_a_mistake_of_the_caller(index):
    with pytest.raises(IndexError, match="position 40"):
        ShardReader(index).read([40])


@pytest.mark.parametrize("part", ["json", "image"])
def test_a_flipped_byte_quarantines_its_sample_only_and_every_time(index, part):
    offset = int(index.column(f"{part}_offset")[17])
    overwrite(index.shards[1], offset + 3, b"\xff")
    for _ in range(2):
        found = ShardReader(index).read(range(len(index)))
        bad = [one for one in found if isinstance(one, Quarantined)]
        assert [(one.position, one.reason, one.sample_id) for one in bad] == [(17, "checksum", index.sample_id_of[17])]
        assert f"byte {offset}" in bad[0].detail
        assert "shard-000001.tar" in bad[0].detail


def test_a_cut_shard_quarantines_what_it_lost(index):
    cut = int(index.column("image_offset")[40 - 3]) + 10
    os.truncate(index.shards[2], cut)
    found = ShardReader(index).read(range(len(index)))
    assert [one.position for one in found if isinstance(one, Quarantined)] == [37, 38, 39]
    assert {one.reason for one in found if isinstance(one, Quarantined)} == {"truncated"}


def test_a_missing_shard_stops_with_its_name(index):
    os.remove(index.shards[1])
    reader = ShardReader(index)
    assert isinstance(reader.read([0])[0], Sample)
    with pytest.raises(UserError, match="shard-000001.tar"):
        reader.read([20])


def test_an_io_error_is_tried_again_and_never_quarantined(index, monkeypatch):
    plain, failures = os.pread, [OSError(5, "Input/output error")] * 2

    def flaky(file, size, at):
        if failures:
            raise failures.pop()
        return plain(file, size, at)

    monkeypatch.setattr(locations, "WAITS", (0, 0, 0))
    monkeypatch.setattr(os, "pread", flaky)
    assert isinstance(ShardReader(index).read([0])[0], Sample)
    failures.extend([OSError(5, "Input/output error")] * 10)
    with pytest.raises(UserError, match="shard-000000.tar.*Input/output error"):
        ShardReader(index).read([0])


def test_a_pickled_reader_reads_the_same(index):
    reader = ShardReader(index, max_pixels=100)
    reader.read([3])
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read([3]) == reader.read([3])
    assert copy.max_pixels == 100


def test_threads_may_share_a_reader(index):
    rows, faults = [one for _, one in stream_samples()], []
    reader = ShardReader(index)

    def read(start):
        for place in range(start, start + 40):
            if reader.read([place % 40]) != [rows[place % 40]]:
                faults.append(place)

    threads = [threading.Thread(target=read, args=(number * 7,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_many_shards_need_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "_OPEN_FILES", 3)
    rows = stream_samples()
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0, samples_per_shard=2)
    before = psutil.Process().num_fds()
    reader = ShardReader(index)
    assert reader.read(range(40)) == [one for _, one in rows]
    assert psutil.Process().num_fds() <= before + 3
    reader.close()
    assert psutil.Process().num_fds() <= before


def test_urls_are_read_by_ranges(index):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in [f"{index.folder}/index.parquet", *index.shards]:
        memory.pipe_file(f"/stream/{os.path.basename(path)}", Path(path).read_bytes())
    remote = StreamIndex.open("memory://stream")
    assert remote.digest == index.digest
    assert ShardReader(remote).read([0, 16, 39]) == ShardReader(index).read([0, 16, 39])


def test_errors_of_a_protocols_client_are_tried_again_too(index, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/flaky/index.parquet", Path(index.folder, "index.parquet").read_bytes())
    for path in index.shards:
        memory.pipe_file(f"/flaky/{os.path.basename(path)}", Path(path).read_bytes())
    reader = ShardReader(StreamIndex.open("memory://flaky"))
    plain, failures = type(memory).cat_file, [RuntimeError("503")] * 2

    def flaky(*args, **kwargs):
        if failures:
            raise failures.pop()
        return plain(*args, **kwargs)

    monkeypatch.setattr(locations, "WAITS", (0, 0, 0))
    monkeypatch.setattr(type(memory), "cat_file", flaky)
    assert reader.read([3]) == ShardReader(index).read([3])
    failures.extend([RuntimeError("503")] * 10)
    with pytest.raises(UserError, match="memory://flaky/shard-000000.tar.*RuntimeError: 503"):
        reader.read([3])


def png_header(width, height, depth=8, colour=2):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def tiff():
    image = io.BytesIO()
    Image.new("L", (4, 4)).save(image, "TIFF")
    return image.getvalue()


BAD_PICTURES = {
    "0 bytes": b"",
    "is a TIFF file": tiff(),
    "neither PNG, JPEG, WebP, GIF nor BMP": b"P6 4 4 255 " + bytes(48),
    "9000 x 9000 pixels": png_header(9_000, 9_000),
    "DecompressionBombError": png_header(50_000, 50_000),
    "cannot be decoded": picture(1, 64)[:-500],
    "cannot be decoded: ": picture(1, 64, "JPEG")[:700],
    "cannot be decoded: \\w": png_header(40, 40),
}


@pytest.mark.parametrize("says", BAD_PICTURES)
def test_bad_pictures_are_quarantined_with_their_fault(tmp_path, says):
    rows = [(0, sample(0)), (0, sample(1, pictures=(Picture(BAD_PICTURES[says]),))), (0, sample(2))]
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0)
    found = ShardReader(index).read([0, 1, 2])
    assert [one.sample_id for one in only(Sample, found)] == ["colour-0", "colour-2"]
    (bad,) = only(Quarantined, found)
    assert (bad.position, bad.sample_id, bad.reason) == (1, "colour-1", "image")
    assert re.search(says, bad.detail)


@pytest.mark.parametrize(
    ("mode", "format"), [("CMYK", "JPEG"), ("L", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("I;16", "PNG")]
)
def test_pictures_in_other_modes_that_render_as_rgb_pass(mode, format):
    assert image_fault(picture(1, mode=mode, format=format)) == ""


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert "pixels" in image_fault(png_header(30_000, 30_000))


def test_pictures_are_decoded_once_when_indexed_and_never_again(tmp_path, monkeypatch):
    rows = [(0, sample(0)), (0, sample(1, pictures=(Picture(picture(1, 64)[:-500]),)))]
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    good, bad = ShardReader(StreamIndex.open(index.folder)).read([0, 1])
    assert isinstance(good, Sample)
    assert isinstance(bad, Quarantined)


def test_a_reader_may_allow_fewer_pixels(index):
    (bad,) = only(Quarantined, ShardReader(index, max_pixels=63).read([4]))
    assert "8 x 8 pixels; at most 63" in bad.detail
    assert only(Quarantined, ShardReader(index, max_pixels=64).read([4])) == []


BAD_TEXTS = {
    "utf-8": b"\xff\xfe{}",
    "Expecting": b"{not json",
    "expected a JSON object": b"[]",
    "'answers' is missing": json.dumps({"id": "a", "task": "colour", "question": "", "instruction": ""}).encode(),
    "must be strings": json.dumps({"id": 7, "task": "c", "question": "", "instruction": "", "answers": ["a"]}).encode(),
    "one string or more": json.dumps(
        {"id": "a", "task": "c", "question": "", "instruction": "", "answers": []}
    ).encode(),
    "nested deeper than 64": b"[" * 100_000,
}


@pytest.mark.parametrize("says", BAD_TEXTS)
def test_records_that_do_not_parse_are_quarantined(tmp_path, says):
    """An index made by someone else may point at bytes that were never a record."""
    text = BAD_TEXTS[says]
    members = [("a.json", sample(1).text_bytes()), ("a.png", picture(1)), ("a.txt", text)]
    shard = raw_tar(tmp_path / "a.tar", members)
    index = index_shards([shard], tmp_path, TASKS, test_shards=())
    at = shard.read_bytes().index(text)
    forged = {"json_offset": at, "json_size": len(text), "json_crc32": zlib.crc32(text)}
    table = index.table
    for name, value in forged.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array([value], table.schema.field(name).type))
    StreamIndex(index.folder, table, index.meta).save()
    (bad,) = only(Quarantined, ShardReader(StreamIndex.open(tmp_path)).read([0]))
    assert bad.reason == "json"
    assert says.lower() in bad.detail.lower()
