"""The online learner: scores before it learns, learns once, and resumes to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from streamcvit.adapters import InstructionEncoder
from streamcvit.adapters.build import attach
from streamcvit.adapters.moelora import MoELoraLayer
from streamcvit.adapters.prototypes import Prototypes
from streamcvit.adapters.targets import target_modules
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.learning import STRATEGIES, OnlineLearner, Replay
from streamcvit.learning.online import _cuda_state
from streamcvit.models.base import Base, load_base
from streamcvit.models.batch import Batch
from streamcvit.models.sight import check_sight
from streamcvit.models.vision import vision_dim
from streamcvit.pipeline import load_config
from streamcvit.run.loading import wrap

TASKS = list(embedded.TASKS)


@pytest.fixture(scope="module")
def samples() -> list:
    return [sample for task in TASKS[:4] for sample in embedded.train_samples(task, 12, seed=5)]


@pytest.fixture
def base() -> Base:
    return load_base("embedded", device="cpu")


def batches(base: Base, samples: list, size: int = 6, per_chunk: int = 12) -> list[Batch]:
    return [
        Batch(
            i,
            i + size,
            i // per_chunk,
            tuple(range(i, i + size)),
            tuple(samples[i : i + size]),
            base.collator.train(samples[i : i + size]),
        )
        for i in range(0, len(samples), size)
    ]


def learner_for(base: Base, adapter: str = "smolora", strategy: str = "sequential", **options: object) -> OnlineLearner:
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    model = attach(
        base.model,
        adapter,
        target_modules(base.model),
        seed=3,
        options=options,
        sizes={"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)},
    )
    return OnlineLearner(base, model, STRATEGIES[strategy](3), encoder=encoder, lr=1e-3, seed=3)


def test_the_prequential_loss_is_that_of_the_weights_before_the_step(base: Base, samples: list) -> None:
    learner = learner_for(base, "lora")
    batch = batches(base, samples)[0]
    with torch.no_grad():
        before, _ = learner.losses(batch.inputs)
    report = learner.learn(batch)
    with torch.no_grad():
        after, _ = learner.losses(batch.inputs)
    assert torch.equal(report.loss, before)
    assert after.mean() < before.mean()


def test_the_loss_is_transformers_own_loss_sample_by_sample(base: Base, samples: list) -> None:
    learner = learner_for(base, "lora")
    with torch.no_grad():
        ours, _ = learner.losses(base.collator.train(samples[:3]))
        for i in range(3):
            inputs = base.collator.train(samples[i : i + 1])
            labels = inputs.tensors["input_ids"].masked_fill(~inputs.answer_mask, -100)
            theirs = learner.model(**inputs.tensors, labels=labels).loss
            torch.testing.assert_close(ours[i], theirs, atol=1e-5, rtol=1e-5)


def test_a_gap_or_a_repetition_is_refused(base: Base, samples: list) -> None:
    learner = learner_for(base, "lora")
    first, second = batches(base, samples)[:2]
    with pytest.raises(ValueError, match="cursor is 0"):
        learner.learn(second)
    learner.learn(first)
    with pytest.raises(ValueError, match="cursor is 6"):
        learner.learn(first)


def test_a_batch_with_nothing_readable_moves_the_cursor_and_no_weight(base: Base) -> None:
    learner = learner_for(base, "lora")
    before = learner.snapshot()
    assert learner.learn(Batch(0, 6, 0, (), (), None)) is None
    assert (learner.cursor, learner.step) == (6, 1)
    assert learner.snapshot().digest == before.digest


@pytest.mark.parametrize(
    ("adapter", "strategy"),
    [("lora", "replay"), ("smolora", "sequential"), ("moelora", "sequential"), ("strlora", "sequential")],
)
def test_resuming_from_a_commit_gives_the_same_weights_to_the_bit(
    base: Base, samples: list, tmp_path: Path, adapter: str, strategy: str
) -> None:
    whole = learner_for(base, adapter, strategy)
    todo = batches(base, samples)
    commit = None
    for i, batch in enumerate(todo):
        whole.learn(batch)
        if i == 3:
            commit = whole.commit(tmp_path)
    expected = whole.snapshot().digest
    whole.model.unload()

    again = learner_for(base, adapter, strategy)
    torch.rand(7), np.random.rand(7)  # noqa: NPY002 - a resumed process has drawn other numbers before
    assert commit is not None
    again.resume(commit)
    assert again.cursor == todo[4].cursor
    for batch in todo[4:]:
        again.learn(batch)
    assert again.snapshot().digest == expected


def weights_of(learner: OnlineLearner, *kinds: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in learner.snapshot().tensors.items() if any(kind in name for kind in kinds)}


ROUTERS = ("strlora_query", "strlora_key", "strlora_prototypes")


def test_routers_are_held_from_the_chunk_on_that_the_configuration_names(base: Base, samples: list) -> None:
    learner = learner_for(base, "strlora", freeze_after_chunk=2)
    changed = []
    for batch in batches(base, samples):
        routers, experts = weights_of(learner, *ROUTERS), weights_of(learner, "strlora_B")
        learner.learn(batch)
        now = weights_of(learner, *ROUTERS)
        changed.append((batch.chunk, any(not torch.equal(routers[name], now[name]) for name in routers)))
        now = weights_of(learner, "strlora_B")
        assert any(not torch.equal(experts[name], now[name]) for name in experts)
    assert changed == [(chunk, chunk < 2) for chunk, _ in changed]
    assert {chunk for chunk, _ in changed} == {0, 1, 2, 3}


def test_distillation_begins_with_the_chunk_that_the_configuration_names(
    base: Base, samples: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_for(base, "strlora", distill_after_chunk=1)
    found: list[float | None] = []
    own = learner.model.base_model.auxiliary_loss

    def seen() -> torch.Tensor | None:
        loss = own()
        found.append(None if loss is None else float(loss.detach()))
        return loss

    monkeypatch.setattr(learner.model.base_model, "auxiliary_loss", seen)
    first, second, third = batches(base, samples)[:3]
    learner.learn(first)
    learner.learn(second)
    assert found == [None, None]
    weights = weights_of(learner, "strlora_query")
    learner.learn(third)
    # The averages start at the weights as they are then, so that there is nothing to distil in the first step.
    assert found[2] == pytest.approx(0, abs=1e-6)
    for name, average in weights_of(learner, "strlora_average_query").items():
        before = weights[name.replace("average_", "")]
        now = weights_of(learner, "strlora_query")[name.replace("average_", "")]
        torch.testing.assert_close(average, before.lerp(now, 1e-3))


@pytest.mark.parametrize("committed", [2, 5])
def test_resuming_freezes_and_distils_in_the_same_chunks_to_the_bit(
    base: Base, samples: list, tmp_path: Path, committed: int
) -> None:
    options = {"freeze_after_chunk": 2, "distill_after_chunk": 1, "distill_beta": 0.5}
    whole = learner_for(base, "strlora", **options)
    todo = batches(base, samples)
    for batch in todo[:committed]:
        whole.learn(batch)
    commit = whole.commit(tmp_path)
    for batch in todo[committed:]:
        whole.learn(batch)
    expected = whole.snapshot().digest
    whole.model.unload()

    again = learner_for(base, "strlora", **options)
    again.resume(commit)
    for batch in todo[committed:]:
        again.learn(batch)
    assert again.snapshot().digest == expected


def test_options_in_a_config_reach_the_adapter_and_change_what_is_learned(base: Base, samples: list) -> None:
    digests = []
    for top_k in (0, 1):
        settings = [f"methods.mine={{adapter: moelora, options: {{r: 2, num_experts: 4, top_k: {top_k}}}}}"]
        encoder = InstructionEncoder.load("tokens", base.model, base.tokenizer)
        model = wrap(base, encoder, load_config(None, settings), "mine")
        learner = OnlineLearner(base, model, seed=3)
        layers = [module for module in model.modules() if isinstance(module, MoELoraLayer)]
        assert layers and all(layer.top_k["default"] == top_k for layer in layers)
        learner.learn(batches(base, samples)[0])
        digests.append(learner.snapshot().digest)
        model.unload()
    assert digests[0] != digests[1]


def test_a_commit_learned_with_another_instruction_encoder_is_refused(
    base: Base, samples: list, tmp_path: Path
) -> None:
    learner = learner_for(base)
    learner.learn(batches(base, samples)[0])
    commit = learner.commit(tmp_path)
    learner.model.unload()
    again = learner_for(base)
    assert again.encoder is not None
    again.encoder.identity = "another"
    with pytest.raises(UserError, match="instruction encoder is another one"):
        again.resume(commit)


class Drawing(Replay):
    """Rehearses now and then, as every kind of random number will have it: forget one, and the weights differ."""

    def extend_batch(self, batch: Batch) -> list:
        kept = list(super().extend_batch(batch))
        return [sample for sample in kept if (random.random() + np.random.rand()) % 1 < 0.5]  # noqa: NPY002


@pytest.fixture(scope="module")
def drawn(samples: list, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, str]]:
    """A run of an adapter that draws, or clusters: its commit in the middle, and the digest it ends with."""

    @cache
    def run(adapter: str) -> tuple[Path, str]:
        learner = drawing(load_base("embedded", device="cpu"), adapter)
        todo = batches(learner.base, samples)
        for batch in todo[:4]:
            learner.learn(batch)
        folder = learner.commit(tmp_path_factory.mktemp(adapter))
        for batch in todo[4:]:
            learner.learn(batch)
        return folder, learner.snapshot().digest

    return run


def drawing(base: Base, adapter: str) -> OnlineLearner:
    learner = learner_for(base, adapter, **({"lora_dropout": 0.2} if adapter == "lora" else {}))
    learner.strategy = Drawing(3)
    return learner


FORGOTTEN = {
    "lora": ("nothing", "rng.torch", "rng.numpy", "rng.python", "optimizer", "strategy"),
    "smolora": ("nothing", "prototypes"),
}


@pytest.mark.parametrize(("adapter", "piece"), [(a, piece) for a, pieces in FORGOTTEN.items() for piece in pieces])
def test_forgetting_any_piece_of_the_state_changes_the_run_and_forgetting_nothing_does_not(
    base: Base,
    samples: list,
    drawn: Callable[..., tuple[Path, str]],
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
    piece: str,
) -> None:
    """Negative controls of all tests that compare digests: a build that forgets a piece would be caught."""
    folder, expected = drawn(adapter)
    again = drawing(base, adapter)
    fresh_tensors, fresh_values = again._resume_state()
    load = again._load_resume_state

    def lossy(tensors: dict, values: dict) -> None:
        fresh = {"rng.torch": fresh_tensors["rng.torch"]} if piece == "rng.torch" else {}
        kept = {name: tensor for name, tensor in tensors.items() if piece != "optimizer" or not name.startswith(piece)}
        load(kept | fresh, values | ({piece: fresh_values[piece]} if piece in fresh_values else {}))
        for module in again.model.modules():
            if piece == "prototypes" and isinstance(module, Prototypes):
                module.load_state_dict({name: torch.zeros_like(held) for name, held in module.state_dict().items()})

    monkeypatch.setattr(again, "_load_resume_state", lossy)
    again.resume(folder)
    for batch in batches(base, samples)[4:]:
        again.learn(batch)
    assert (again.snapshot().digest == expected) == (piece == "nothing")


def test_a_commit_of_another_adapter_is_refused(base: Base, samples: list, tmp_path: Path) -> None:
    learner = learner_for(base, "lora")
    learner.learn(batches(base, samples)[0])
    commit = learner.commit(tmp_path)
    learner.model.unload()
    with pytest.raises(UserError, match="config"):
        learner_for(base, "lora", r=4).resume(commit)


def test_replay_keeps_a_uniform_reservoir(base: Base, samples: list) -> None:
    counts = np.zeros(40)
    for seed in range(300):
        strategy = STRATEGIES["replay"](seed, memory=10)
        for i in range(0, 40, 8):
            strategy.after_step(Batch(i, i + 8, 0, tuple(range(i, i + 8)), tuple(samples[i : i + 8]), None), None)
        for sample in strategy.kept:
            counts[samples.index(sample)] += 1
    # Each of the 40 is kept with probability 1/4; four standard deviations of a binomial.
    assert abs(counts - 75).max() < 4 * np.sqrt(300 * 0.25 * 0.75)


def test_replayed_samples_change_the_step_and_not_the_report(base: Base, samples: list) -> None:
    first, second = batches(base, samples)[:2]
    plain = learner_for(base, "lora")
    plain.learn(first)
    report = plain.learn(second)
    digest = plain.snapshot().digest
    plain.model.unload()
    replaying = learner_for(base, "lora", "replay")
    replaying.learn(first)
    replayed = replaying.learn(second)
    assert torch.equal(report.loss, replayed.loss)
    assert replaying.snapshot().digest != digest


def test_a_commit_of_other_gpus_is_gone_on_from_with_the_state_of_the_device_it_learned_on() -> None:
    def states(*names: str) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([number]) for number, name in enumerate(names)}

    assert _cuda_state(states("rng.torch"), 0) is None
    assert _cuda_state(states("rng.cuda", "rng.cuda.3"), 3) == 0
    # As older commits have them: by number, not as words sort (10 before 2); of four on a machine with one.
    four = states("rng.torch", "rng.cuda.10", "rng.cuda.2", "rng.cuda.0")
    assert [int(_cuda_state(four, number)) for number in (2, 10, 0, 7)] == [2, 1, 3, 3]


class Swallowing(torch.nn.Module):
    """A model whose forward has no `logits_to_keep` but takes any keyword."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.own = model.forward

    def forward(self, *args: object, logits_to_keep: object = 0, **kwargs: object) -> object:
        return self.own(*args, **kwargs)


def test_a_model_that_takes_no_notice_of_which_logits_are_wanted_is_refused_at_once_and_never_learned_from(
    base: Base, samples: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_for(base, "lora")
    inputs = base.collator.train(samples[:2])
    monkeypatch.setattr(base.model, "forward", Swallowing(base.model).forward)
    with pytest.raises(UserError, match=r"LlavaForCond\w+: gives logits of \d+ places where those of \d+"):
        learner.losses(inputs)
    with pytest.raises(UserError, match=r"where those of 2 were asked for \(logits_to_keep\)"):
        check_sight(base.model, base.collator)


@pytest.mark.parametrize("state", [{"a": 1}, ({}, {}, {}), ({"a": 1}, {}), ({}, {"a": {1}})])
def test_a_strategy_whose_state_cannot_be_kept_is_named_and_nothing_is_written(
    base: Base, samples: list, tmp_path: Path, state: object
) -> None:
    learner = learner_for(base, "lora")
    learner.strategy.state_dict = lambda: state  # type: ignore[method-assign]
    learner.learn(batches(base, samples)[0])
    with pytest.raises(UserError, match="strategy Sequential: .*state_dict"):
        learner.commit(tmp_path)
    assert list(tmp_path.iterdir()) == []
