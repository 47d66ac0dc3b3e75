"""Writing stream folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from streams import TASKS, picture, sample, stream_samples, test_sets

from streamcvit.data.plan import Plan
from streamcvit.data.sample import Picture, Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written_reads_back_equal_and_in_order(tmp_path):
    rows = stream_samples()
    index = write_stream(tmp_path / "s", iter(rows), TASKS, test_sets(), seed=3, samples_per_shard=7)
    with ShardReader(index) as reader:
        assert reader.read(range(len(index))) == [one for _, one in rows]
    assert index.chunk_of.tolist() == [chunk for chunk, _ in rows]
    assert len(index.shards) == 6


def test_test_sets_read_back_in_the_order_of_the_tasks(tmp_path):
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0).eval_index()
    assert index.n_chunks == 0
    assert set(index.chunk_of.tolist()) == {-1}
    assert ShardReader(index).read(range(6)) == [one for task in TASKS for one in test_sets()[task]]


def test_pictures_of_every_kind_keep_their_bytes(tmp_path):
    kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
    rows = [
        (0, sample(n, pictures=(Picture(picture(n, format=kind), ext),))) for n, (ext, kind) in enumerate(kinds.items())
    ]
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0)
    assert ShardReader(index).read(range(3)) == [one for _, one in rows]


def test_the_same_samples_give_the_same_files_to_the_byte(tmp_path):
    for name in ("one", "two"):
        write_stream(tmp_path / name, stream_samples(), TASKS, test_sets(), seed=0, samples_per_shard=7)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_plain_webdataset_reads_the_shards(tmp_path):
    rows = stream_samples()
    index = write_stream(tmp_path / "s", rows, TASKS, test_sets(), seed=0, samples_per_shard=15)
    found = list(wds.WebDataset(index.shards, shardshuffle=False))
    assert [Sample.from_bytes(one["json"], [Picture(one["png"])]) for one in found] == [one for _, one in rows]


def test_an_equal_stream_is_kept_and_another_refused(tmp_path):
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    stamp = os.stat(index.shards[0]).st_mtime_ns
    again = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    assert again.digest == index.digest
    assert os.stat(index.shards[0]).st_mtime_ns == stamp
    with pytest.raises(UserError, match="another stream"):
        write_stream(tmp_path / "s", stream_samples(30), TASKS, test_sets(), seed=0)
    assert StreamIndex.open(tmp_path / "s").digest == index.digest


def test_other_test_sets_make_another_stream(tmp_path):
    one = write_stream(tmp_path / "one", stream_samples(), TASKS, test_sets(3), seed=0)
    two = write_stream(tmp_path / "two", stream_samples(), TASKS, test_sets(4), seed=0)
    assert one.digest != two.digest


def test_a_failure_on_the_way_leaves_nothing_behind(tmp_path):
    def breaks():
        yield from stream_samples(15)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_stream(tmp_path / "s", breaks(), TASKS, test_sets(), seed=0, samples_per_shard=4)
    assert list(tmp_path.iterdir()) == []


def test_leavings_of_a_killed_writer_are_swept_up_and_a_living_ones_kept(tmp_path):
    code = (
        "import os, sys; sys.path[:0] = ['tests'];"
        "from streams import *; from streamcvit.data.shards.write import write_stream;"
        "rows = (os.kill(os.getpid(), 9) if n == 20 else row for n, row in enumerate(stream_samples()));"
        f"write_stream({str(tmp_path / 's')!r}, rows, TASKS, test_sets(), seed=0)"
    )
    root = Path(__file__).parents[2]
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}).returncode
        == -9
    )
    (left,) = tmp_path.iterdir()
    alive = tmp_path / left.name.replace(left.name.split(".")[-2], str(os.getpid()))
    alive.mkdir()
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    assert sorted(tmp_path.iterdir()) == sorted([alive, Path(index.folder)])


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0)
    assert tree(tmp_path / "s") == {"thesis.txt": b"precious"}


@pytest.mark.parametrize(
    ("rows", "test", "says"),
    [
        ([(0, sample(1))], {"colour": [sample(2)]}, "'shape' has no test set"),
        ([(0, sample(1))], {**test_sets(), "shape": []}, "'shape' is empty"),
        ([(0, sample(1))], {**test_sets(), "shape": [sample(2)]}, "holds a sample of 'colour'"),
        ([(1, sample(1)), (0, sample(2))], test_sets(), "do not ascend"),
        ([(0, sample(1)), (1, sample(1))], test_sets(), "two samples have the id 'colour-1'"),
        ([(0, sample(1, "smell"))], test_sets(), "unknown task 'smell'"),
    ],
)
def test_streams_that_make_no_sense_are_refused(tmp_path, rows, test, says):
    with pytest.raises(UserError, match=says):
        write_stream(tmp_path / "s", rows, TASKS, test, seed=0)
    assert not (tmp_path / "s").exists()


def test_what_is_written_must_follow_the_plan(tmp_path):
    plan = Plan(("colour", "shape"), np.array([[10, 0], [10, 0], [5, 5], [5, 5]]))
    index = write_stream(tmp_path / "s", stream_samples(), TASKS, test_sets(), seed=0, plan=plan)
    assert index.plan == plan
    off = Plan(("colour", "shape"), plan.counts[::-1])
    with pytest.raises(UserError, match="do not follow the plan"):
        write_stream(tmp_path / "t", stream_samples(), TASKS, test_sets(), seed=0, plan=off)


def test_samples_are_taken_one_at_a_time_and_shards_closed_as_they_fill(tmp_path):
    waiting = []

    def watched():
        for number, row in enumerate(stream_samples()):
            waiting.append(number - len(list(tmp_path.glob(".s.*/shard-*.tar"))) * 10)
            yield row

    write_stream(tmp_path / "s", watched(), TASKS, test_sets(), seed=0, samples_per_shard=10)
    assert max(waiting) <= 0
