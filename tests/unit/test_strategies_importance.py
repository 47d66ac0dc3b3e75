"""EWC and MAS: importances by each sample's own gradient, and a penalty that holds the weights that matter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_llava, tiny_samples

from streamcvit.adapters import InstructionEncoder, attach, expert_parameters, expert_usage
from streamcvit.errors import UserError
from streamcvit.learning import EWC, MAS, OnlineLearner, Sequential
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.models.vision import vision_dim

BOTH = pytest.mark.parametrize("kind", [EWC, MAS])


def learner_for(strategy: Sequential, adapter: str = "lora", **more: Any) -> OnlineLearner:
    base = Base(*tiny_llava(layers=1))
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, adapter, seed=3, options=more.pop("options", {}), sizes=sizes)
    return OnlineLearner(base, model, strategy, encoder=encoder, seed=3, **{"lr": 1e-2, **more})


def batches(base: Base, size: int = 2, per_chunk: int = 2, count: int = 6) -> list[Batch]:
    samples = tiny_samples(size * count)
    return [
        Batch(
            k * size, (k + 1) * size, k // per_chunk, tuple(range(k * size, (k + 1) * size)),
            tuple(own := samples[k * size : (k + 1) * size]), base.collator.train(own),
        )
        for k in range(count)
    ]  # fmt: skip


def learned(strategy: Sequential, count: int = 6, **more: Any) -> OnlineLearner:
    learner = learner_for(strategy, **more)
    for batch in batches(learner.base)[:count]:
        learner.learn(batch)
    return learner


def flat(learner: OnlineLearner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.parameters])


def by_hand(learner: OnlineLearner, batch: Batch) -> torch.Tensor:
    """What each sample of a batch says of each weight, summed, from a forward of the batch."""
    out, total = learner.outputs(batch.inputs), 0.0
    for row in range(len(batch.samples)):
        own = out.logits[out.rows == row]
        if isinstance(learner.strategy, EWC):
            value = torch.log_softmax(own, -1).gather(1, out.targets[out.rows == row, None]).sum()
        else:
            value = (own**2).sum()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, learner.parameters, retain_graph=True)])
        total = total + (gradient**2 if isinstance(learner.strategy, EWC) else gradient.abs())
    return total


@BOTH
def test_importance_is_the_mean_of_what_single_samples_say_over_its_mean_over_the_weights(kind: Any) -> None:
    learner = learner_for(kind(3, per_step=0))
    total: Any = 0.0
    todo = batches(learner.base)
    for batch in todo[:2]:
        learner.learn(batch)
        total = total + by_hand(learner, batch)  # by the weights after the step, as is measured
    learner.learn(todo[2])
    torch.testing.assert_close(learner.strategy.importance, total / total.mean(), rtol=1e-3, atol=1e-5)
    assert learner.strategy.importance.mean() == pytest.approx(1.0, abs=1e-4)


@BOTH
def test_gradient_of_the_penalty_is_lambda_times_importance_times_what_moved_since_the_boundary(kind: Any) -> None:
    learner = learned(kind(3, strength=0.7), count=4)
    strategy, moved = learner.strategy, flat(learner) - learner.strategy.anchor
    assert sum(t.nbytes for t in strategy.state_dict()[0].values()) == 4 * kind.held * moved.numel()
    grads = torch.autograd.grad(strategy.penalty(learner.model), learner.parameters)
    expected = 0.7 * strategy.importance * moved
    assert moved.abs().max() > 1e-3 and expected.abs().max() > 1e-3
    torch.testing.assert_close(torch.cat([g.flatten() for g in grads]), expected, rtol=1e-6, atol=1e-6)


def test_penalty_is_part_of_a_step_and_there_is_none_before_the_first_boundary() -> None:
    held, free = learned(EWC(3, strength=5.0), 2), learned(Sequential(3), 2)
    assert held.strategy.penalty(held.model) is None
    assert held.snapshot().digest == free.snapshot().digest
    third, fourth = batches(held.base)[2:4]
    for learner in (held, free):
        learner.learn(third)
    assert held.snapshot().digest == free.snapshot().digest  # at the boundary itself its gradient is zero
    for learner in (held, free):
        learner.learn(fourth)
    assert held.snapshot().digest != free.snapshot().digest


@pytest.mark.parametrize("adapter", ["smolora", "strlora"])
def test_measuring_leaves_routers_counts_and_random_numbers_alone(adapter: str) -> None:
    options = {} if adapter == "smolora" else {"lora_dropout": 0.2}
    ours, plain = (
        learned(strategy, 3, adapter=adapter, options=options, gradient_checkpointing=True)
        for strategy in (EWC(3, strength=0.0, per_step=1), Sequential(3))
    )
    assert ours.snapshot().digest == plain.snapshot().digest
    assert expert_usage(ours.model) == expert_usage(plain.model)


def test_expert_that_no_sample_took_has_no_importance_and_no_gradient() -> None:
    learner = learned(MAS(3, per_step=0), 3, adapter="smolora")
    pieces = learner.strategy.importance.split([p.numel() for p in learner.parameters])
    experts = {id(p) for p in expert_parameters(learner.model)}
    used = unused = 0
    for parameter, piece in zip(learner.parameters, pieces, strict=True):
        if id(parameter) not in experts:
            continue
        moved = learner.optimizer.state[parameter]["step"]
        for expert, steps in zip(piece.view_as(parameter), moved, strict=True):
            if steps:
                used += int(expert.max() > 0)
            else:
                assert not expert.any()
                unused += 1
    assert used and unused


def test_decay_is_what_is_left_of_the_importance_so_far_at_a_boundary() -> None:
    first = learned(EWC(3, strength=0.0, per_step=1), 3).strategy.importance
    second = learned(EWC(3, strength=0.0, decay=0.0, per_step=1), 5).strategy.importance
    merged = learned(EWC(3, strength=0.0, decay=0.25, per_step=1), 5).strategy.importance
    torch.testing.assert_close(merged, 0.25 * first + second)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(("kind", "adapter", "stop"), [(EWC, "smolora", 3), (MAS, "lora", 1)])
def test_resuming_is_equal_to_the_bit(tmp_path: Path, kind: Any, adapter: str, stop: int) -> None:
    more: dict[str, Any] = {"adapter": adapter, "micro_batch": 2, "gradient_checkpointing": True}
    whole = learned(kind(3, per_step=1), stop, **more)
    commit = whole.commit(tmp_path)
    todo = batches(whole.base)[stop:5]
    again = learner_for(kind(3, per_step=1), **more)
    again.resume(commit)
    for learner in (whole, again):
        for batch in todo:
            learner.learn(batch)
    assert again.snapshot().digest == whole.snapshot().digest
    assert torch.equal(again.strategy.importance, whole.strategy.importance)


def test_commit_without_the_strategys_state_is_refused(tmp_path: Path) -> None:
    plain, ours = learned(Sequential(3), 1), learned(EWC(3, per_step=1), 1)
    commit = plain.commit(tmp_path / "plain")
    with pytest.raises(UserError, match="no importances of this strategy") as caught:
        learner_for(EWC(3)).resume(commit)
    assert "\n" not in str(caught.value) and caught.value.fix
    with pytest.raises(UserError, match="of other weights"):
        learner_for(EWC(3), options={"r": 2}).strategy.load_state_dict(*ours.strategy.state_dict())
    commit = ours.commit(tmp_path / "ewc")
    with pytest.raises(UserError, match="no importances of this strategy"):
        learner_for(MAS(3)).resume(commit)


@BOTH
def test_weights_that_matter_drift_less_than_without_it(kind: Any) -> None:
    held = learned(kind(3, strength=3.0, per_step=0))
    # Where the second boundary left it, and what it learned after.
    weight = held.strategy.importance
    free = learned(kind(3, strength=0.0, per_step=1))
    drift = {}
    for name, learner in (("held", held), ("free", free)):
        moved = (flat(learner) - learner.strategy.anchor).square()
        drift[name] = float((weight * moved).sum() / weight.sum())
    assert drift["held"] < 0.5 * drift["free"]


def test_notebook_example_of_the_document_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.S)[0], names)
    assert names["learner"].cursor == 24 and names["learner"].strategy.importance.mean() > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strength": -1}, "strength must be at least 0, not -1"),
        ({"strength": "1e4"}, "strength must be a number, not '1e4'"),
        ({"strength": float("nan")}, "strength must be a number, not nan"),
        ({"decay": 1.5}, "decay must be from 0 to 1, not 1.5"),
        ({"per_step": 2.5}, "per_step must be a whole number of at least 0, not 2.5"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EWC(3, **options)
