"""What arrives is taken in order, once, and as a whole; what cannot be taken is set aside by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from arrivals import announce, arrive, complete, following, tar_of
from streams import sample

from streamcvit.data.sample import Picture, Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.errors import UserError
from streamcvit.monitoring.terminal import LiveView
from streamcvit.run import following as module
from streamcvit.run.folder import RunFolder
from streamcvit.run.following import Following
from streamcvit.run.growth import Growth, task_counts
from streamcvit.run.journal import JOURNAL
from streamcvit.screen import Screen


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Stream:
    """A folder that shards arrive in, and who follows it."""

    def __init__(self, root: Path, *settings: str) -> None:
        self.data, self.folder, self.clock = root / "data", root / "stream", Clock()
        self.data.mkdir()
        self.config = following(
            root, self.data, "stream.follow.samples_per_chunk=4", "stream.follow.ahead=50", *settings
        )
        self.number = 0
        announce(self.data, "colour", [sample(1000 + n) for n in range(3)])
        self.start()

    def start(self) -> Following:
        """Begin, or begin again after a kill."""
        self.following = Following(self.config, self.folder, self.clock)
        return self.following

    def give(self, count: int, task: str = "colour", name: str = "", mark: str = ".done") -> list[Sample]:
        """Let the next samples arrive as a shard."""
        samples = [sample(self.number + n, task) for n in range(count)]
        self.number += count
        arrive(self.data, name or f"shard-{self.number:06d}.tar", samples, mark)
        return samples

    def look(self, seconds: float = 1.0) -> Following:
        """Let time pass, then look."""
        self.clock.now += seconds
        self.following.step()
        return self.following

    def aside(self) -> dict[str, str]:
        """What is set aside so far, and why."""
        return {event["what"]: event["reason"] for event in (*self.following.past, *self.following.news)}


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path)


def read(index: StreamIndex) -> list[Any]:
    with ShardReader(index) as reader:
        return reader.read(range(len(index)))


def test_shards_of_any_size_become_chunks_of_the_size_asked_for_and_read_back_whole(stream: Stream) -> None:
    samples = stream.give(3) + stream.give(7, mark=".sha256")
    stream.look()
    index = stream.following.index()
    assert index.follows and index.n_chunks == 2 and len(index) == 8
    samples += stream.give(1) + stream.give(2)
    (stream.data / "END").touch()
    stream.look()
    ended = stream.following.index()
    assert [ended.chunk_bounds(chunk) for chunk in range(4)] == [(0, 4), (4, 8), (8, 12), (12, 13)]
    assert read(ended) == samples and read(StreamIndex.open(stream.folder)) == samples
    assert not ended.follows and ended.identity == index.digest != ended.digest
    assert ended.plan.totals == {"colour": 13} and len(ended.eval_index()) == 3
    assert ended.grown() is ended and index.grown().n_chunks == 4
    assert StreamIndex.open(stream.folder).digest == ended.digest  # read at once, or chunk by chunk
    again = Following(stream.config, stream.folder.with_name("again")).first()
    assert again.digest == ended.digest and again.identity != ended.identity


def test_a_shard_is_taken_once_it_is_complete_and_not_before(stream: Stream) -> None:
    tar_of(stream.data / "shard-1.tar", [sample(n) for n in range(4)])
    assert stream.look().chunks == 0 and stream.following.waiting == 1
    complete(stream.data, "shard-1.tar")
    assert stream.look().chunks == 1 and stream.following.waiting == 0
    (stream.data / "shard-2.tar").write_bytes(b"")
    (stream.data / "shard-2.tar.sha256").write_text("0" * 64)
    tar_of(stream.data / "shard-2.tar", [sample(n) for n in range(4, 8)])
    assert stream.look().chunks == 1  # its checksum is not that yet
    complete(stream.data, "shard-2.tar", ".sha256")
    assert stream.look().chunks == 2 and stream.aside() == {}


def test_chunks_close_by_time_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(tmp_path, "stream.follow.seconds_per_chunk=30")
    began = 1000.0
    monkeypatch.setattr(module.time, "time", lambda: began + stream.clock.now)
    stream.give(1)
    assert stream.look().chunks == 0
    assert stream.look(20).chunks == 0
    stream.give(1)
    assert stream.look(20).chunks == 1
    assert len(stream.following.index()) == 2


def test_a_new_task_comes_with_its_test_set_and_its_samples_wait_for_it(stream: Stream) -> None:
    stream.give(4)
    late = stream.give(4, "shape", "shard-000005.tar")
    more = stream.give(4, name="shard-000006.tar")
    assert stream.look().chunks == 2 and list(stream.following.index().tasks) == ["colour"]
    assert stream.following.held["shard-000005.tar"][2] == "no manifest of the task 'shape' came yet"
    announce(stream.data, "shape", [sample(2000 + n, "shape") for n in range(2)], scorer="vqa", max_new_tokens=3)
    before, index = stream.following.index(), (stream.look(), stream.following.index())[1]
    assert index.n_chunks == 3 and read(index)[4:] == more + late and stream.aside() == {}
    assert index.tasks["shape"].scorer == "vqa" and index.tasks["shape"].max_new_tokens == 3
    assert list(before.eval_index().tasks) == ["colour"]
    assert before.grown().eval_index().digest == index.eval_index().digest
    assert index.eval_index().task_of.tolist() == ["colour"] * 3 + ["shape"] * 2
    assert [row.task for row in read(index.eval_index())] == index.eval_index().task_of.tolist()
    assert index.plan.counts.tolist() == [[4, 0], [4, 0], [0, 4]]


def test_what_cannot_be_taken_is_set_aside_by_name_and_the_rest_goes_on(stream: Stream) -> None:
    data = stream.data
    first = stream.give(4, name="shard-000010.tar")
    stream.look()
    shutil.copy(data / "shard-000010.tar", data / "shard-000011.tar")
    complete(data, "shard-000011.tar")
    arrive(data, "shard-000009.tar", [sample(500)])
    arrive(data, "shard-000012.tar", [first[0], sample(501)])
    (data / "shard-000013.tar").write_bytes((data / "shard-000010.tar").read_bytes()[:700])
    complete(data, "shard-000013.tar")
    bad = replace(sample(502), pictures=(Picture(sample(502).pictures[0].data[:-40]),))
    arrive(data, "shard-000014.tar", [bad])
    announce(data, "colour2", [sample(3000)])
    (data / "again.task.json").write_text('{"task": "colour", "test": "colour.test.tar", "scorer": "vqa"}')
    (data / "odd.task.json").write_text('{"task": "odd", "test": "colour.test.tar", "scorer": "my.py:Mine"}')
    (data / "odder.task.json").write_text('["task"]')
    stream.give(4, "nowhere", "shard-000020.tar")
    stream.give(4, name="shard-000021.tar")
    stream.look()
    assert stream.following.chunks == 2
    (data / "END").touch()
    stream.look()
    arrive(data, "shard-000022.tar", [sample(600)])
    stream.look()
    expected = {
        "shard-000011.tar": "duplicate", "shard-000009.tar": "order", "shard-000012.tar": "duplicate",
        "shard-000013.tar": "damaged", "shard-000014.tar": "damaged", "colour2.task.json": "tests",
        "again.task.json": "redefined", "odd.task.json": "manifest", "odder.task.json": "manifest",
        "shard-000020.tar": "task", "shard-000022.tar": "late",
    }  # fmt: skip
    assert stream.aside() == expected
    assert sum(stream.following.aside.values()) == len(expected) and stream.following.taken == 2
    word = json.loads((stream.folder / "arrivals.json").read_text())
    assert word["ended"] and word["taken"] == 2 and sum(word["aside"].values()) == len(expected)
    stream.start()  # the same after a kill
    assert stream.aside() == expected and stream.look().news == [] and stream.following.ended
    assert list(stream.following.index().tasks) == ["colour"] and len(stream.following.index()) == 8


def test_a_test_set_is_not_learned(stream: Stream) -> None:
    stream.give(4, "shape", "shard-1.tar")
    (stream.data / "shape.task.json").write_text('{"task": "shape", "test": "shard-1.tar"}')
    stream.give(4, name="shard-2.tar")
    assert stream.look().chunks == 1 and stream.aside() == {"shard-1.tar": "duplicate"}
    shutil.copy(stream.data / "shard-1.tar", stream.data / "shard-3.tar")
    complete(stream.data, "shard-3.tar")
    stream.start()  # known after a kill too
    assert stream.look().chunks == 1 and stream.aside()["shard-3.tar"] == "duplicate"


def test_names_that_no_file_can_have_or_nobody_can_print_stop_nothing(stream: Stream) -> None:
    stream.give(4, name="shard-1.tar")
    stream.give(4, name="shard-2\x1b.tar")
    stream.give(4, name="shard-3\udcff.tar")
    (stream.data / "shape.task.json").write_text(json.dumps({"task": "shape", "test": "a" * 5000}))
    (stream.data / "END").touch()
    assert stream.look().ended and stream.following.chunks == 1
    assert stream.aside() == {"shape.task.json": "damaged"}


def test_a_method_that_an_earlier_life_finished_has_nothing_left_to_learn(stream: Stream) -> None:
    stream.give(4)
    (stream.data / "END").touch()
    index = stream.look().index()
    folder = RunFolder(stream.config, "lora", index, task_counts(stream.config, index, "lora"), "base")
    folder.finish()
    view = LiveView(["lora"], len(index), {"lora": 1}, Screen())
    Growth(stream.config, {"lora": folder}, view, stream.start())
    assert json.loads((stream.folder / "arrivals.json").read_text())["oldest"] is None


def test_shards_out_of_order_are_taken_where_that_is_asked_for(tmp_path: Path) -> None:
    stream = Stream(tmp_path, "stream.follow.out_of_order=take")
    stream.give(4, name="shard-9.tar")
    stream.look()
    stream.give(4, name="shard-8.tar")
    assert stream.look().chunks == 2 and stream.aside() == {}


def test_a_learner_that_is_behind_leaves_what_arrives_where_it_lies(tmp_path: Path) -> None:
    stream = Stream(tmp_path, "stream.follow.ahead=2", "stream.follow.idle=5")
    for _ in range(5):
        stream.give(4)
    assert stream.look().chunks == 2 and stream.following.full and stream.following.waiting == 3
    assert stream.look(60).chunks == 2 and not stream.following.ended  # who cannot take anything is not idle
    assert json.loads((stream.folder / "arrivals.json").read_text())["full"] is True
    (stream.data / "END").touch()
    for chunk in range(5):
        stream.following.learned("lora", chunk)
        stream.look()
    assert stream.following.chunks == 5 and stream.following.ended


def test_a_stream_ends_when_nothing_came_for_so_long(tmp_path: Path) -> None:
    stream = Stream(tmp_path, "stream.follow.idle=10")
    stream.give(5)
    assert stream.look().chunks == 1
    assert not stream.look(6).ended
    stream.give(1)
    assert not stream.look(6).ended
    assert stream.look(11).ended and stream.following.chunks == 2


@pytest.mark.parametrize("cut", range(12))
def test_killed_behind_any_line_of_the_journal_it_goes_on_to_the_same_stream(tmp_path: Path, cut: int) -> None:
    stream = Stream(tmp_path)
    samples = stream.give(3) + stream.give(6)
    stream.look()
    announce(stream.data, "shape", [sample(2000, "shape")])
    samples += stream.give(5, "shape")
    shutil.copy(stream.data / "shard-000009.tar", stream.data / "shard-z.tar")
    complete(stream.data, "shard-z.tar")
    (stream.data / "END").touch()
    stream.look()
    whole = stream.following.index()
    lines = (stream.folder / JOURNAL).read_text().splitlines(keepends=True)
    kept = lines[: cut + 1]
    (stream.folder / JOURNAL).write_text("".join(kept) + (lines[cut + 1][:20] if cut + 1 < len(lines) else ""))
    closed = sum('"what": "close"' in line for line in kept)
    for number in range(whole.n_chunks):
        part = stream.folder / "parts" / f"{number:06d}"
        if number >= closed - cut % 2:  # the part of the last chunk was written, or not
            shutil.rmtree(part, ignore_errors=True)
    (stream.folder / "ended").unlink()
    stream.start()
    while not stream.look().ended:
        pass
    again = stream.following.index()
    assert read(again) == samples == read(whole)
    assert again.plan.counts.tolist() == whole.plan.counts.tolist() and again.identity == whole.identity
    assert again.eval_index().digest == whole.eval_index().digest and again.digest == whole.digest
    assert stream.aside() == {"shard-z.tar": "duplicate"}


def test_a_journal_that_was_changed_is_refused_by_its_line(stream: Stream) -> None:
    stream.give(4)
    stream.look()
    path = stream.folder / JOURNAL
    path.write_text(path.read_text().replace('"samples": 4', '"samples": 5'))
    with pytest.raises(UserError, match="line 4 of the journal is damaged, or one before it is missing"):
        stream.start()


def test_a_shard_that_changed_after_it_was_taken_is_named(stream: Stream) -> None:
    stream.give(3, name="shard-1.tar")
    stream.look()
    tar_of(stream.data / "shard-1.tar", [sample(900)])
    with pytest.raises(UserError, match=r"shard-1.tar: was taken and has changed since: its bytes are others"):
        stream.start()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["stream.follow.samples_per_chunk=0"], "a chunk ends by number or by time"),
        (["stream.follow.source=kafka"], "unknown name 'kafka'; allowed: folder"),
        (["evaluation.unseen=every"], "does not say which tasks will come"),
        (["methods.lora.order=joint"], "joint reads the whole stream at once"),
        (["stream.data=''"], "needs stream.data"),
    ],
)
def test_settings_that_a_stream_that_goes_on_cannot_have_are_refused(
    tmp_path: Path, settings: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        following(tmp_path, tmp_path, *settings)


def test_a_folder_that_is_not_there_and_a_stream_without_samples_are_said_in_a_line(stream: Stream) -> None:
    shutil.rmtree(stream.folder)
    with pytest.raises(UserError, match="there is no such folder to follow"):
        Following(following(stream.data, stream.data / "no"), stream.folder)
    stream.give(4, "nowhere", "shard-1.tar")
    with pytest.raises(UserError, match=r"no whole chunk is there \(shard-1.tar: no manifest of the task 'nowhere'"):
        stream.start().first(wait=False)
    (stream.data / "END").touch()
    with pytest.raises(UserError, match="the stream has ended before a sample of it came"):
        stream.start().first()
