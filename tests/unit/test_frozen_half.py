"""While an adapter learns, whatever is frozen stands still: dropout, batch norm and drop path do not act."""

from __future__ import annotations

import pytest
import torch
from models import tiny_llava, tiny_samples
from torch import nn

from streamcvit.adapters import learning_mode
from streamcvit.adapters.build import attach
from streamcvit.adapters.targets import target_modules
from streamcvit.learning import OnlineLearner
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.models.vision import encode_images


class Norm(nn.Module):
    """A batch norm over features, as FastVLM's tower has them, after an activation."""

    def __init__(self, act: nn.Module, width: int) -> None:
        super().__init__()
        self.act, self.norm = act, nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.act(x).flatten(0, -2)).view(x.shape)


@pytest.fixture
def base() -> Base:
    model, processor = tiny_llava()
    model.model.multi_modal_projector.act = Norm(nn.GELU(), 32)
    for name, module in model.named_modules():
        if name.endswith("self_attn"):
            module.dropout = module.attention_dropout = 0.5
    return Base(model, processor)


def batch_of(base: Base, start: int = 0) -> Batch:
    samples = tiny_samples(4)
    return Batch(start, start + 4, 0, tuple(range(start, start + 4)), tuple(samples), base.collator.train(samples))


def learner_for(base: Base, **options: object) -> OnlineLearner:
    return OnlineLearner(base, attach(base.model, "lora", target_modules(base.model), options=options))


def test_dropout_and_batch_norm_of_the_frozen_half_do_not_act(base: Base) -> None:
    buffers = {name: value.clone() for name, value in base.model.named_buffers()}
    batch, learner = batch_of(base), learner_for(base)
    assert batch.inputs is not None
    pooled = encode_images(learner.model, batch.inputs).pooled
    with torch.no_grad():
        expected = learner.losses(batch.inputs)[0]
    report = learner.learn(batch)
    assert report is not None and torch.equal(report.loss, expected)
    assert torch.equal(encode_images(learner.model, batch.inputs).pooled, pooled)
    learner.model.train(True)  # what an evaluation between two steps leaves behind
    learner.learn(batch_of(base, 4))
    assert torch.equal(encode_images(learner.model, batch.inputs).pooled, pooled)
    held = {name.replace("base_layer.", ""): value for name, value in base.model.named_buffers()}
    assert buffers.keys() <= held.keys()
    assert all(torch.equal(held[name], value) for name, value in buffers.items())


def test_dropout_of_the_adapter_and_modules_that_are_trained_whole_do_act(base: Base) -> None:
    learner = learner_for(base, lora_dropout=0.5, modules_to_save=["multi_modal_projector"])
    training = {name for name, module in learner.model.named_modules() if module.training}
    assert {name.rpartition(".")[2] for name in training if "lora_dropout" in name} == {"lora_dropout", "default"}
    saved = {name.partition("modules_to_save.default")[2] for name in training if "modules_to_save.default" in name}
    assert saved == {"", ".linear_1", ".linear_2", ".act", ".act.act"}  # and not .act.norm
    assert not any("original_module" in name or "base_layer" in name for name in training)
    attention = [module for name, module in learner.model.named_modules() if name.endswith("self_attn")]
    assert attention and not any(module.training for module in attention)


def test_gradient_checkpointing_still_acts(base: Base) -> None:
    learner = learner_for(base)
    base.model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    own = base.model.model.language_model.layers[0].mlp.forward
    base.model.model.language_model.layers[0].mlp.forward = lambda x: (calls.append(1), own(x))[1]
    learning_mode(learner.model)
    learner.learn(batch_of(base))
    assert len(calls) == 2
