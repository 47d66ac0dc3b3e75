"""A base in bfloat16 with an adapter, gradients and moments in float32, in learner and evaluator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from familychecks import batches, learner, learns_and_resumes
from models import tiny_llava, tiny_samples

from streamcvit.evaluation.generate import Generator
from streamcvit.models.base import Base


@pytest.mark.parametrize("adapter", ["lora", "smolora", "strlora", "moelora"])
def test_what_is_learned_is_float32_on_a_base_in_bfloat16(adapter: str, tmp_path: Path) -> None:
    model, processor = tiny_llava()
    base = Base(model.to(torch.bfloat16), processor)
    assert base.dtype == torch.bfloat16
    learns_and_resumes(base, adapter, tmp_path, steps=2)
    one = learner(base, adapter)
    for batch in batches(base, 2):
        one.learn(batch)
    before = one.snapshot()
    generator = Generator(base, batch_size=2)
    generator.answer(one.model.eval(), generator.prepare(tiny_samples(2)), 4)
    moments = [t for state in one.optimizer.state_dict()["state"].values() for t in state.values() if t.dim()]
    held = [*one.parameters, *(p.grad for p in one.parameters if p.grad is not None), *moments]
    assert len(held) >= 3 * len(one.parameters) and {t.dtype for t in held} == {torch.float32}
    assert {t.dtype for t in before.tensors.values() if t.is_floating_point()} == {torch.float32}
    one.step += 1  # so that it is taken anew
    assert one.snapshot().digest == before.digest
    assert {p.dtype for name, p in base.model.named_parameters() if "lora" not in name} == {torch.bfloat16}
