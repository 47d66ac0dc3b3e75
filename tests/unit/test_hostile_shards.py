"""Shards and folders made to do harm: refused with the byte, and never followed, unpacked or waited for."""

from __future__ import annotations

import gzip
import io
import os
import resource
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import guarded, mend_tar
from streams import TASKS, only, pair, picture, raw_tar, sample, stream_samples, test_sets

from streamcvit.data import locations
from streamcvit.data.files import rows, taskrows
from streamcvit.data.files.tasks import read_rows
from streamcvit.data.sample import Quarantined, Sample, TaskSpec
from streamcvit.data.shards import tar as tarscan
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.groups import Group, scan_groups
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.tar import Fault, HashingStream
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError


def scan(data):
    return list(scan_groups(HashingStream(io.BytesIO(data)), "x.tar"))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return raw_tar(tmp_path_factory.mktemp("tar") / "x.tar", [*pair("a", 1), *pair("b", 2)]).read_bytes()


def test_a_flipped_bit_anywhere_in_a_header_is_noticed_or_means_the_same(good):
    for place in range(512):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        found = scan(bytes(bad))
        assert found == scan(good) or any(one.offset == 0 and one.fatal for one in only(Fault, found)), place


@pytest.mark.parametrize("size", [b"-0000000001\0", b"0000_000010\0", b"0x000000010\0", b"\x80" + bytes(10) + b"\x02"])
def test_sizes_that_are_no_octal_number_are_refused(good, size):
    bad = mend_tar(good[:124] + size + good[136:])
    (fault,) = scan(bad)
    assert fault.fatal and fault.reason == "header" and fault.offset == 0


def test_a_compressed_shard_is_refused_and_never_unpacked(tmp_path):
    path = tmp_path / "bomb.tar"
    with gzip.open(path, "wb") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="bomb.tar: it is packed with gzip .*gzip -dc"):
            index_shards([path], tmp_path / "i", TASKS)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_archives_inside_a_shard_are_left_alone(tmp_path):
    members = [("inner.tar", bytes(10_240)), ("inner.tar.gz", gzip.compress(bytes(1 << 20))), ("x.zip", b"PK\3\4")]
    shard = raw_tar(tmp_path / "x.tar", [*pair("a", 1), *members])
    with pytest.raises(UserError, match="2 samples cannot be used beside 1 good ones"):
        index_shards([shard], tmp_path, TASKS)
    index = index_shards([shard], tmp_path, TASKS, bad_share=1)
    assert (len(index), index.meta["n_faults"], index.meta["n_lost"]) == (1, 2, 2)  # one of each key
    assert {fault["reason"] for fault in index.meta["faults"]} == {"member"}


def test_a_shard_without_end_is_not_read_for_ever(tmp_path, monkeypatch, good):
    monkeypatch.setattr(tarscan, "MAX_SHARD", 1 << 20)
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(good)
        file.truncate(1 << 40)  # a sparse terabyte of zeros
    index = index_shards([tmp_path / "x.tar"], tmp_path, TASKS)
    assert len(index) == 2
    assert index.meta["shards"][0]["bytes"] <= 2 << 20
    monkeypatch.setattr(tarscan, "MAX_SHARD", 2048)
    with pytest.raises(UserError, match="x.tar: damaged: byte 2048: the shard is larger than 2048 bytes"):
        index_shards([tmp_path / "x.tar"], tmp_path, TASKS)


