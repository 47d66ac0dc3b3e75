"""Shards behind HTTP and on S3: only needed ranges come, faults of the way are tried again, wrong bytes never pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from streams import TASKS, stream_samples, test_sets
from webserver import serving, storing

from streamcvit.data import locations
from streamcvit.data.sample import Sample
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import write_stream
from streamcvit.data.verify import verify
from streamcvit.errors import UserError
from streamcvit.pipeline import load_config

ROWS = [one for _, one in stream_samples()]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    return write_stream(folder / "s", stream_samples(), TASKS, test_sets(), seed=0, samples_per_shard=15)


@pytest.fixture(params=["http", "s3"])
def site(request, written, monkeypatch):
    monkeypatch.setattr(locations, "WAITS", (0.01, 0.01, 0.01))
    locations._http_options.cache_clear()
    folder = Path(written.folder)
    with serving(folder) if request.param == "http" else storing(folder, monkeypatch) as site:
        yield site
    locations._http_options.cache_clear()


def shards_asked(site):
    return [one for one in site.asked if one[0].endswith(".tar")]


def test_only_the_ranges_that_are_needed_come_and_neighbours_come_at_once(site, written):
    reader = ShardReader(StreamIndex.open(site.url))
    assert reader.read(range(4, 12)) == ROWS[4:12]
    first, last = (
        written.column("json_offset")[4],
        written.column("image_offset")[11] + written.column("image_size")[11],
    )
    assert shards_asked(site) == [("shard-000000.tar", first, last)]
    site.asked.clear()
    assert reader.read([39, 0, 17, 1]) == [ROWS[place] for place in (39, 0, 17, 1)]
    assert [name for name, *_ in shards_asked(site)] == [f"shard-00000{n}.tar" for n in range(3)]
    assert sum(stop - start for _, start, stop in shards_asked(site)) < 8192


@pytest.mark.parametrize("site", ["http"], indirect=True)
def test_the_pauses_between_attempts_grow(site, monkeypatch):
    reader, slept = ShardReader(StreamIndex.open(site.url)), []
    monkeypatch.setattr(locations, "WAITS", (0.1, 0.5, 2.0, 5.0))
    monkeypatch.setattr(locations.time, "sleep", slept.append)
    site.always = "503"
    with pytest.raises(UserError, match="503"):
        reader.read([3])
    assert slept == [0.1, 0.5, 2.0, 5.0]


def test_an_index_on_the_web_is_the_index(site, written):
    remote = StreamIndex.open(site.url)
    assert remote.digest == written.digest
    test = remote.eval_index()
    assert ShardReader(test).read(range(6)) == [one for task in TASKS for one in test_sets()[task]]


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "short", "wrong", "whole", "page", "redirect"])
def test_what_goes_wrong_on_the_way_is_tried_again(site, fault):
    reader = ShardReader(StreamIndex.open(site.url))
    site.faults.extend([fault, fault])
    assert reader.read([3, 20]) == [ROWS[3], ROWS[20]]
    assert not site.faults


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("503", "503|Service Unavailable"),
        ("reset", "disconnected|reset|was closed"),
        ("cut", "not completed|payload"),
        ("short", "bytes came instead of"),
        ("wrong", "not those that were indexed"),
        ("whole", "bytes came instead of"),
        ("page", "bytes came instead of"),
        ("redirect", "file:|redirect"),
        ("gone", "no such file"),
    ],
)
def test_what_stays_wrong_stops_with_the_shards_name_and_quarantines_nothing(site, fault, says):
    reader = ShardReader(StreamIndex.open(site.url))
    site.always = fault
    with pytest.raises(UserError, match=f"(?is){site.url}/shard-000001.tar: .*({says})"):
        reader.read([20])
    site.always = ""
    assert reader.read([20]) == [ROWS[20]]


def test_a_server_that_falls_silent_is_given_up(site, monkeypatch):
    monkeypatch.setattr(locations, "_PAUSE", 0.2)
    reader = ShardReader(StreamIndex.open(site.url))
    site.faults.append("slow")
    assert reader.read([5]) == [ROWS[5]]
    site.always = "slow"
    with pytest.raises(UserError, match="shard-000000.tar: .*Timeout"):
        reader.read([5])


@pytest.mark.parametrize("site", ["http"], indirect=True)
def test_an_answer_without_end_is_cut_off(site, monkeypatch):
    monkeypatch.setattr(locations, "MAX_RESPONSE", 4096)
    site.always = "whole"
    index = index_of(site, monkeypatch)
    with pytest.raises(UserError, match="shard-000000.tar: .*larger than 4096 bytes"):
        ShardReader(index).read([0])


def index_of(site, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(locations, "MAX_RESPONSE", 1 << 20)
        return StreamIndex.open(site.url)


@pytest.mark.parametrize("site", ["http"], indirect=True)
def test_answers_are_never_unpacked(site):
    site.always = "packed"
    assert ShardReader(StreamIndex.open(site.url)).read([2]) == [ROWS[2]]


def test_shards_on_the_web_are_indexed_from_here(site, tmp_path, written):
    urls = [f"{site.url}/shard-00000{number}.tar" for number in range(3)]
    site.faults.extend(["503", "cut", "short"])
    index = index_shards(urls, tmp_path, TASKS, samples_per_chunk=10)
    assert [note["sha256"] for note in index.meta["shards"]] == [note["sha256"] for note in written.meta["shards"]]
    assert ShardReader(StreamIndex.open(tmp_path)).read(range(40)) == ROWS


def test_an_index_is_copied_and_its_shards_stay_where_they_are(site, tmp_path, written):
    copy = StreamIndex.open(site.url).copy_to(tmp_path / "stream")
    assert sorted(path.name for path in (tmp_path / "stream").rglob("*") if path.is_file()) == ["index.parquet"] * 2
    opened = StreamIndex.open(tmp_path / "stream")
    assert opened.digest == copy.digest == written.digest
    assert opened.shards[0] == f"{site.url}/shard-000000.tar"
    assert isinstance(ShardReader(opened.eval_index()).read([0])[0], Sample)
    StreamIndex.open(site.url).copy_to(tmp_path / "stream")
    other = write_stream(tmp_path / "other", stream_samples(20), TASKS, test_sets(), seed=0)
    with pytest.raises(UserError, match="another stream"):
        StreamIndex.open(site.url).copy_to(other.folder)


@pytest.mark.parametrize("site", ["http"], indirect=True)
@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../other/shard.tar",
        "http://127.0.0.1:1/x.tar",
        "file:///etc/passwd",
        "%2e%2e/secret/x.tar",
        "..%2fsecret/x.tar",
        "..\\secret\\x.tar",
        ".\t./secret/x.tar",
        "shard-000000.tar?token=1",
        "shard-000000.tar#y",
    ],
)
def test_an_index_on_the_web_cannot_lead_elsewhere(site, written, tmp_path, name):
    written.meta["shards"][0]["path"], kept = name, written.meta["shards"][0]["path"]
    StreamIndex(tmp_path, written.table, written.meta).save()
    written.meta["shards"][0]["path"] = kept
    with serving(tmp_path) as evil, pytest.raises(UserError, match="points out of its folder|no location"):
        StreamIndex.open(evil.url)


@pytest.mark.parametrize("folder", ["http://h/stream", "s3://bucket/stream", "hf://datasets/a/b"])
def test_names_that_a_client_would_read_differently_are_for_local_folders_only(folder):
    for name in ("50%.tar", "a?b.tar", "a#b.tar", "a\\b.tar"):
        assert locations.join("stream", name) == f"stream/{name}"
        with pytest.raises(UserError, match="points out of its folder"):
            locations.join(folder, name)
    assert locations.join(folder, "a b/c@d+e.tar") == f"{folder}/a b/c@d+e.tar"


SECRETS = [
    "http://alice:hunter2@host/stream",
    "https://hunter2@host/stream",
    "http://alice:hun/ter2@host/stream",
    "http://alice:hun?ter2@host/stream",
    "http:alice:hunter2@host/stream",
    "http://alice::hunter2@host/stream",
    "ftp://alice:hunter2@host/stream",
    "s3://AKIA:hun/ter2@bucket/stream",
    "https://host/stream?X-Amz-Signature=hunter2",
    "s3://bucket/stream#hunter2",
]


@pytest.mark.parametrize("location", SECRETS)
def test_a_location_with_a_password_or_a_token_is_refused_and_never_repeated(location, tmp_path):
    entrances = [
        lambda: StreamIndex.open(location),
        lambda: ShardReader(StreamIndex.open(location)),
        lambda: verify(location),
        lambda: locations.ByteSource(location),
        lambda: locations.open_binary(location),
        lambda: index_shards([location], tmp_path, TASKS),
        lambda: load_config(None, ["stream.source=shards", f"stream.data={location}"], name="x"),
    ]
    for enter in entrances:
        with pytest.raises(UserError) as caught:
            enter()
        assert not any(part in str(caught.value) for part in ("hunter2", "ter2", "hun/", "alice:hun"))
    if location.startswith(("http://", "https://")) and "::" not in location:
        assert "~/.netrc" in str(caught.value)
    if location.startswith("s3://"):
        assert "~/.aws/credentials" in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:80/s",
        "https://host/a%20b@c",
        "abfs://container@account.dfs.core.windows.net/s",
        "s3://arn:aws:s3:us-west-2:123:accesspoint/s",
        "hf://datasets/a/b@main/s",
        "here/what?#no",
    ],
)
def test_what_is_no_login_is_let_through(location):
    assert locations.check_location(location) == location


@pytest.mark.parametrize("site", ["http"], indirect=True)
def test_logins_of_web_servers_come_from_netrc_and_are_written_nowhere(site, tmp_path, monkeypatch):
    site.login = "alice:hunter2"
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="index.parquet: cannot be read: .*401"):
        StreamIndex.open(site.url)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login alice password hunter2\n")
    index = StreamIndex.open(site.url).copy_to(tmp_path / "stream")
    assert ShardReader(index).read([3, 20]) == [ROWS[3], ROWS[20]]
    assert not any(b"hunter2" in path.read_bytes() for path in (tmp_path / "stream").rglob("*") if path.is_file())
    (tmp_path / "netrc").write_text("machine elsewhere login alice password hunter2\n")
    with pytest.raises(UserError, match="shard-000000.tar: .*401") as caught:
        ShardReader(index).read([5])
    assert "hunter2" not in str(caught.value)


def test_damage_on_the_web_is_found_by_verify(site, written):
    assert verify(site.url).ok
    at = int(written.column("image_offset")[16])
    path = site.folder / "shard-000001.tar"
    good = path.read_bytes()
    try:
        site.replace(path.name, good[: at + 5] + bytes([good[at + 5] ^ 1]) + good[at + 6 :])
        report = verify(site.url)
    finally:
        path.write_bytes(good)
    assert report.unreadable == 1
    assert {fault.reason for fault in report.problems} == {"checksum", "fetch"}


def test_a_store_that_does_not_let_us_in_is_named(written, monkeypatch):
    monkeypatch.setattr(locations, "WAITS", (0.01,))
    with storing(Path(written.folder), monkeypatch) as site:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", "/nonexistent")
        with pytest.raises(UserError, match="s3://bucket/stream/index.parquet: .*credentials"):
            StreamIndex.open(site.url)
