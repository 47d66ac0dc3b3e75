"""Shards as people write them: which members are a sample, what other tools' headers mean, and that nothing is lost
in silence."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from streams import TASKS, only, pair, picture, raw_tar, sample

from streamcvit.data.sample import PICTURE, Quarantined, Sample
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.groups import MAX_TOGETHER, scan_groups
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.records import Reading
from streamcvit.data.shards.tar import Fault, HashingStream
from streamcvit.data.verify import verify
from streamcvit.errors import UserError

ONE = {"colour": TASKS["colour"]}
NOT_ASKED = "is not asked for beside the others of its key"
NONE_OF = "is none of json, png, jpg, webp, gif, bmp; it is never read"


def groups(path: Path, record: str = "json", pictures: tuple[str, ...] = ()) -> list[str]:
    """What a shard's members make: `key: record + pictures`, or `reason: detail`."""
    with open(path, "rb") as file:
        found = list(scan_groups(HashingStream(file), "x.tar", record, pictures))
    return [
        f"{one.reason}: {one.detail}"
        if isinstance(one, Fault)
        else f"{one.key}: {' + '.join(member.ext for member in (one.record, *one.pictures))}"
        for one in found
    ]


def empty(*names: str) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    return [(name, b"") for name in names]


TOGETHER = {
    "one dot": (["a.json", "a.png", "b.json"], ["a: json + png", "b: json"]),
    "parts with names": (["7.input.jpg", "7.output.json"], ["7: output.json + input.jpg"]),
    "folders": (["v1.2/a.b/7.json", "v1.2/a.b/7.png", "./c/7.json"], ["v1.2/a.b/7: json + png", "c/7: json"]),
    "dotted keys": (
        ["scan 2.0.json", "scan 2.0.png", "scan 2.1.json", "scan 2.1.png"],
        ["scan 2.0: 0.json + 0.png", "scan 2.1: 1.json + 1.png"],
    ),
    "a dotted key alone": (["v1.2.json", "v1.2.png", "w.json"], ["v1.2: 2.json + 2.png", "w: json"]),
    "dotted keys come again": (
        ["v.2.json", "v.2.png", "w.json", "v.1.json", "v.1.png"],
        ["v.2: 2.json + 2.png", "w: json", "v.1: 1.json + 1.png"],
    ),
    "dotted keys of texts": (["v1.2.json", "v1.3.json"], ["v1.2: 2.json", "v1.3: 3.json"]),
    "several pictures by number": (
        ["7.0.png", "7.1.png", "7.10.png", "7.2.jpg", "7.json"],
        ["7: json + 0.png + 1.png + 2.jpg + 10.png"],
    ),
    "numbers behind words": (["7.view_10.png", "7.view_9.png", "7.json"], ["7: json + view_9.png + view_10.png"]),
    "others as they lie": (["7.right.png", "7.left.png", "7.json"], ["7: json + right.png + left.png"]),
    "records beside the record": (
        ["7.json", "7.meta.json", "7.png"],
        ["7: json + png", f"extra: member '7.meta.json' {NOT_ASKED}"],
    ),
    "the record's own picture": (
        ["v1.2.json", "v1.2.png", "v1.3.png"],
        ["v1.2: 2.json + 2.png", "incomplete: key 'v1.3' has no json"],
    ),
    "no record": (["7.png", "7.seg.png"], ["incomplete: key '7' has no json", "incomplete: key '7.seg' has no json"]),
    "no picture of its own": (
        ["7.in.json", "7.out.json", "7.png"],
        ["7.in: in.json", "7.out: out.json", "incomplete: key '7' has no json"],
    ),
    "dotted keys with several pictures, one and none": (
        ["v1.1.0.png", "v1.1.1.png", "v1.1.json", "v1.2.json", "v1.3.json", "v1.3.png"],
        ["v1.1: 1.json + 1.0.png + 1.1.png", "v1.2: 2.json", "v1.3: 3.json + 3.png"],
    ),
    "a dotted key alone with several pictures": (
        ["v1.1.left.png", "v1.1.right.png", "v1.1.json"],
        ["v1.1: 1.json + 1.left.png + 1.right.png"],
    ),
    "dotted keys and parts with names": (
        ["v1.1.in.png", "v1.1.out.json", "v1.2.in.png", "v1.2.out.json"],
        ["v1.1: 1.out.json + 1.in.png", "v1.2: 2.out.json + 2.in.png"],
    ),
    "capitals": (["a.JSON", "a.PNG"], ["a: json + png"]),
    "twice": (["a.json", "a.png", "a.png"], ["order: key 'a' has a second png", "a: json + png"]),
    "extra": (["a.cls", "a.json", "a.png"], ["a: json + png", f"extra: member 'a.cls' {NONE_OF}"]),
    "nothing that is read": (["a.npy", "a.pth"], [f"member: member 'a.npy' {NONE_OF}"]),
    "far apart": (
        ["a.json", "b.json", "a.png", "b.cls"],
        [
            "a: json",
            "b: json",
            "order: key 'a' comes again; its members must be adjacent",
            "extra: key 'b' comes again; its members must be adjacent",
        ],
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_members_that_belong_together_are_found_by_their_names(tmp_path, case):
    members, expected = TOGETHER[case]
    assert groups(raw_tar(tmp_path / "x.tar", empty(*members))) == expected


def test_named_members_are_the_pictures_in_the_order_they_are_named(tmp_path):
    members = empty("7.json", "7.jpg", "7.mask.png", "7.view_2.png", "7.view_1.png", "7.img")
    shard = raw_tar(tmp_path / "x.tar", members)
    found = groups(shard, pictures=("view_*.png", "jpg"))
    assert found[0] == "7: json + view_1.png + view_2.png + jpg"
    assert [line.partition(":")[0] for line in found[1:]] == ["extra", "extra"]
    assert groups(shard, pictures=("img",))[0] == "7: json + img"
    dotted = raw_tar(tmp_path / "y.tar", empty("v.1.json", "v.1.in.png", "v.1.mask.png", "v.2.json", "v.2.in.png"))
    assert groups(dotted, pictures=("in.*",))[0::2] == ["v.1: 1.json + 1.in.png", "v.2: 2.json + 2.in.png"]


@pytest.mark.parametrize(
    "names",
    [("json", "jpg"), ("0.png", "1.png", "10.png", "json"), ("in.png", "out.json"), ("json",), ("json", "9.jpg")],
)
def test_one_front_of_a_thousand_dotted_keys_is_parted_as_it_comes(tmp_path, names):
    members = [f"img.{n:04d}.{name}" for n in range(1000) for name in names]
    found = groups(raw_tar(tmp_path / "x.tar", empty(*members)))
    ordered = sorted(names, key=lambda name: not name.endswith("json"))
    assert found == [f"img.{n:04d}: " + " + ".join(f"{n:04d}.{name}" for name in ordered) for n in range(1000)]


def test_members_without_end_under_one_key_are_passed_over_and_counted(tmp_path):
    members = empty(*[f"a.{n}.png" for n in range(MAX_TOGETHER + 50)], "b.json", *["c.json"] * 600)
    found = groups(raw_tar(tmp_path / "x.tar", members))
    assert found[:2] == [
        f"incomplete: key 'a' has more than {MAX_TOGETHER} members; all of it is passed over",
        "b: json",
    ]
    assert found[2:] == [f"incomplete: key 'c' has more than {MAX_TOGETHER} members; all of it is passed over"]


# What other tools write


def info(name: str, **headers: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for header, value in headers.items():
        setattr(made, header, value)
    return made


def renamed(change) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    """Two samples whose members' headers are changed."""
    return [(change(info(str(name))), data) for name, data in [*pair("frame-0", 1), *pair("frame-1", 2)]]


def extended(**pax: str):
    def change(one: tarfile.TarInfo) -> tarfile.TarInfo:
        one.pax_headers = pax
        return one

    return change


LONG = "pictures/" + "a-rather-long-folder-name/" * 5
MAC = {"LIBARCHIVE.creationtime": "1700000000", "LIBARCHIVE.xattr.com.apple.provenance": "AQIA", "SCHILY.dev": "16777"}
TOOLS = {
    "gnu, long names": (renamed(lambda one: info(LONG + one.name)), tarfile.GNU_FORMAT),
    "pax, long names": (renamed(lambda one: info(LONG + one.name)), tarfile.PAX_FORMAT),
    "gnu, large ids": (renamed(lambda one: info(one.name, uid=30_000_000, gid=30_000_000)), tarfile.GNU_FORMAT),
    "pax, large ids": (renamed(lambda one: info(one.name, uid=30_000_000)), tarfile.PAX_FORMAT),
    "gnu, early times": (renamed(lambda one: info(one.name, mtime=-5)), tarfile.GNU_FORMAT),
    "pax, times": (renamed(lambda one: info(one.name, mtime=1.5, uname="jürgen")), tarfile.PAX_FORMAT),
    "macOS": (renamed(extended(**MAC, hdrcharset="BINARY")), tarfile.PAX_FORMAT),
    "selinux": (renamed(extended(**{"RHT.security.selinux": "x:y\n\0"})), tarfile.PAX_FORMAT),
    "Windows": (renamed(lambda one: info(f".\\pictures\\{one.name}")), tarfile.USTAR_FORMAT),
    "contiguous": (renamed(lambda one: info(one.name, type=tarfile.CONTTYPE)), tarfile.USTAR_FORMAT),
    "times in names": (renamed(lambda one: info(f"12:30 {one.name}")), tarfile.USTAR_FORMAT),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_headers_that_change_neither_name_nor_size_nor_kind_change_nothing(tmp_path, tool):
    members, format = TOOLS[tool]
    index = index_shards([raw_tar(tmp_path / "x.tar", members, format)], tmp_path, TASKS)
    assert ShardReader(index).read(range(2)) == [sample(1), sample(2)]
    assert verify(tmp_path).ok and index.meta["n_faults"] == 0


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar")
@pytest.mark.parametrize("format", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_all_formats_of_gnu_tar_are_read(tmp_path, format):
    folder = tmp_path / ("" if format == "v7" else LONG[:200])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in [*pair("a", 1), *pair("b", 2)]:
        (folder / str(name)).write_bytes(data)
    place = str(folder.relative_to(tmp_path))
    subprocess.run(
        ["tar", f"--format={format}", "--sort=name", "--exclude=x.tar", "-cf", "x.tar", place], cwd=tmp_path, check=True
    )
    index = index_shards([tmp_path / "x.tar"], tmp_path / "i", TASKS)
    assert ShardReader(index).read(range(2)) == [sample(1), sample(2)]


def test_what_macos_and_windows_put_beside_files_is_known_and_not_lost(tmp_path):
    litter = ["._a.json", "a/._b.png", ".DS_Store", "__MACOSX/._a.json", "Thumbs.db", "x/desktop.ini"]
    members = [*empty(*litter[:3]), pair("a", 1)[0], *empty(*litter[3:]), pair("a", 1)[1]]
    index = index_shards([raw_tar(tmp_path / "x.tar", members)], tmp_path, TASKS)
    assert ShardReader(index).read([0]) == [sample(1)]
    assert (index.meta["n_faults"], index.meta.get("n_lost", 0)) == (6, 0)
    assert verify(tmp_path).lines()[0] == "6 members passed over that no sample needs; the first:"


def test_names_in_an_old_encoding_keep_their_pairs(tmp_path):
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w", format=tarfile.GNU_FORMAT, encoding="cp1252") as tar:
        for name, data in [*pair("größe-1", 1), *pair("größe-2", 2)]:
            tar.addfile(info(str(name), size=len(data)), io.BytesIO(data))
    assert len(index_shards([shard], tmp_path, TASKS)) == 2


PACKED = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: b"\x28\xb5\x2f\xfd" + data,
    "lz4": lambda data: b"\x04\x22\x4d\x18" + data,
}


@pytest.mark.parametrize("tool", PACKED)
def test_a_packed_shard_is_refused_with_its_tool_however_small(tmp_path, tool):
    for data in (raw_tar(tmp_path / "x.tar", pair("a", 1)).read_bytes(), b"x"):
        (tmp_path / "y.tar").write_bytes(PACKED[tool](data))
        with pytest.raises(
            UserError, match=f"{tmp_path}/y.tar: it is packed with {tool} .*{tool} -dc.*Index the unpacked"
        ):
            index_shards([tmp_path / "y.tar"], tmp_path / "i", TASKS, keep_whole=True)


@pytest.mark.parametrize(("head", "kind"), [(b"PK\3\4", "a zip archive"), (b"PAR1", "a Parquet file")])
def test_what_is_no_tar_at_all_is_called_by_its_name(tmp_path, head, kind):
    (tmp_path / "y.tar").write_bytes(head + bytes(2000))
    with pytest.raises(UserError, match=f"y.tar: it is {kind}, no tar"):
        index_shards([tmp_path / "y.tar"], tmp_path / "i", TASKS)


def test_headers_that_would_move_what_follows_are_refused(tmp_path):
    def refused(members, says, **options):
        with pytest.raises(UserError, match=f"x.tar: damaged: byte [0-9]+: .*{says}"):
            with tarfile.open(tmp_path / "x.tar", "w", **options) as tar:
                for one, data in members:
                    one.size = len(data)
                    tar.addfile(one, io.BytesIO(data))
            index_shards([tmp_path / "x.tar"], tmp_path / "i", TASKS)

    refused(renamed(extended(size="999999")), "extension header sets 'size' to 999999; the header says", format=2)
    refused(renamed(extended(future="1")), "extension header sets 'future'", format=2)
    refused(renamed(lambda one: one), "extension header sets 'path'", format=2, pax_headers={"path": "x"})
    refused(renamed(lambda one: info(one.name, type=tarfile.GNUTYPE_SPARSE)), "a sparse file", format=1)


def test_sparse_members_and_members_of_another_drive_are_passed_over_and_named(tmp_path):
    odd = [
        (extended(**{"GNU.sparse.major": "1"})(info("s.json")), b"{}"),
        ("C:\\data\\x.json", b"{}"),
        ("..\\x.json", b"{}"),
        ("\\\\host\\x.json", b"{}"),
    ]
    good = [member for n in range(100) for member in pair(f"{n}", n)]
    index = index_shards([raw_tar(tmp_path / "x.tar", [*good, *odd], tarfile.PAX_FORMAT)], tmp_path, TASKS)
    assert (len(index), index.meta["n_lost"]) == (100, 4)
    details = [fault["detail"] for fault in index.meta["faults"]]
    assert "sparse file; pack it without --sparse" in details[0]
    assert all("points out of the shard" in detail for detail in details[1:])


def test_tars_that_were_put_together_with_cat_are_not_read_by_halves(tmp_path):
    one, two = (raw_tar(tmp_path / f"{n}.tar", pair(f"{n}", n)).read_bytes() for n in (1, 2))
    (tmp_path / "x.tar").write_bytes(one + two)
    with pytest.raises(UserError, match="x.tar: damaged: .*more follows behind the end-of-archive mark"):
        index_shards([tmp_path / "x.tar"], tmp_path / "i", TASKS)
    assert len(index_shards([tmp_path / "x.tar"], tmp_path / "i", TASKS, keep_whole=True)) == 1


# Nothing is lost in silence


def test_groups_that_are_passed_over_count_as_lost_are_shown_and_stop_past_the_share(tmp_path):
    good = [member for n in range(100) for member in pair(f"{n}", n)]
    bad = [("x.png", picture(1)), ("y.json", b"{}"), ("z.npy", b"1"), ("z.txt", b"1")]
    index = index_shards([raw_tar(tmp_path / "x.tar", [*good, *bad])], tmp_path, TASKS)
    assert (len(index), index.meta["n_lost"]) == (100, 3)
    lines = verify(tmp_path).lines()
    assert lines[0] == "3 lost when the shards were indexed: no samples, or members of none; the first:"
    assert [line.split(": ", 2)[2][:20] for line in lines[1:4]] == [
        "key 'x' has no json",
        "key 'y': key 'id' is",
        "member 'z.npy' is no",
    ]
    shard = raw_tar(tmp_path / "y.tar", [*good[:40], *bad])
    says = r"3 samples cannot be used beside 20 good ones \(1 incomplete, 1 json, 1 member\); the first: .*at most 5%"
    with pytest.raises(UserError, match=says):
        index_shards([shard], tmp_path / "i", TASKS)
    assert not (tmp_path / "i").exists()
    assert len(index_shards([shard], tmp_path / "i", TASKS, bad_share=0.2)) == 20


def test_pictures_that_do_not_decode_count_as_lost_but_keep_their_places(tmp_path):
    bad = [("x.json", sample(200).text_bytes()), ("x.png", picture(1)[:-30])]
    good = [member for n in range(30) for member in pair(f"{n}", n)]
    index = index_shards([raw_tar(tmp_path / "x.tar", [*bad, *good])], tmp_path, TASKS)
    assert (len(index), index.chunk_bounds(0)) == (31, (0, 31))
    assert only(Quarantined, ShardReader(index).read(range(31)))[0].position == 0
    with pytest.raises(
        UserError, match=r"1 samples cannot be used beside 5 good ones \(1 image\).*colour-200: the pict"
    ):
        index_shards([raw_tar(tmp_path / "y.tar", [*bad, *good[:10]])], tmp_path / "i", TASKS)


@pytest.mark.parametrize("members", [empty("._a.json"), empty("d/"), [(info("d", type=tarfile.DIRTYPE), b"")]])
def test_an_index_of_no_samples_is_an_error(tmp_path, members):
    with pytest.raises(UserError, match="x.tar: no samples in the shards"):
        index_shards([raw_tar(tmp_path / "x.tar", members)], tmp_path / "i", TASKS)


def test_a_record_without_a_picture_is_a_text_only_where_it_asks_for_none(tmp_path):
    talk = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "so"}]
    seen = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = [("a.json", json.dumps({"conversations": talk}).encode())]
    options = {"format": "llava", "task": "colour"}
    index = index_shards([raw_tar(tmp_path / "x.tar", rows)], tmp_path, TASKS, **options)
    (one,) = only(Sample, ShardReader(index).read([0]))
    assert (one.pictures, one.question, one.answers) == ((), "Why?", ("so",))
    for bad, says in (
        ([("b.json", json.dumps({"conversations": seen}).encode())], "key 'b' has no picture"),
        (
            [("b.json", json.dumps({"conversations": seen}).encode()), ("b.npy", b"1")],
            "no picture; member 'b.npy' is none",
        ),
        (
            [("b.json", json.dumps({"conversations": talk}).encode()), ("b.npy", b"1")],
            "no picture that is read; member",
        ),
        (
            [
                ("b.json", json.dumps({"conversations": seen}).encode()),
                ("b.jpg", picture(1)),
                ("b.seg.png", picture(2)),
            ],
            r"asks for 1 picture and has 2 \(jpg, seg.png\)",
        ),
    ):
        with pytest.raises(UserError, match=says):
            index_shards([raw_tar(tmp_path / "y.tar", bad)], tmp_path / "i", TASKS, **options)
    chosen = index_shards([tmp_path / "y.tar"], tmp_path / "i", TASKS, pictures=["jpg"], **options)
    assert only(Sample, ShardReader(chosen).read([0]))[0].pictures[0].data == picture(1)


def test_a_record_cut_from_its_pictures_is_not_taken_for_a_text(tmp_path):
    talk = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "so"}]
    rows = [(f"{n}.json", json.dumps({"conversations": talk}).encode()) for n in range(30)]
    shard = raw_tar(tmp_path / "x.tar", [*rows, ("30.json", rows[0][1]), ("30.png", picture(1))])
    with tarfile.open(shard) as tar:
        at = tar.getmembers()[-1].offset
    with open(shard, "r+b") as file:
        file.truncate(at)
    index = index_shards([shard], tmp_path, TASKS, format="llava", task="colour", keep_whole=True)
    assert len(index) == 30
    assert "may have lost members" in [fault["detail"] for fault in index.meta["faults"]][0]


