"""What the memories of replay hold and give: as many of each sample, of each cluster, by loss, within their bytes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_llava, tiny_samples

from streamcvit.adapters import InstructionEncoder, attach
from streamcvit.data.sample import Picture, Sample
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.learning import STRATEGIES, BalancedReplay, LossReplay, OnlineLearner, Replay
from streamcvit.models.base import Base, load_base
from streamcvit.models.batch import Batch
from streamcvit.models.vision import vision_dim
from streamcvit.pipeline import load_config
from streamcvit.preflight import check_options

NONE = torch.nn.Identity()


def sample(number: int, size: int = 0, task: str = "a") -> Sample:
    pictures = (Picture(bytes(size), "png"),) if size else ()
    return Sample(f"{number:05d}", task, "what?", "one word", ("yes",), pictures)


def offered(replay: Replay, samples: list[Sample], notes: list[Any] | None = None) -> Replay:
    """A memory after a stream of samples, and what a variant knows of each."""
    for place, one in enumerate(samples):
        replay.offer(one, notes[place] if notes else None)
    return replay


def batch_of(samples: list[Sample]) -> Batch:
    return Batch(0, len(samples), 0, tuple(range(len(samples))), tuple(samples), None)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [{"memory": 8}, {"memory": 1000, "memory_bytes": 8 * 1200}])
def test_the_reservoir_holds_every_sample_with_the_same_probability(bound: dict) -> None:
    stream = [sample(number, 1000) for number in range(40)]
    counts = np.zeros(40)
    for seed in range(600):
        for kept in offered(Replay(seed, **bound), stream).kept:
            counts[int(kept.sample_id)] += 1
    assert counts.sum() == pytest.approx(8 * 600, rel=0.1)
    # Without replacement within a run the statistic is smaller than that of 39 free cells, whose 99.9 % lie below 72.
    assert chi_square(counts) < 72
    first = np.repeat([1.25, 0.75], 20) * counts.sum() / 40  # it would see a memory that favours the past by a quarter
    assert chi_square(first) > 72


def test_the_bound_in_bytes_holds_at_every_moment_and_sizes_decide_little() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.choice([500, 4000], 60)
    too_large = sample(60, 30_000)  # and counts as none
    counts = np.zeros(60)
    for kind in (Replay, LossReplay, BalancedReplay):
        for seed in range(100 if kind is Replay else 10):
            replay = kind(seed, memory=50, memory_bytes=20_000)
            for number, size in enumerate(sizes):
                replay.offer(sample(number, int(size)), f"{number % 3}" if kind is BalancedReplay else 0.5)
                real = sum(len(s.text_bytes()) + len(s.pictures[0].data) for s in replay.kept)
                assert real == replay.held_bytes <= 20_000 and len(replay.notes) == len(replay.kept) <= 50
            replay.offer(too_large, "0")
            assert replay.seen == 60 and too_large not in replay.kept
            if isinstance(replay, BalancedReplay):
                assert replay.met.total() == 60
            if kind is Replay:
                for kept in replay.kept:
                    counts[int(kept.sample_id)] += 1
    small, large = counts[sizes == 500].mean(), counts[sizes == 4000].mean()
    assert large > 0.75 * small > 4
    alone = offered(Replay(0, memory=5, memory_bytes=3000), [sample(0, 2000), sample(1, 9000), sample(2, 500)])
    assert [one.sample_id for one in alone.kept] == ["00000", "00002"]  # what never fits takes nobody's place


def test_balanced_holds_as_many_of_each_cluster_where_the_reservoir_holds_what_the_stream_shows() -> None:
    clusters = ["0-0"] * 600 + ["0-1"] * 60 + ["1-1"] * 240 + ["2-0"] * 40
    stream = [sample(number) for number in range(len(clusters))]
    balanced = offered(BalancedReplay(0, memory=30), stream, clusters)
    plain = offered(Replay(0, memory=30), stream, clusters)
    counts, others = Counter(balanced.notes), Counter(plain.notes)
    assert len(counts) == 4 and max(counts.values()) - min(counts.values()) <= 1
    assert others["0-0"] - min(others[c] for c in counts) > 5
    early = [
        int(one.sample_id) < 300
        for s in range(60)
        for one in offered(BalancedReplay(s, 8), stream[:600], ["0"] * 600).kept
    ]
    assert np.mean(early) == pytest.approx(0.5, abs=0.08)  # within a cluster it is a reservoir


def test_draws_follow_losses_in_proportion_and_alpha_bends_them() -> None:
    losses = [0.1, 0.2, 0.3, 0.4, 1.0, 2.0]
    extreme = offered(LossReplay(0, memory=4, alpha=10.0), [sample(k) for k in range(4)], [0.0, 0.0, 1e-9, 50.0])
    assert len(extreme.draw(4)) == 4 and (extreme.chances() > 0).all()
    with pytest.raises(ValueError, match="alpha must be from 0 to 10"):
        LossReplay(0, alpha=100.0)
    for alpha in (0.0, 1.0, 2.0):
        replay = offered(LossReplay(0, memory=6, alpha=alpha), [sample(k) for k in range(6)], losses)
        counts = np.zeros(6)
        for _ in range(6000):
            counts[int(replay.draw(1)[0].sample_id)] += 1
        weights = (np.array(losses) + 1e-4) ** alpha
        expected = 6000 * weights / weights.sum()
        assert ((counts - expected) ** 2 / expected).sum() < 20.5  # 99.9 % of 5 free cells


# -- how much is rehearsed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count", "beside"), [(0.5, 8, 8), (0.75, 4, 12), (0.2, 8, 2), (0.01, 8, 1)])
def test_the_share_is_that_of_all_that_is_learned_in_a_step(share: float, count: int, beside: int) -> None:
    replay = offered(Replay(0, share=share), [sample(k) for k in range(40)])
    assert len(replay.extend_batch(batch_of([sample(k) for k in range(count)]))) == beside
    replay.raised = 4.0  # the guard asks for more
    assert len(replay.extend_batch(batch_of([sample(k) for k in range(8)]))) == max(beside, 32)


@pytest.mark.parametrize("name", ["replay", "replay-balanced", "replay-loss"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 1.0}, "share must be below 1"),
        ({"share": -0.1}, "share must be from 0 to 1"),
        ({"share": 0.5, "per_step": 4}, "per_step and share say the same thing: give one of them"),
        ({"memory": 0}, "memory must be a whole number of at least 1"),
        ({"memory_bytes": "1GB"}, "memory_bytes must be a whole number"),
        ({"share": 0.9}, "share 0.9 of a step of 8 samples of the stream is 72 of the memory, which holds 64"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(name: str, options: dict, said: str) -> None:
    methods = {"mine": {"adapter": "lora", "strategy": name, "strategy_options": options}}
    with pytest.raises(UserError, match=re.escape(said)) as error:
        check_options(load_config("embedded", [f"methods={methods!r}"]))
    assert "methods.mine.strategy_options" in str(error.value) and "\n" not in str(error.value)


def test_a_bound_that_holds_no_sample_at_all_is_said() -> None:
    with pytest.raises(UserError, match="memory_bytes: 100 holds not one of the first samples: the smallest takes 6"):
        Replay(0, memory_bytes=100).after_step(batch_of([sample(0, 500), sample(1, 600)]), NONE)


# -- in a learner ------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"memory": 10, "share": 0.5, "memory_bytes": 60_000}


def learner_for(name: str, adapter: str = "lora", micro_batch: int = 0) -> OnlineLearner:
    base = Base(*tiny_llava(layers=1))
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, adapter, seed=3, sizes=sizes)
    strategy = STRATEGIES[name](3, **OPTIONS)
    given = encoder if adapter in ("smolora", "strlora") else None
    return OnlineLearner(base, model, strategy, encoder=given, seed=3, lr=1e-2, micro_batch=micro_batch)


def learn(learner: OnlineLearner, stop: int, start: int = 0, size: int = 4) -> OnlineLearner:
    samples = tiny_samples(size * stop)
    for k in range(start, stop):
        own = tuple(samples[k * size : (k + 1) * size])
        places = tuple(range(k * size, (k + 1) * size))
        learner.learn(Batch(k * size, (k + 1) * size, k // 3, places, own, learner.base.collator.train(own)))
    return learner


@pytest.mark.parametrize(
    ("name", "adapter", "micro_batch"),
    [
        ("replay-loss", "lora", 2),
        ("replay-balanced", "lora", 0),
        ("replay-balanced", "smolora", 2),
        ("replay-balanced", "strlora", 0),
    ],
)
def test_a_resumed_memory_goes_on_to_the_bit(name: str, adapter: str, micro_batch: int, tmp_path: Path) -> None:
    whole = learn(learner_for(name, adapter, micro_batch), 7)
    commit = learn(learner_for(name, adapter, micro_batch), 4).commit(tmp_path)
    again = learner_for(name, adapter, micro_batch)
    again.resume(commit)
    learn(again, 7, 4)
    assert again.snapshot().digest == whole.snapshot().digest
    assert isinstance(whole.strategy, Replay) and isinstance(again.strategy, Replay)
    assert again.strategy.kept == whole.strategy.kept and again.strategy.notes == whole.strategy.notes
    assert whole.strategy.kept and len(whole.strategy.kept) <= 10
    said = (commit / "resume" / "state.json").stat().st_size
    assert said < 4 / 3 * OPTIONS["memory_bytes"] + 30_000  # base64, and random states


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_losses_are_those_of_the_last_time_that_a_sample_was_learned(micro_batch: int) -> None:
    learner = learn(learner_for("replay-loss", micro_batch=micro_batch), 2)
    strategy = learner.strategy
    assert isinstance(strategy, LossReplay)
    with torch.no_grad():
        expected, _ = learner.losses(learner.base.collator.train(strategy.kept))
    before, kept = list(strategy.notes), list(strategy.kept)
    learn(learner, 3, 2)
    assert len(strategy.drawn) == 4
    there = [place for place, one in enumerate(kept) if strategy.kept[place] is one]
    assert set(there) & set(strategy.drawn) and set(there) - set(strategy.drawn)
    for place in there:
        known = float(expected[place]) if place in strategy.drawn else before[place]
        assert strategy.notes[place] == pytest.approx(known, abs=1e-4)
        assert (strategy.notes[place] != before[place]) == (place in strategy.drawn)


@pytest.fixture(scope="module")
def embedded_base() -> Base:
    return load_base("embedded", device="cpu")


@pytest.mark.parametrize("adapter", ["smolora", "lora"])
def test_clusters_are_the_routers_own_or_told_by_features_and_never_the_task(adapter: str, embedded_base: Base) -> None:
    base = embedded_base
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    names, kept = ("shape", "count", "caption"), []
    for hide in (False, True):
        model = attach(base.model, adapter, seed=0, sizes=sizes)
        strategy = BalancedReplay(0, memory=6)
        learner = OnlineLearner(base, model, strategy, encoder=encoder if adapter == "smolora" else None, seed=0)
        start = 0
        for task, count in zip(names, (12, 6, 6), strict=True):
            made = list(embedded.train_samples(task, count, seed=0))
            if hide:
                made = [Sample(s.sample_id, "none", s.question, s.instruction, s.answers, s.pictures) for s in made]
            for first in range(0, count, 6):
                own = tuple(made[first : first + 6])
                learner.learn(Batch(start, start + 6, 0, tuple(range(start, start + 6)), own, base.collator.train(own)))
                start += 6
        model.unload()
        kept.append((list(strategy.notes), [one.sample_id for one in strategy.kept]))
        of_task = Counter(one.task for one in strategy.kept)
        counts = [count for cluster, count in Counter(strategy.notes).items() if strategy.met[cluster] > count]
        assert len(strategy.met) > 1 and max(counts) - min(counts) <= 1
        assert hide or len(of_task) == 3
    assert kept[0] == kept[1]
