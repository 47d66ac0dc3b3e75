"""Micro-batches, gradient checkpointing and rates by group: the same update with less memory, or another on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import TINY, tiny_base, tiny_conversations, tiny_samples

from streamcvit.adapters import InstructionEncoder, attach, expert_usage
from streamcvit.adapters.parts import Parts
from streamcvit.adapters.selection import Selection
from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.learning import STRATEGIES, OnlineLearner
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.models.vision import vision_dim

ADAPTERS = ("lora", "moelora", "smolora", "strlora")


def learner_for(base: Base, adapter: str, strategy: str = "sequential", options: Any = None, **more: Any) -> Any:
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, adapter, seed=3, options=options or {}, sizes=sizes)
    return OnlineLearner(
        base, more.pop("wrap", lambda plain: plain)(model), STRATEGIES[strategy](3), encoder=encoder, seed=3, **more
    )


def samples_of(kind: str) -> list[Sample]:
    """Ragged samples; of LLaVA some without a picture and some with two."""
    return [*tiny_samples(4), *tiny_conversations().values()] if kind == "llava" else tiny_samples(5)


def batch_of(base: Base, samples: list[Sample], micro: int = 0, start: int = 0) -> Batch:
    parts = base.collator.micro_batches(samples, micro)
    stop = start + len(samples)
    whole = parts[0] if len(parts) == 1 else None
    more = parts if len(parts) > 1 else ()
    return Batch(start, stop, 0, tuple(range(start, stop)), tuple(samples), whole, micro=more)


def gradients(learner: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None}


def learned(kind: str, adapter: str, steps: int = 2, cut: bool = True, **more: Any) -> Any:
    base = tiny_base(kind)
    learner = learner_for(base, adapter, max_grad_norm=1e9, **more)
    samples = samples_of(kind)
    reports, found = [], []
    for step in range(steps):
        micro = more.get("micro_batch", 0) if cut else 0
        reports.append(learner.learn(batch_of(base, samples, micro, step * len(samples))))
        found.append(gradients(learner))
    buffers = {n: b.clone() for n, b in learner.model.named_buffers() if "prototypes_" in n}
    return reports, found, buffers, expert_usage(learner.model)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", TINY)
def test_micro_batches_give_the_gradient_and_routers_of_the_whole_batch(kind: str, adapter: str) -> None:
    whole, split = learned(kind, adapter), learned(kind, adapter, micro_batch=2)
    torch.testing.assert_close(split[0][0].loss, whole[0][0].loss, rtol=1e-4, atol=1e-5)
    assert torch.equal(split[0][0].correct, whole[0][0].correct)
    assert split[1][0].keys() == whole[1][0].keys()
    for name, grad in whole[1][0].items():
        torch.testing.assert_close(split[1][0][name], grad, rtol=1e-3, atol=1e-5, msg=name)
    assert split[2].keys() == whole[2].keys()
    for name, buffer in whole[2].items():
        torch.testing.assert_close(split[2][name], buffer, rtol=1e-4, atol=1e-5, msg=name)
    assert split[3].keys() == whole[3].keys()
    for bank, use in whole[3].items():
        assert split[3][bank].shares == pytest.approx(use.shares, abs=1e-4)


@pytest.mark.parametrize("adapter", ["smolora", "strlora"])
def test_a_batch_that_comes_whole_is_cut_by_the_learner(adapter: str) -> None:
    cut, whole = learned("llava", adapter, 1, micro_batch=2), learned("llava", adapter, 1, False, micro_batch=2)
    assert all(torch.equal(grad, whole[1][0][name]) for name, grad in cut[1][0].items())


@pytest.mark.parametrize("micro", [0, 2])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_checkpointing_gives_the_same_gradient_to_the_bit(adapter: str, micro: int) -> None:
    plain = learned("llava", adapter, micro_batch=micro)
    again = learned("llava", adapter, micro_batch=micro, gradient_checkpointing=True)
    assert again[1][0].keys() == plain[1][0].keys()
    for step in range(2):
        assert all(torch.equal(grad, again[1][step][name]) for name, grad in plain[1][step].items())
    assert again[3] == plain[3]


def test_checkpointed_layers_do_compute_again_and_are_undone_with_the_adapter() -> None:
    base = tiny_base("llava")
    learner = learner_for(base, "lora", gradient_checkpointing=True)
    layer = base.model.get_submodule("model.language_model.layers.0.mlp.act_fn")
    calls, modes = [], []
    layer.register_forward_hook(lambda *_: calls.append(1))
    decoder = base.model.get_submodule("model.language_model.layers.0")
    layer.register_forward_hook(lambda *_: modes.append(decoder.training))
    learner.learn(batch_of(base, tiny_samples(3)))
    assert len(calls) == 2 and modes == [False, False]
    learner.model.unload()
    base.restore()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in base.model.modules())


@pytest.mark.parametrize(("adapter", "strategy"), [("smolora", "replay"), ("strlora", "sequential")])
def test_resuming_under_all_of_them_is_equal_to_the_bit(tmp_path: Path, adapter: str, strategy: str) -> None:
    more: dict[str, Any] = {"micro_batch": 2, "gradient_checkpointing": True, "lrs": {"B": 1e-2}, "warmup_steps": 3}
    samples = tiny_samples(12)
    digests, commit = [], None
    for life in range(2):
        base = tiny_base("llava")
        learner = learner_for(base, adapter, strategy, **more)
        if commit is not None:
            learner.resume(commit)
        for start in range(6 if life else 0, 12, 3):
            learner.learn(batch_of(base, samples[start : start + 3], 2, start))
            if start == 3 and not life:
                commit = learner.commit(tmp_path)
        digests.append(learner.snapshot().digest)
    assert digests[0] == digests[1]


def test_each_group_has_its_rate_and_warms_up_to_it() -> None:
    base = tiny_base("llava")
    learner = learner_for(base, "smolora", lr=1e-3, lrs={"layers.0": 4e-3, "B": 1e-2}, warmup_steps=2)
    learner.learn(batch_of(base, tiny_samples(3)))
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([2e-3, 5e-3, 5e-4])
    names = {id(p): n for n, p in learner.model.named_parameters()}
    found = [[names[id(p)] for p in group["params"]] for group in learner.optimizer.param_groups]
    assert all("layers.0" in name for name in found[0])
    assert all("smolora_B" in name and "layers.1" in name for name in found[1])
    assert sorted(sum(found, [])) == sorted(names[id(p)] for p in learner.parameters)


@pytest.mark.parametrize("kind", ["llava", "qwen25vl"])
def test_projector_tower_and_what_is_trained_whole_are_groups_wherever_they_lie(kind: str) -> None:
    base = tiny_base(kind)
    options = Selection(projector="whole", tower="adapter").options(base.model, {}, routed=False)
    learner = learner_for(base, "lora", options=options, lrs={"projector": 1e-4, "tower": 1e-5, "B": 1e-2})
    parts, names = Parts.of(base.model), {id(p): n for n, p in learner.model.named_parameters()}
    found = [
        {parts.part_of(names[id(p)].removeprefix("base_model.model.")) for p in group["params"]}
        for group in learner.optimizer.param_groups
    ]
    assert found == [{"projector"}, {"vision tower"}, {"language model"}, {"language model"}]
    whole = learner_for(tiny_base(kind), "lora", options=options, lrs={"whole": 1e-4})
    assert len(whole.optimizer.param_groups[0]["params"]) == len(learner.optimizer.param_groups[0]["params"])


@pytest.mark.parametrize(
    ("lrs", "said"), [({"tower": 1e-3}, "fits none"), ({"adapter": 1e-3, "B": 1e-3}, "before it"), ({"(": 1.0}, "nor")]
)
def test_a_group_that_fits_nothing_is_refused(lrs: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        learner_for(tiny_base("llava"), "lora", lrs=lrs)