def test_where_a_picture_lay_before_it_was_packed_says_nothing(tmp_path):
    seen = [{"from": "human", "value": "<image><image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = {"conversations": seen, "image": ["/data/coco/1.jpg", "https://host/2.jpg"]}
    parts = [{"type": "image_url", "image_url": {"url": "https://host/1.jpg"}}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "red"}]
    for format, row, count in (("llava", rows, 2), ("swift", {"messages": messages}, 1)):
        members = [("a.json", json.dumps(row).encode()), *[(f"a.{n}.png", picture(n)) for n in range(count)]]
        shard = raw_tar(tmp_path / f"{format}.tar", members)
        index = index_shards([shard], tmp_path / format, TASKS, format=format, task="colour")
        (one,) = only(Sample, ShardReader(StreamIndex.open(tmp_path / format)).read([0]))
        assert [each.data for each in one.pictures] == [picture(n) for n in range(count)]
        assert one.prompts[0] == PICTURE * count + "What?"
        assert index.pictures_of.tolist() == [count]


def test_the_kind_of_a_picture_is_that_of_its_content(tmp_path):
    members = []
    for place, (format, ending) in enumerate((("GIF", "jpg"), ("BMP", "png"), ("JPEG", "webp"), ("PNG", "JPEG"))):
        members += [(f"{place}.json", sample(place).text_bytes()), (f"{place}.{ending}", picture(place, format=format))]
    index = index_shards([raw_tar(tmp_path / "x.tar", members)], tmp_path, TASKS)
    read = only(Sample, ShardReader(index).read(range(4)))
    assert [one.pictures[0].ext for one in read] == ["gif", "bmp", "jpg", "png"]
    assert verify(tmp_path).ok


def test_a_picture_of_a_kind_that_is_not_read_is_named_and_counts(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TIFF")
    shard = raw_tar(tmp_path / "x.tar", [("a.json", sample(1).text_bytes()), ("a.tif", buffer.getvalue())])
    with pytest.raises(UserError, match=r"\(1 image\).*colour-1: the picture is a TIFF file"):
        index_shards([shard], tmp_path / "i", TASKS)


# What is asked, and of which task


def test_the_instruction_is_named_per_task_and_kept_with_the_index(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?\nOne word."}, {"from": "gpt", "value": "red"}]
    rows = [(f"{n}.json", json.dumps({"id": n, "conversations": turns}).encode()) for n in range(2)]
    members = [member for n, row in enumerate(rows) for member in (row, (f"{n}.png", picture(n)))]
    shard = raw_tar(tmp_path / "x.tar", members)
    options = {"format": "llava", "task": "colour"}
    plain = index_shards([shard], tmp_path / "plain", TASKS, **options)
    assert only(Sample, ShardReader(plain).read([0]))[0].instruction == ""
    readings = {"colour": Reading(instructions=("One word.",))}
    index_shards([shard], tmp_path / "named", TASKS, readings=readings, **options)
    named = StreamIndex.open(tmp_path / "named")
    (one,) = only(Sample, ShardReader(named).read([0]))
    assert (one.question, one.instruction, one.prompt) == ("What?", "One word.", "What?\nOne word.")
    assert named.digest != plain.digest
    drawn = {"colour": Reading(instructions=("A.", "B."), wording="drawn")}
    index = index_shards([shard], tmp_path / "drawn", TASKS, readings=drawn, **options)
    assert {one.instruction for one in only(Sample, ShardReader(index).read(range(2)))} <= {"A.", "B."}
    again = only(Sample, ShardReader(index).read(range(2)))
    assert again == only(Sample, ShardReader(StreamIndex.open(index.folder)).read(range(2)))


def labelled(path: Path, ending: str, labels: list[bytes]) -> Path:
    return raw_tar(
        path, [m for n, label in enumerate(labels) for m in ((f"{n}.jpg", picture(n)), (f"{n}.{ending}", label))]
    )


def test_captions_are_answers_to_the_tasks_question(tmp_path):
    shard = labelled(tmp_path / "x.tar", "txt", [b"\xef\xbb\xbfa red car\n", "größe".encode()])
    readings = {"colour": Reading(question="Describe it.", instruction="In a few words.")}
    index_shards([shard], tmp_path / "i", ONE, format="txt", task="colour", readings=readings)
    index = StreamIndex.open(tmp_path / "i")
    one, two = only(Sample, ShardReader(index).read(range(2)))
    assert (one.question, one.instruction, one.answers) == ("Describe it.", "In a few words.", ("a red car",))
    assert (two.answers, two.task, two.pictures[0].data) == (("größe",), "colour", picture(1))
    assert verify(index.folder).ok


def test_class_numbers_are_named_where_there_are_names(tmp_path):
    shard = labelled(tmp_path / "x.tar", "cls", [b"1", b"0\n", b"1"])
    for classes, answers in (("cat", "dog"), ["dog", "cat", "dog"]), ((), ["1", "0", "1"]):
        readings = {"colour": Reading(question="What is it?", classes=tuple(classes))}
        index = index_shards([shard], tmp_path / str(len(classes)), ONE, format="cls", task="colour", readings=readings)
        assert [one.answer for one in only(Sample, ShardReader(index).read(range(3)))] == answers


@pytest.mark.parametrize(
    ("format", "label", "classes", "says"),
    [
        ("cls", b"2", ("a", "b"), "the label is class 2; there are names of 2"),
        ("cls", b"-1", (), "'-1' is no number of a class"),
        ("cls", b"cat", (), "'cat' is no number of a class"),
        ("txt", b" \n", (), "the label is empty"),
        ("txt", b"\xff\xfe", (), "is not UTF-8"),
        ("txt", b"cow", ("cat", "dog"), "'cow' is none of the 2 classes"),
        ("txt", b"x" * (1 << 21), (), "2097152 bytes; at most 1048576"),
    ],
)
def test_labels_that_are_none_are_lost_with_their_reason(tmp_path, format, label, classes, says):
    shard = labelled(tmp_path / "x.tar", format, [label])
    readings = {"colour": Reading(question="What?", classes=classes)}
    with pytest.raises(UserError, match=rf"\(1 label\).*{says}"):
        index_shards([shard], tmp_path / "i", ONE, format=format, task="colour", readings=readings)


def test_what_cannot_be_asked_is_said_before_a_shard_is_opened(tmp_path):
    missing = [tmp_path / "missing.tar"]
    for options, says in (
        ({"format": "cls"}, "task 'colour': format cls holds answers alone; say what is asked"),
        ({"format": "llava", "readings": {"colour": Reading(question="What?")}}, "are for the formats txt, cls"),
        ({"readings": {"smell": Reading()}}, "there is no task 'smell'"),
        ({"format": "coco"}, "unknown format 'coco'. Choose one of streamcvit, llava"),
        ({"readings": {"colour": Reading(wording="drawn")}}, "no instruction wordings are listed"),
        ({"task": ["a", "b"]}, "2 tasks are named for 1 shards"),
        ({"test_shards": missing, "test_samples": 3}, "both drawn and given"),
    ):
        with pytest.raises(UserError, match=says):
            index_shards(missing, tmp_path / "i", TASKS, **options)
    with pytest.raises(UserError, match="no shards are given"):
        index_shards([], tmp_path / "i", TASKS)


def test_samples_that_name_no_task_say_how_to_name_it(tmp_path):
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "so"}]
    shard = raw_tar(tmp_path / "x.tar", [("a.json", json.dumps({"conversations": turns}).encode())])
    with pytest.raises(UserError, match=r"\(1 task\).*key 'a' names no task.*--task"):
        index_shards([shard], tmp_path / "i", TASKS, format="llava")
    other = raw_tar(tmp_path / "y.tar", [("b.json", json.dumps({"conversations": turns}).encode())])
    index = index_shards([shard, other], tmp_path / "i", TASKS, format="llava", task=["shape", "colour"])
    assert index.task_of.tolist() == ["shape", "colour"]
    assert ShardReader(index).read([1]) == ShardReader(StreamIndex.open(index.folder)).read([1])


@pytest.mark.parametrize("inside", [True, False])
def test_test_samples_are_drawn_by_the_seed_and_taken_out_of_the_stream(tmp_path, inside):
    shards = []
    for number in range(3):
        members = []
        for n in range(20):
            one = sample(100 * number + n, ("colour", "shape")[n % 2])
            members += [(f"{n}.json", one.text_bytes()), (f"{n}.png", one.pictures[0].data)]
        shards.append(raw_tar(tmp_path / f"{number}.tar", members))
    folder = tmp_path if inside else tmp_path / "i"
    index = index_shards(shards, folder, TASKS, test_samples=5, seed=3)
    tests = StreamIndex.open(folder).eval_index()
    assert (len(index), len(tests), tests.task_of.tolist()) == (50, 10, ["colour"] * 5 + ["shape"] * 5)
    assert index.n_chunks == 3 and sum(stop - start for start, stop in map(index.chunk_bounds, range(3))) == 50
    assert not set(index.sample_id_of) & set(tests.sample_id_of)
    assert len(only(Sample, ShardReader(tests).read(range(10)))) == 10
    assert len(only(Sample, ShardReader(StreamIndex.open(folder)).read(range(50)))) == 50
    assert verify(folder).ok
    assert index_shards(shards, tmp_path / "again", TASKS, test_samples=5, seed=3).digest == index.digest
    assert index_shards(shards, tmp_path / "other", TASKS, test_samples=5, seed=4).digest != index.digest
    with pytest.raises(UserError, match="task 'colour' has 30 samples, of which 30 shall be test samples"):
        index_shards(shards, tmp_path / "all", TASKS, test_samples=30)


# The cases from the field


@pytest.mark.parametrize(
    ("shard", "count"),
    [
        ("10-dots-in-member-names/dotted-key.tar", 2),
        ("10-dots-in-member-names/named-parts.tar", 2),
        ("10-dots-in-member-names/mixed.tar", 4),
        ("11-tars-of-other-tools/gnu-long-names.tar", 2),
        ("11-tars-of-other-tools/pax-long-names.tar", 2),
        ("11-tars-of-other-tools/mac.tar", 2),
        ("11-tars-of-other-tools/big-uid.tar", 2),
        ("11-tars-of-other-tools/float-mtime.tar", 2),
    ],
)
def test_tars_from_the_field_are_read(shared_dir, tmp_path, shard, count):
    index = index_shards([shared_dir / "cases" / shard], tmp_path, TASKS)
    assert len(only(Sample, ShardReader(index).read(range(len(index))))) == count
    assert verify(tmp_path).ok


@pytest.mark.parametrize("name", ["packed.tar.gz", "packed-named-tar.tar"])
def test_packed_tars_from_the_field_are_named(shared_dir, tmp_path, name):
    with pytest.raises(UserError, match="it is packed with gzip"):
        index_shards([shared_dir / "cases" / "11-tars-of-other-tools" / name], tmp_path, TASKS)
