"""A step never waits for the device but once, where a routed adapter's optimizer asks which experts were used."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from models import tiny_base, tiny_samples
from ondevice import META, Device

from streamcvit.adapters import InstructionEncoder, attach
from streamcvit.adapters.prototypes import Prototypes
from streamcvit.learning import EWC, LwF, OnlineLearner
from streamcvit.models.batch import Batch
from streamcvit.models.vision import vision_dim


def test_device_computes_and_counts_what_the_host_waits_for() -> None:
    with Device() as device:
        x = torch.arange(6.0, device=META).view(2, 3).requires_grad_()
        (x * 2 + torch.ones(2, 3, device=META)).sum().backward()
        y, mask = x.detach()[:, 1:], torch.tensor([True, False])
        y += 1
        assert x.device == y.device == x.grad.device == META
        picked = x[mask]
        assert device.reads == []
        for wait in (
            lambda: float(x.detach().sum()),
            lambda: bool((x > 0).all()),
            lambda: x.cpu(),
            lambda: x[mask.to(META)],
            lambda: (x > 0).nonzero(),
            lambda: torch.zeros(2, 3).copy_(x.detach()),
        ):
            device.reads.clear()
            wait()
            assert len(device.reads) == 1 and "test_host_reads.py" in device.reads[0]
        with pytest.raises(RuntimeError, match="mixes tensors of the device with others"):
            x + torch.ones(2, 3)
    assert picked.held.tolist() == [[0, 2, 3]]
    assert x.grad.held.tolist() == [[2.0] * 3] * 2


def on_device(model: torch.nn.Module) -> None:
    """Move a model there; prototypes go apart, as on the real meta device they would lose their values."""
    held = [(m, {n: b.to(META) for n, b in m.named_buffers()}) for m in model.modules() if isinstance(m, Prototypes)]
    model.to(META)
    for module, buffers in held:
        module._buffers.update(buffers)


def steps(adapter: str, there: bool, options: dict[str, Any], **more: Any) -> tuple[list[list[str]], Any]:
    """What the host read in each of some steps, and the learner that took them."""
    base, device, reads = tiny_base("llava"), Device(), []
    dim = vision_dim(base.model)
    model = attach(base.model, adapter, seed=3, options=options, sizes={"instruction_dim": dim, "visual_dim": dim})
    more = copy.deepcopy(more)  # a strategy is of one learner
    with device if there else nullcontext():
        if there:
            on_device(model)
            base.device = META
        encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
        encoder.encode(["Read the table of embeddings, once a run."])
        learner = OnlineLearner(base, model, encoder=encoder, seed=3, **more)
        samples = tiny_samples(3)
        for _ in range(2 if adapter == "smolora" or "strategy" in more else 1):
            batch = Batch(0, 3, 0, (0, 1, 2), tuple(samples), base.collator.train(samples))
            learner.strategy.after_chunk(0, model)
            device.reads.clear()
            learner._step(batch)
            reads.append(list(device.reads))
    return reads, learner


CASES: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("lora", 0, {}, {"micro_batch": 2}),
    ("moelora", 1, {"top_k": 2}, {}),
    ("smolora", 1, {"fusion": "learned"}, {"micro_batch": 2, "gradient_checkpointing": True}),
    ("smolora", 1, {"router": "frozen"}, {"warmup_steps": 3}),
    ("strlora", 1, {}, {"micro_batch": 2}),
    ("smolora", 1, {}, {"strategy": LwF(), "micro_batch": 2}),
    ("lora", 1, {}, {"strategy": EWC()}),
]


@pytest.mark.parametrize(("adapter", "once", "options", "more"), CASES)
def test_step_reads_nothing_from_the_device_but_which_experts_were_used(
    adapter: str, once: int, options: dict[str, Any], more: dict[str, Any]
) -> None:
    reads, learner = steps(adapter, True, options, **more)
    for found in reads:
        ours = [read for read in found if "streamcvit/" in read.partition(" < ")[0]]
        assert len(ours) == once, ours
        assert all("optim.py" in read for read in ours)
        # The base's own: whether placeholders and features are as many, and whether anything is padded.
        assert all("transformers/" in read.partition(" < ")[0] for read in found if read not in ours)
    for group in learner.optimizer.param_groups:
        for parameter in group["params"]:
            state = learner.optimizer.state[parameter]
            assert {parameter.device, parameter.grad.device, *(t.device for t in state.values())} == {META}
    _, plain = steps(adapter, False, options, **more)
    for ours, theirs in zip(learner.parameters, plain.parameters, strict=True):
        # To rounding, which Adam makes much of where a gradient is nearly zero.
        assert (ours.held - theirs).abs().mean() < 1e-5
