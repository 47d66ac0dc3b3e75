"""The index of a stream: opening, asking, and indexing the shards of others."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from streams import TASKS, only, pair, picture, raw_tar, sample, stream_samples, test_sets

from streamcvit.data.sample import Sample
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import write_stream
from streamcvit.data.verify import verify
from streamcvit.errors import UserError


@pytest.fixture
def index(tmp_path):
    return write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=5, samples_per_shard=15)


def test_an_opened_index_says_what_the_written_one_said(index):
    opened = StreamIndex.open(index.folder)
    assert opened.digest == index.digest
    assert (len(opened), opened.n_chunks, opened.meta["seed"]) == (40, 4, 5)
    assert opened.tasks == TASKS
    assert [opened.chunk_bounds(chunk) for chunk in range(4)] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert [opened.seen_tasks(chunk) for chunk in range(4)] == [["colour"], ["colour"], *[["colour", "shape"]] * 2]
    assert opened.sample_id_of[:2].tolist() == ["colour-0", "colour-1"]
    assert opened.task_of[20:22].tolist() == ["colour", "shape"]
    assert pickle.loads(pickle.dumps(opened)).digest == index.digest


def test_the_file_is_parquet_that_anyone_reads(index):
    table = pq.read_table(f"{index.folder}/index.parquet")
    meta = json.loads(table.schema.metadata[b"streamcvit"])
    assert table["position"].to_pylist() == list(range(40))
    row = table.slice(7, 1).to_pylist()[0]
    with open(f"{index.folder}/{meta['shards'][row['shard']]['path']}", "rb") as shard:
        shard.seek(row["json_offset"])
        assert json.loads(shard.read(row["json_size"]))["id"] == row["sample_id"] == "colour-7"
    assert meta["plan"] == {"tasks": ["colour", "shape"], "chunks": [[10, 0], [10, 0], [5, 5], [5, 5]]}


def test_an_empty_chunk_keeps_its_number(tmp_path):
    rows = [(0, sample(0)), (2, sample(1))]
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0)
    assert [index.chunk_bounds(chunk) for chunk in range(index.n_chunks)] == [(0, 1), (1, 1), (1, 2)]
    with pytest.raises(UserError, match="no chunk 3"):
        index.chunk_bounds(3)


def test_a_shard_without_samples_is_an_empty_chunk_wherever_it_stands(tmp_path):
    empty = [("left.tmp/", b"")]
    shards = [raw_tar(tmp_path / f"{n}.tar", pair("a", n) if n in (1, 3) else empty) for n in range(5)]
    index = index_shards(shards, tmp_path / "i", TASKS)
    assert [index.chunk_bounds(chunk) for chunk in range(index.n_chunks)] == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]


def test_the_digest_does_not_depend_on_where_the_folder_lies(index, tmp_path):
    shutil.move(index.folder, tmp_path / "elsewhere")
    moved = StreamIndex.open(tmp_path / "elsewhere")
    assert moved.digest == index.digest
    assert isinstance(ShardReader(moved).read([39])[0], Sample)


def test_a_missing_index_is_named_with_a_fix(tmp_path):
    with pytest.raises(UserError, match="index.parquet is missing.*Write the stream again"):
        StreamIndex.open(tmp_path)


def test_an_index_damaged_anywhere_is_refused(index):
    path = f"{index.folder}/index.parquet"
    with open(path, "rb") as file:
        good = file.read()
    for place in range(0, len(good), 97):
        with open(path, "wb") as file:
            file.write(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            opened = StreamIndex.open(index.folder)
        except UserError as fault:
            assert "damaged" in str(fault) or "version" in str(fault)
        else:  # a byte that carries nothing, such as padding
            assert opened.digest == index.digest
            assert opened.table.equals(index.table)
    with open(path, "wb") as file:
        file.write(good[: len(good) // 2])
    with pytest.raises(UserError, match="damaged"):
        StreamIndex.open(index.folder)


def test_test_sets_that_were_exchanged_are_refused(index, tmp_path):
    other = write_stream(tmp_path / "other", stream_samples(), TASKS, test_sets(5), seed=5)
    shutil.rmtree(f"{index.folder}/eval")
    with pytest.raises(UserError, match="missing"):
        index.eval_index()
    shutil.copytree(f"{other.folder}/eval", f"{index.folder}/eval")
    with pytest.raises(UserError, match="not those the stream was written with"):
        index.eval_index()


@pytest.mark.parametrize(
    "path", ["pipe:cat /etc/passwd", "file::simplecache://x", "ftp://host/a.tar", "s3:bucket/a.tar"]
)
def test_locations_that_run_something_are_refused(tmp_path, path):
    with pytest.raises(UserError, match="location|neither a path nor a URL"):
        index_shards([path], tmp_path, TASKS)
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_points_out_of_its_folder_is_refused(index):
    index.meta["shards"][0]["path"] = "../../secret.tar"
    StreamIndex(index.folder, index.table, index.meta).save()
    with pytest.raises(UserError, match="points out of its folder"):
        ShardReader(StreamIndex.open(index.folder))


# Shards of others


def test_shards_written_by_webdataset_are_indexed_where_they_lie(tmp_path):
    import webdataset as wds

    with wds.ShardWriter(str(tmp_path / "w-%03d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            one = sample(number)
            writer.write(
                {"__key__": f"a/b/{number:03d}", "json": one.text_bytes(), "png": one.pictures[0].data, "cls": b"3"}
            )
    shards = sorted(tmp_path.glob("w-*.tar"))
    index = index_shards(shards, tmp_path / "i", TASKS)
    assert [one.question for one in only(Sample, ShardReader(index).read(range(10)))] == [
        sample(n).question for n in range(10)
    ]
    assert [index.chunk_bounds(chunk) for chunk in range(3)] == [(0, 4), (4, 8), (8, 10)]
    assert (index.meta["n_faults"], index.meta["faults"][0]["reason"]) == (10, "extra")  # `.cls` is never read


def test_ids_that_come_again_in_shards_are_numbered(tmp_path):
    members = [("a.json", sample(1).text_bytes()), ("a.png", picture(1)), *pair("b", 1), *pair("c", 2)]
    index = index_shards([raw_tar(tmp_path / "x.tar", members)], tmp_path, TASKS)
    names = ["colour-1", "colour-1#2", "colour-2"]
    assert index.sample_id_of.tolist() == names
    assert [one.sample_id for one in ShardReader(index).read(range(3))] == names


def test_shards_of_another_kind_are_refused_with_the_first_fault(tmp_path):
    members = [(f"{number}.{ext}", picture(1)) for number in range(4) for ext in ("png", "cls")]
    with pytest.raises(
        UserError, match="x.tar: 4 samples cannot be used beside 0 good ones.*byte 0: key '0' has no json"
    ):
        index_shards([raw_tar(tmp_path / "x.tar", members)], tmp_path, TASKS)


def test_conversations_in_shards_become_samples(tmp_path):
    rows = []
    for number in range(6):
        turns = [{"from": "human", "value": f"<image>\nWhat {number}?\nOne word."}, {"from": "gpt", "value": "red"}]
        rows += [
            (f"./dir.v1/{number}.json", json.dumps({"id": number, "conversations": turns}).encode()),
            (f"./dir.v1/{number}.jpeg", picture(number, format="JPEG")),
        ]
    folder = tarfile.TarInfo("./dir.v1")
    folder.type = tarfile.DIRTYPE
    shard = raw_tar(tmp_path / "x.tar", [(folder, b""), *rows], tarfile.GNU_FORMAT)
    index = index_shards([shard], tmp_path, TASKS, format="llava", task="colour", samples_per_chunk=4)
    assert [index.chunk_bounds(chunk) for chunk in range(2)] == [(0, 4), (4, 6)]
    (one,) = only(Sample, ShardReader(index).read([5]))
    assert (one.sample_id, one.task, one.pictures[0].ext) == ("5", "colour", "jpg")
    assert (one.question, one.instruction, one.answers) == ("What 5?\nOne word.", "", ("red",))
    assert StreamIndex.open(tmp_path).digest == index.digest
    assert verify(tmp_path).ok


def whole(keys=40):
    return [member for number in range(keys) for member in pair(f"{number:03d}", number)]


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


HOSTILE = {
    "points out of the shard": ("../../etc/cron.json", b"{}"),
    "member '/etc/passwd.json' points out": ("/etc/passwd.json", b"{}"),
    "is a symbolic link": link("x.json", tarfile.SYMTYPE, "/etc/passwd"),
    "is a hard link": link("x.png", tarfile.LNKTYPE, "000.png"),
    "is a device": link("x.json", tarfile.CHRTYPE, ""),
    "is a pipe": link("x.json", tarfile.FIFOTYPE, ""),
    "member 'x.pickle' is none of": ("x.pickle", pickle.dumps(print)),
    "member 'x.pth' is none of": ("x.pth", b"PK"),
    "member 'x.pyd' is none of": ("x.pyd", pickle.dumps(print)),
    "member 'x.json.gz' is none of": ("x.json.gz", b"\x1f\x8b"),
    "member 'x' is none of": ("x", b"data"),
    "member '.json' is none of": (".json", b"{}"),
    "key '000' comes again": ("000.txt", b"late"),
    "has no json": ("x.png", b"data"),
    "has no picture": ("x.json", sample(9).text_bytes()),
}


@pytest.mark.parametrize("says", HOSTILE)
def test_hostile_members_are_reported_with_their_byte_and_never_read(tmp_path, monkeypatch, says):
    members = whole()
    members.insert(30, HOSTILE[says])
    shard = raw_tar(tmp_path / "x.tar", members)
    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("unpickled"))
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    index = index_shards([shard], tmp_path / "i", TASKS)
    assert len(index) == 40
    (fault,) = index.meta["faults"]
    assert says in fault["detail"]
    with tarfile.open(shard) as tar:
        assert fault["offset"] == tar.getmembers()[30].offset
    assert all(isinstance(one, Sample) for one in ShardReader(index).read(range(40)))
    report = verify(tmp_path / "i")
    assert report.ok
    assert len(report.known) == 1


def test_a_renaming_extension_header_is_checked_like_a_name(tmp_path):
    long = tarfile.TarInfo("../" + "x" * 120 + ".json")
    members = [*whole(), (long, b"{}")]
    index = index_shards([raw_tar(tmp_path / "x.tar", members, tarfile.PAX_FORMAT)], tmp_path, TASKS)
    assert "points out of the shard" in index.meta["faults"][0]["detail"]
    sized = tarfile.TarInfo("y.json")
    sized.pax_headers = {"size": "999999"}
    shard = raw_tar(tmp_path / "y.tar", [*whole(), (sized, b"{}")], tarfile.PAX_FORMAT)
    with pytest.raises(UserError, match="extension header sets 'size'"):
        index_shards([shard], tmp_path, TASKS)


def test_a_bad_record_is_left_out_and_reported(tmp_path):
    members = [*whole(), ("z.json", b'{"id": 1}'), ("z.png", picture(1))]
    index = index_shards([raw_tar(tmp_path / "x.tar", members)], tmp_path, TASKS)
    assert len(index) == 40
    assert index.meta["faults"][0]["reason"] == "json"


def damage(shard, kind):
    """Damage the shard at the header of its 21st member; returns the byte."""
    with tarfile.open(shard) as tar:
        at = tar.getmembers()[20].offset
    with open(shard, "r+b") as file:
        file.seek(at)
        if kind == "cut in a member":
            file.truncate(at + 600)
        elif kind == "cut between members":
            file.truncate(at)
        elif kind == "zeroed":
            file.write(bytes(512))
        else:
            file.write(b"\xff" * 40)
    return at


@pytest.mark.parametrize("kind", ["cut in a member", "cut between members", "zeroed", "overwritten"])
def test_damaged_shards_are_refused_with_the_byte_or_kept_up_to_it(tmp_path, kind):
    shard = raw_tar(tmp_path / "x.tar", whole())
    at = damage(shard, kind)
    with pytest.raises(UserError, match=f"x.tar: damaged: byte {at}: .*10 whole samples"):
        index_shards([shard], tmp_path / "i", TASKS)
    index = index_shards([shard], tmp_path / "i", TASKS, keep_whole=True)
    assert len(index) == 10
    assert all(isinstance(one, Sample) for one in ShardReader(index).read(range(10)))


@pytest.mark.parametrize("kind", ["cut in a member", "cut between members", "zeroed", "overwritten"])
def test_damage_after_writing_is_found_and_its_samples_counted(index, kind):
    assert verify(index.folder).ok
    at = damage(index.shards[1], kind)
    report = verify(index.folder)
    assert not report.ok
    assert any(fault.shard == "shard-000001.tar" and fault.offset == at for fault in report.problems)
    # A cut loses what comes after it; a damaged header hides nothing from the index.
    assert report.unreadable == (5 if kind.startswith("cut") else 0)
    assert "shard-000001.tar" in report.lines()[0]


def test_a_lost_shard_is_one_problem_and_all_its_samples(index):
    os.remove(index.shards[0])
    report = verify(index.folder)
    assert ([fault.reason for fault in report.problems], report.unreadable) == (["missing"], 15)
    assert report.lines()[-1].endswith("1 problems, 15 samples unreadable")


def test_random_damage_never_crashes_the_scan(tmp_path):
    good = raw_tar(tmp_path / "x.tar", whole(6)).read_bytes()
    rng = np.random.default_rng(0)
    for turn in range(60):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 8):
            bad[place] = rng.integers(0, 256)
        path = tmp_path / f"{turn}.tar"
        path.write_bytes(bad[: rng.integers(1, len(bad))])
        try:
            index = index_shards([path], tmp_path / "i", TASKS, keep_whole=True)
        except UserError:
            continue
        assert len(ShardReader(index).read(range(len(index)))) == len(index)
