"""Samples with no picture, one or several, in shards: written, indexed, read, resumed and quarantined as others are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import webdataset as wds
from streams import TASKS, only, picture, sample, stream_samples, test_sets

from streamcvit.data.sample import PICTURE, Picture, Quarantined, Sample, Turn
from streamcvit.data.shards import write as shards
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import members, write_stream
from streamcvit.data.verify import verify
from streamcvit.errors import UserError

KINDS = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"))


def pictures(count: int, seed: int = 0) -> tuple[Picture, ...]:
    return tuple(
        Picture(picture(100 * seed + n, format=format), ext) for n, (ext, format) in enumerate((KINDS * count)[:count])
    )


def varied(number: int, task: str = "colour") -> Sample:
    """Samples with 0, 1, 2, 3 or 12 pictures, some with turns, marks and a system prompt."""
    count = (1, 0, 2, 12, 3)[number % 5]
    one = sample(number, task, pictures=pictures(count, number))
    if number % 3 == 1:
        turns = (Turn(f"First {PICTURE * count}?", "yes"), Turn("And then?", "no"))
        one = sample(number, task, pictures=one.pictures, turns=turns, system="Be brief.", whole="Last?")
    return one


ROWS = [(number // 10, varied(number, ("colour", "shape")[number % 2])) for number in range(40)]


@pytest.fixture
def index(tmp_path: Path) -> StreamIndex:
    tests = {task: [varied(1000 + n, task) for n in range(4)] for task in TASKS}
    return write_stream(tmp_path / "s", ROWS, TASKS, tests, seed=0, samples_per_shard=15)


def test_what_is_written_reads_back_equal_at_every_position_and_in_any_order(index):
    opened = StreamIndex.open(index.folder)
    assert (len(opened), opened.digest, opened.meta["version"]) == (40, index.digest, 2)
    assert opened.pictures_of.tolist() == [len(one.pictures) for _, one in ROWS]
    assert opened.table.num_rows == sum(max(1, len(one.pictures)) for _, one in ROWS)
    reader = ShardReader(opened)
    assert reader.read(range(40)) == [one for _, one in ROWS]
    for places in ([39, 3, 1, 3], [1], [6, 11], []):
        assert reader.read(places) == [ROWS[place][1] for place in places]
    assert opened.chunk_of.tolist() == [chunk for chunk, _ in ROWS]
    assert [opened.chunk_bounds(chunk) for chunk in range(4)] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert opened.task_of.tolist() == [one.task for _, one in ROWS]
    assert verify(index.folder).ok


def test_plain_webdataset_reads_them(index):
    found = list(wds.WebDataset(index.shards, shardshuffle=False))
    assert len(found) == 40
    for raw, (_, one) in zip(found, ROWS, strict=True):
        assert {name: data for name, data in raw.items() if name[0] != "_" and name != "json"} == members(one.pictures)
        assert Sample.from_bytes(raw["json"], one.pictures) == one


def test_a_stream_of_texts_alone_is_a_stream(tmp_path):
    rows = [(0, sample(n, pictures=())) for n in range(5)]
    tests = {task: [sample(100 + n, task, pictures=()) for n in range(2)] for task in TASKS}
    index = write_stream(tmp_path / "s", rows, TASKS, tests, seed=0)
    assert ShardReader(StreamIndex.open(index.folder)).read(range(5)) == [one for _, one in rows]
    assert len(ShardReader(index.eval_index()).read(range(4))) == 4
    assert verify(index.folder).ok


def test_a_stream_of_one_picture_each_is_written_as_it_always_was(tmp_path):
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    assert (index.meta["version"], index.table.num_rows) == (1, 40)


def test_a_bad_picture_of_several_quarantines_its_sample_and_says_which(index, tmp_path):
    place = 3  # twelve pictures
    first = int(index.first_row[place])
    with open(index.shards[0], "r+b") as shard:
        shard.seek(int(index.column("image_offset")[first + 7]))
        shard.write(b"RIFX")
    found = ShardReader(index).read(range(40))
    (bad,) = only(Quarantined, found)
    assert (bad.position, bad.sample_id, bad.reason) == (3, index.sample_id_of[3], "checksum")
    assert "picture 8 of 12 is not what was indexed" in bad.detail
    assert [one for one in found if isinstance(one, Sample)] == [one for n, (_, one) in enumerate(ROWS) if n != 3]
    report = verify(index.folder)
    assert (report.unreadable, report.ok) == (1, False)

    broken = [*pictures(3)[:2], Picture(picture(1, 64)[:-500])]
    rows = [(0, sample(0)), (0, sample(1, pictures=tuple(broken))), (0, sample(2, pictures=()))]
    other = write_stream(tmp_path / "t", rows, TASKS, test_sets(), seed=0)
    good, bad, text = ShardReader(other).read(range(3))
    assert isinstance(bad, Quarantined) and bad.reason == "image" and "cannot be decoded" in bad.detail
    assert (good, text) == (rows[0][1], rows[2][1])


def test_samples_at_the_ends_of_chunks_keep_their_places_when_they_cannot_be_read(tmp_path):
    cut = Picture(picture(1, 64)[:-500])
    rows = [
        (chunk, replace(one, pictures=(cut, *one.pictures)) if number % 10 > 6 else one)
        for number, (chunk, one) in enumerate(stream_samples())
    ]
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0, samples_per_shard=15)
    assert [index.chunk_bounds(chunk) for chunk in range(4)] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert index.plan.counts.sum(axis=1).tolist() == [10] * 4
    found = ShardReader(StreamIndex.open(index.folder)).read(range(40))
    assert [one.position for one in only(Quarantined, found)] == [n for n in range(40) if n % 10 > 6]
    assert [one for one in found if isinstance(one, Sample)] == [one for n, (_, one) in enumerate(rows) if n % 10 <= 6]


def test_a_shard_cut_within_a_samples_pictures_loses_it_and_what_follows(index):
    rows = index.column("image_offset")
    with open(index.shards[0], "r+b") as shard:
        shard.truncate(int(rows[index.first_row[8]]) + 10)  # the fourth of four lies before the second
    found = ShardReader(index).read(range(15))
    assert {one.position for one in only(Quarantined, found)} == set(range(8, 15))


FORGED = {
    "positions are not": lambda rows: {"position": [0, 2, 3]},
    "of version 1, but": lambda rows: {"version": 1},
    "rows of one position differ in task": lambda rows: {"task": ["colour", "colour", "shape"]},
    "rows of one position differ in json_offset": lambda rows: {"json_offset": [rows[0], rows[1], 0]},
    "a sample has a picture and none": lambda rows: {"image_ext": ["png", "png", ""]},
    "image members lie outside": lambda rows: {"image_offset": [512, 512, 10**9]},
    "more pictures than are allowed": lambda rows: {"repeat": 65},
    "than are allowed": lambda rows: {"image_size": [1, 1, 1], "repeat": 63, "sizes": 8 << 20},
}


@pytest.mark.parametrize("says", FORGED)
def test_a_forged_index_of_several_pictures_is_refused(tmp_path, says):
    rows = [(0, sample(0)), (0, sample(1, pictures=pictures(2)))]
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0)
    table, meta = index.table, dict(index.meta)
    changes = FORGED[says](table["json_offset"].to_pylist())
    meta["version"] = changes.pop("version", 2)
    if again := changes.pop("repeat", 0):
        table = table.take([0, *[1] * again])
        if size := changes.pop("sizes", 0):
            meta["shards"] = [{**meta["shards"][0], "bytes": 1 << 40}]
            changes["image_size"] = [1, *[size] * again]
    for name, values in changes.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    StreamIndex(index.folder, table, meta).save()
    with pytest.raises(UserError, match=f"damaged: .*{says}"):
        StreamIndex.open(index.folder)


def test_a_record_and_its_place_in_the_index_must_agree_on_the_pictures(tmp_path):
    rows = [(0, sample(0)), (0, sample(1, pictures=pictures(2)))]
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0)
    forged = StreamIndex(index.folder, index.table.slice(0, 2), index.meta)
    (bad,) = only(Quarantined, ShardReader(forged).read([0, 1]))
    assert (bad.position, bad.reason) == (1, "json") and "asks for 2 pictures, 1 are there" in bad.detail


def test_pictures_that_are_too_many_or_too_large_together_are_refused_when_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SAMPLE", 300)
    with pytest.raises(UserError, match="has [0-9]* bytes; at most 300 are allowed"):
        write_stream(tmp_path / "s", [(0, sample(1, pictures=pictures(3)))], TASKS, test_sets(), seed=0)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has 65 pictures; at most 64"):
        write_stream(tmp_path / "s", [(0, sample(1, pictures=pictures(65)))], TASKS, test_sets(), seed=0)
    assert not (tmp_path / "s").exists()


# Streams of earlier releases


def test_a_stream_that_version_1_wrote_is_read_as_ever(tmp_path):
    """Written by the release before samples with several pictures (commit 70ec700)."""
    shutil.unpack_archive(Path(__file__).parents[1] / "data" / "stream-v1.tar.gz", tmp_path, filter="data")
    index = StreamIndex.open(tmp_path / "old")
    assert index.digest == "eae79d9c4b9609041a0a090490949eeacb42be1557352d8e044ce314f4e00ef3"
    assert index.eval_index().digest == "edd5111bb46167b6cbfe84d471ea19c129e5646c2e596010cbe21783cc974af8"
    rows = [sample(0), sample(1), sample(2, "shape", pictures=(Picture(picture(2, 8, "JPEG"), "jpg"),))]
    assert ShardReader(index).read(range(3)) == rows
    assert verify(tmp_path / "old").ok

    chunks = [(number // 2, one) for number, one in enumerate(rows)]
    again = write_stream(tmp_path / "new", chunks, TASKS, {task: [sample(9, task)] for task in TASKS}, seed=3)
    assert again.digest == index.digest
    for name in ("index.parquet", "shard-000000.tar", "eval/shard-000000.tar"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes() or name[0] == "i"


def test_others_shards_that_version_1_indexed_are_read_as_ever(tmp_path):
    shutil.unpack_archive(Path(__file__).parents[1] / "data" / "stream-v1.tar.gz", tmp_path, filter="data")
    index = StreamIndex.open(tmp_path / "others")
    assert index.digest == "cd0b36e8b9f33fb89fdbab6b7b05862eeb28b2b4bd8e2c725f78d23820a03de8"
    good, bad = ShardReader(index).read(range(2))
    assert isinstance(good, Sample) and (good.sample_id, good.pictures[0].ext, good.answer) == ("5", "jpg", "red")
    assert isinstance(bad, Quarantined) and bad.reason == "image"
    assert verify(tmp_path / "others").problems[0].reason == "image"
