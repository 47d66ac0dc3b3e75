"""Samples of like length share a batch: once each, inside their chunk, by the cursor alone, resumable to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from running import StopAfter
from streams import TASKS, picture, sample, test_sets

from streamcvit.data.sample import Picture
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import Stopped, UserError
from streamcvit.learning import BatchSource, Schedule
from streamcvit.learning.grouping import MEGABATCH, grouped, lengths_of, order_digest, picture_tokens
from streamcvit.learning.ledger import check_coverage
from streamcvit.models.collate import Collator
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.drive import task_counts
from streamcvit.run.folder import RunFolder
from streamcvit.run.loading import local_feed, schedule_of
from streamcvit.run.resume import changes, refuse
from streamcvit.run.workers import LearnerWorker

SIZE = 4


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chunks of 37, 22 and 1 samples with texts of 2 to 80 words and no picture, one or two."""
    rng = np.random.default_rng(0)
    samples = []
    for number, chunk in enumerate(np.repeat([0, 1, 2], [37, 22, 1]).tolist()):
        words = " ".join(["red"] * int(rng.integers(2, 80)))
        pictures = tuple(Picture(picture(number + k, 32)) for k in range(int(rng.choice([0, 1, 1, 2]))))
        samples.append((chunk, sample(number, question=words, answers=("red",), pictures=pictures, meta={})))
    folder = tmp_path_factory.mktemp("grouping") / "stream"
    write_stream(folder, samples, TASKS, test_sets(1), 0)
    return folder


@pytest.fixture(scope="module")
def index(stream: Path) -> StreamIndex:
    return StreamIndex.open(stream)


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_comes_once_in_its_own_chunk_and_the_stream_is_kept_from_afar(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stops = np.cumsum(rng.integers(0, 900, 6))
    order = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in zip([0, *stops[:-1]], stops, strict=True)])
    lengths = rng.integers(1, 1000, len(order))
    found = grouped(order, stops, lengths, SIZE, seed)
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        assert sorted(found[start:stop]) == sorted(order[start:stop])
    place = np.argsort(order)
    assert np.abs(place[found] - np.arange(len(order))).max() < 1.5 * MEGABATCH * SIZE
    assert np.array_equal(found, grouped(order, stops, lengths, SIZE, seed))
    assert not np.array_equal(found, grouped(order, stops, lengths, SIZE, seed + 1))


def test_batches_are_of_like_length_and_come_neither_from_short_to_long_nor_back() -> None:
    rng = np.random.default_rng(3)
    n, stops = 40 * MEGABATCH, np.array([40 * MEGABATCH])
    lengths = rng.permutation(n)
    batches = lengths[grouped(np.arange(n), stops, lengths, SIZE, 0)].reshape(-1, SIZE)
    assert np.ptp(batches, axis=1).mean() < 0.05 * np.ptp(lengths.reshape(-1, SIZE), axis=1).mean()
    assert abs(np.corrcoef(np.arange(len(batches)), batches.mean(1))[0, 1]) < 0.2


def test_a_batch_that_is_not_full_ends_its_chunk_and_is_of_any_length() -> None:
    lengths, shorts = np.arange(42), set()
    for seed in range(30):
        found = grouped(np.arange(42), np.array([42]), lengths, SIZE, seed)
        assert all(np.ptp(found[k : k + SIZE]) <= SIZE + 1 for k in range(0, 40, SIZE))
        assert np.ptp(found[40:]) == 1
        shorts.add(int(found[40]))
    assert len(shorts) > 5 and {found % SIZE for found in shorts} == {0}


def test_lengths_come_from_the_index_and_order_samples_as_their_tokens_do(index: StreamIndex) -> None:
    collator = Collator.from_pretrained("embedded")
    picture = picture_tokens(collator)
    with ShardReader(index) as reader:
        rows = reader.read(range(len(index)))
    tokens = np.array([int(collator.train([row]).tensors["attention_mask"].sum()) for row in rows])
    assert picture == int(collator.train(rows[:1]).image_mask.sum()) // index.pictures_of[0]
    ranks = [np.argsort(np.argsort(values)) for values in (tokens, lengths_of(index, picture))]
    assert np.corrcoef(*ranks)[0, 1] > 0.98


