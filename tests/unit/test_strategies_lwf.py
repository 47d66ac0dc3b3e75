"""LwF: the current samples are answered as the last boundary's weights and routers would answer them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_strategies_importance import batches, flat, learned, learner_for

from streamcvit.adapters import expert_usage
from streamcvit.errors import UserError
from streamcvit.learning import LwF, OnlineLearner, Sequential
from streamcvit.models.snapshot import load_adapter_state


def distance(learner: OnlineLearner, teacher: Any, batch: Any, t: float) -> torch.Tensor:
    """KL of the teacher's answers by the definition, with the teacher loaded into the model."""
    own = learner.snapshot()
    with torch.no_grad():
        now = learner.outputs(batch.inputs)
        load_adapter_state(learner.model, teacher)
        before = torch.softmax(learner.outputs(batch.inputs).logits / t, -1)
    load_adapter_state(learner.model, own)
    kl = torch.nn.functional.kl_div(torch.log_softmax(now.logits / t, -1), before, reduction="none").sum(1)
    return torch.stack([kl[now.rows == row].mean() for row in range(now.size)]) * t**2


@pytest.mark.parametrize("adapter", ["lora", "smolora"])
def test_term_is_the_distance_from_the_last_boundarys_answers_and_leaves_the_model_to_the_bit(adapter: str) -> None:
    learner = learned(LwF(3, strength=0.5, temperature=2.0), 2, adapter=adapter)
    assert learner.strategy.beside(None, None) is None  # before the first boundary
    teacher, todo = learner.snapshot(), batches(learner.base)
    for batch in todo[2:4]:
        learner.learn(batch)
    digest, batch = learner.snapshot().digest, todo[4]
    own = dict(learner.model.named_parameters())
    modes = [module.training for module in learner.model.modules()]
    out = learner.outputs(batch.inputs)
    expert_usage(learner.model)
    found = learner.strategy.beside(batch.inputs, out)
    assert not expert_usage(learner.model)  # the teacher's routes are not counted
    assert all(p is own[name] for name, p in learner.model.named_parameters())
    assert [module.training for module in learner.model.modules()] == modes
    learner._snapshot = None
    assert learner.snapshot().digest == digest
    grads = torch.autograd.grad(found.sum(), learner.parameters, allow_unused=True)
    assert any(g is not None and g.any() for g in grads)
    torch.testing.assert_close(found, 0.5 * distance(learner, teacher, batch, 2.0), rtol=1e-4, atol=1e-6)


def test_teacher_routes_as_its_routers_did() -> None:
    learner = learned(LwF(3), 3, adapter="smolora")
    held = {name: tensor for name, tensor in learner.strategy.teacher.items() if "prototypes_" in name}
    assert held
    seen: list[torch.Tensor] = []
    name = next(name for name in held if name.endswith("visual.default.seen"))
    module = learner.model.get_submodule(name.rpartition(".")[0])
    assign = module.assign
    module.assign = lambda *args: (seen.append(module.seen), assign(*args))[1]
    learner.learn(batches(learner.base)[3])
    assert len(seen) == 1 and torch.equal(seen[0], held[name])
    assert not torch.equal(module.seen, held[name])


def test_micro_batches_and_checkpointing_give_the_update_of_the_whole_batch() -> None:
    more: dict[str, Any] = {"adapter": "smolora", "lr": 1e-3}
    whole, free = learned(LwF(3), 4, **more), learned(Sequential(3), 4, **more)
    split = learned(LwF(3), 4, micro_batch=1, gradient_checkpointing=True, **more)
    assert (flat(whole) - flat(split)).abs().mean() < 0.1 * (flat(whole) - flat(free)).abs().mean()
    again = learned(LwF(3), 4, gradient_checkpointing=True, **more)
    assert again.snapshot().digest == whole.snapshot().digest


def test_resuming_is_equal_to_the_bit(tmp_path: Path) -> None:
    whole = learned(LwF(3), 3, adapter="smolora")
    commit, todo = whole.commit(tmp_path), batches(whole.base)[3:5]
    again = learner_for(LwF(3), adapter="smolora")
    again.resume(commit)
    for learner in (whole, again):
        for batch in todo:
            learner.learn(batch)
    assert again.snapshot().digest == whole.snapshot().digest


def test_commit_without_a_teacher_is_refused(tmp_path: Path) -> None:
    commit = learner_for(Sequential(3)).commit(tmp_path)
    with pytest.raises(UserError, match="no teacher of this strategy") as caught:
        learner_for(LwF(3)).resume(commit)
    assert "\n" not in str(caught.value) and caught.value.fix


def test_answers_to_the_current_samples_stay_nearer_to_the_teachers() -> None:
    kept = {}
    for strength in (0.0, 4.0):
        learner = learner_for(LwF(3, strength=strength))
        todo = batches(learner.base, per_chunk=4, count=8)
        for batch in todo[:4]:
            learner.learn(batch)
        teacher = learner.snapshot()
        for batch in todo[4:]:
            learner.learn(batch)
        kept[strength] = float(distance(learner, teacher, todo[7], 1.0).detach().mean())
    assert kept[4.0] < 0.5 * kept[0.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"strength": -0.1}, "strength must be at least 0"), ({"temperature": 0}, "temperature must be above 0")],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LwF(3, **options)