def test_a_header_of_many_records_is_not_parsed_for_hours(good, tmp_path):
    info = tarfile.TarInfo("pax")
    info.size, info.type = 8 << 20, b"x"
    shard = info.tobuf(tarfile.USTAR_FORMAT) + b"10 path=a\n" * (info.size // 10) + bytes(info.size % 10) + good
    with guarded(tmp_path, seconds=60):
        (fault,) = scan(shard)
    assert fault.fatal and "extension header of 8388608 bytes" in fault.detail


def test_a_hundred_thousand_members_are_scanned_in_little_memory_and_each_is_read_at_its_place(tmp_path):
    path, image = tmp_path / "x.tar", picture(1)
    with open(path, "wb") as file:
        for number in range(50_000):
            text = b'{"id": "s%d", "task": "colour", "question": "?", "instruction": "", "answers": ["red"]}' % number
            for name, data in ((f"{number}.json", text), (f"{number}.png", image)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
        file.write(bytes(1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(path, "rb") as file:
        found = sum(isinstance(one, Group) for one in scan_groups(HashingStream(file), "x.tar"))
    assert found == 50_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    index_shards([path], tmp_path, TASKS, samples_per_chunk=1000)
    index = StreamIndex.open(tmp_path)
    assert (len(index), index.n_chunks, index.meta["n_faults"]) == (50_000, 50, 0)
    places = [0, 49_999, *np.random.default_rng(0).integers(0, 50_000, 200).tolist()]
    read = only(Sample, ShardReader(index).read(places))
    os.remove(path)
    assert [one.sample_id for one in read] == [f"s{place}" for place in places]
    assert {one.pictures[0].data for one in read} == {image}


@pytest.mark.parametrize("data", [b"", bytes(512), b"\xff" * 512, b"x", bytes(511)])
def test_what_is_no_shard_at_all_is_named(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(UserError, match="x.tar: damaged: byte 0"):
        index_shards([tmp_path / "x.tar"], tmp_path / "i", TASKS)


def test_pipes_and_devices_are_no_shards_and_nobody_waits_for_them(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    for path in (tmp_path / "x.tar", "/dev/zero", tmp_path):
        with pytest.raises(UserError, match="no regular file"):
            index_shards([path], tmp_path / "i", TASKS)
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    os.remove(index.shards[0])
    os.mkfifo(index.shards[0])
    with pytest.raises(UserError, match="shard-000000.tar: .*no regular file"):
        ShardReader(index).read([0])


def test_a_disk_that_fails_while_a_shard_is_indexed_is_named_with_the_byte(tmp_path, monkeypatch, good):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() >= 1024:
                raise OSError(5, "Input/output error")
            return super().read(size)

    monkeypatch.setattr(locations, "open_binary", lambda _: Failing(good))
    with pytest.raises(UserError, match="x.tar: cannot be read on from byte 1024: Input/output error"):
        index_shards([tmp_path / "x.tar"], tmp_path / "i", TASKS)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.tar", "a/../../x.tar", "pipe:cat x", "file:///etc/passwd"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, name):
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    index.meta["shards"][0]["path"] = name
    StreamIndex(index.folder, index.table, index.meta).save()
    with pytest.raises(UserError, match="points out of its folder|no location"):
        StreamIndex.open(index.folder)


def test_an_index_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path):
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    table = pa.concat_tables([index.table] * 250)
    text = pa.DictionaryArray.from_arrays(np.zeros(len(table), dtype=np.int32), ["x" * 400_000])
    table = table.set_column(table.schema.get_field_index("sample_id"), "sample_id", text)
    pq.write_table(table, tmp_path / "s" / "index.parquet")
    assert os.path.getsize(tmp_path / "s" / "index.parquet") < 1 << 20
    with pytest.raises(UserError, match="column sample_id unpacks to more than an index may hold"):
        StreamIndex.open(index.folder)


def test_shards_of_one_name_from_several_folders_are_linked_apart(tmp_path):
    shards = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        shards.append(raw_tar(tmp_path / str(number) / "x.tar", pair("a", number)))
    index = index_shards(shards, tmp_path / "i", TASKS)
    assert [note["path"] for note in index.meta["shards"]] == ["x.tar", "2-x.tar", "3-x.tar"]
    assert ShardReader(StreamIndex.open(tmp_path / "i")).read(range(3)) == [sample(number) for number in range(3)]
    assert index_shards(shards, tmp_path / "i", TASKS).digest == index.digest


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\nb", ".hidden"])
def test_task_names_that_would_be_paths_are_refused(tmp_path, name):
    tasks = {name: TaskSpec(name, "exact", "single_word")}
    with pytest.raises(UserError, match="is no name of a task"):
        write_stream(tmp_path / "s", [(0, sample(1, name))], tasks, {name: [sample(2, name)]}, seed=0)


@pytest.mark.parametrize("letter", ["t", "\u8272", "\U0001d4e3"])
def test_a_task_name_is_as_long_as_its_files_name_may_be(tmp_path, letter):
    fits = letter * (128 // len(letter.encode()))
    for name in (fits, fits + letter):
        tasks, rows = {name: TaskSpec(name, "exact", "single_word")}, [(0, sample(1, name))]
        if name == fits:
            write_stream(tmp_path / "s", rows, tasks, {name: [sample(2, name)]}, seed=0)
            (tmp_path / f".{name}.parquet").touch()
            continue
        with pytest.raises(UserError, match="at most 128 are allowed"):
            write_stream(tmp_path / "t", rows, tasks, {name: [sample(2, name)]}, seed=0)


def test_a_record_of_another_task_than_its_place_is_quarantined(tmp_path):
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    table = index.table
    column = table.schema.get_field_index("task")
    names = ["shape", *table["task"].to_pylist()[1:]]
    forged = StreamIndex(index.folder, table.set_column(column, "task", [names]), index.meta)
    found = ShardReader(forged).read([0, 1])
    assert isinstance(found[0], Quarantined) and "of task 'colour'" in found[0].detail
    assert isinstance(found[1], Sample)


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_file_of_rows_that_is_a_pipe_is_refused_and_nobody_waits_for_it(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with guarded(tmp_path, seconds=20), pytest.raises(UserError, match=f"{name}: cannot be read: no regular file"):
        list(read_rows(tmp_path / name, "qa", "colour", tmp_path))


def test_a_file_of_rows_that_is_too_long_is_refused_unread(tmp_path):
    with open(tmp_path / "train.json", "wb") as file:
        file.truncate(rows.MAX_FILE + 1)  # sparse
    with pytest.raises(UserError, match="train.json: 2147483649 bytes; at most 2147483648 are read"):
        list(read_rows(tmp_path / "train.json", "qa", "colour", tmp_path))


def test_a_picture_that_is_a_pipe_is_quarantined_and_one_that_cannot_be_read_stops(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "x.jsonl").write_text('{"question_id": 1, "image": "a.png", "text": "What?", "answer": "red"}\n')
    (bad,) = read_rows(tmp_path / "x.jsonl", "qa", "colour", tmp_path)
    assert isinstance(bad, Quarantined) and bad.reason == "missing"

    plain = taskrows.open_regular

    def broken(path):
        if path.endswith("a.png"):
            raise OSError(5, "Input/output error")
        return plain(path)

    monkeypatch.setattr(taskrows, "open_regular", broken)
    with pytest.raises(UserError, match="a.png: the picture cannot be read: Input/output error"):
        list(read_rows(tmp_path / "x.jsonl", "qa", "colour", tmp_path))