@pytest.mark.parametrize("order", ["stream", "joint"])
def test_a_batch_is_a_function_of_its_cursor_and_padding_falls(index: StreamIndex, order: str) -> None:
    config = load_config(builtin("embedded"), [f"learner.batch_size={SIZE}", "learner.group_by_length=true"])
    schedule, plain = schedule_of(config, index, order), Schedule.of(index, SIZE, order)  # type: ignore[arg-type]
    assert np.array_equal(schedule.order, schedule_of(config, index, order).order)
    assert np.array_equal(schedule.stops, plain.stops) and not np.array_equal(schedule.order, plain.order)
    collator, padded, seen = Collator.from_pretrained("embedded"), [], []
    with ShardReader(index) as reader:
        for one in (schedule, plain):
            source, cursor, real, all_ = BatchSource(reader, collator, one), 0, 0, 0
            while cursor < len(one):
                batch = source.batch(cursor)
                mask = batch.inputs.tensors["attention_mask"]  # type: ignore[union-attr]
                real, all_, cursor = real + int(mask.sum()), all_ + mask.numel(), batch.next_cursor
                seen += batch.positions if one is schedule else ()
                if one is schedule and order == "stream":
                    assert {index.chunk_of[position] for position in batch.positions} == {batch.chunk}
            padded.append(1 - real / all_)
    assert sorted(seen) == list(range(len(index)))
    assert padded[0] < 0.5 * padded[1]


def test_a_run_in_grouped_order_resumes_inside_a_chunk_to_the_bit_and_learns_every_sample_once(
    stream: Path, index: StreamIndex, tmp_path: Path
) -> None:
    settings = ["learner.batch_size=6", "learner.group_by_length=true", "methods.m={adapter: lora, options: {r: 2}}"]
    digests = []
    for lives in ((99,), (2, 99)):
        config = load_config(builtin("embedded"), [*settings, f"out={tmp_path / str(len(lives))}"])
        for after in lives:
            worker = LearnerWorker(config, str(stream), local_feed(config, str(stream)), stop=StopAfter(after))
            try:
                digests.append(worker.learn_chunk("m", 1).digest)
            except Stopped:
                assert 0 < worker.learner.cursor < 37
        check_coverage(config.folder("m") / "ledger", 59, set())
    assert len(digests) == 2 and digests[0] == digests[1]


def test_the_plan_names_the_order_and_another_one_is_refused_on_resuming(
    stream: Path, index: StreamIndex, tmp_path: Path
) -> None:
    def config(group: str) -> list[str]:
        return [f"learner.group_by_length={group}", f"out={tmp_path}", "methods={m: {adapter: lora}}"]

    on = load_config(builtin("embedded"), config("true"), name="r")
    folder = RunFolder(on, "m", index, task_counts(on, index, "m"), "base")
    plan = json.loads((folder.path / "plan.json").read_text())
    assert plan["order"]["sha256"] == order_digest(schedule_of(on, index, "stream").order)
    assert plan["chunks"] == index.plan.counts.tolist()
    (on.folder() / "config.yaml").write_text(on.dump())
    assert not changes(on, "base", index.digest)
    off = load_config(builtin("embedded"), config("false"), name="r")
    with pytest.raises(UserError, match=r"learner\.group_by_length: true -> false"):
        refuse(changes(off, "base", index.digest), [], on.folder())
    bound = load_config(builtin("embedded"), [*config("true"), "model.max_pixels=900"], name="r")
    with pytest.raises(UserError, match=r"model\.max_pixels: 0 -> 900\. Resume with the run's own config\.yaml"):
        refuse(changes(bound, "base", index.digest), [], on.folder())
