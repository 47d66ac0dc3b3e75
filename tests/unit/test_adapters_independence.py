"""A sample's output, loss and gradient are its own, whatever it is batched with and however it is padded."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from adapter_models import FAMILIES, METHODS, adapted, batch, close, forward, learned, row
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from streamcvit.adapters import after_step, auxiliary_loss, decide_routes

few = settings(max_examples=3, deadline=None, derandomize=True, database=None)
# Of outputs, and of gradients, which Qwen's float32 rounds to 1e-5. StrLoRA's sample router is float32 in any model.
TOLERANCES = {torch.float32: (1e-5, 3e-5), torch.float64: (1e-6, 1e-5)}
SETTINGS: dict[str, dict[str, Any]] = {
    **{method: {} for method in METHODS},
    "frozen prompt": {"pool": "prompt"},
    "straight_through prompt": {"pool": "prompt"},
    "strlora linear": {"attention_dim": 0, "sub_top_k": 2},
    "strlora sample": {"sub_top_k": 0},
}
CASES = [(setting, family) for family in FAMILIES for setting in SETTINGS]


@cache
def model_of(setting: str, family: str, dtype: torch.dtype = torch.float32) -> Any:
    return learned(setting.split()[0], family, **SETTINGS[setting]).to(dtype)


@st.composite
def batches(draw: Any) -> tuple[list[tuple[int, int, bool]], dict[str, Any], torch.dtype]:
    """Ragged samples in any order (seed, words, whether with a picture), how they are padded, and a precision."""
    shapes = draw(st.lists(st.tuples(st.integers(4, 9), st.booleans()), min_size=2, max_size=3))
    seeds = draw(st.permutations(range(len(shapes))))
    padding = {"left": draw(st.booleans()), "extra": draw(st.integers(0, 3))}
    return (
        [(seed, *shape) for seed, shape in zip(seeds, shapes, strict=True)],
        padding,
        draw(st.sampled_from(list(TOLERANCES))),
    )


def samples_of(family: str, drawn: list[tuple[int, int, bool]], dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    rows = [row(family, *each) for each in drawn]
    return [{name: t.to(dtype) if t.is_floating_point() else t for name, t in sample.items()} for sample in rows]


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss of each sample, summed over its answer; [B]."""
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return nll.view(len(labels), -1).sum(1)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same_alone(model: Any, rows: list[dict[str, torch.Tensor]], padding: dict[str, Any], decided: Any = None) -> None:
    """Assert that the batch gives every sample what it gets alone; `decided`: the batch's routes, decided before."""
    inputs, routing = batch(rows, **padding)
    out = forward(model, inputs, decided or routing).logits
    tolerance, of_gradients = TOLERANCES[out.dtype]
    losses = loss_of(out, inputs["labels"])
    losses.sum().backward()
    together, alone = gradients(model), {}
    for i, sample in enumerate(rows):
        single, routing = batch([sample])
        if decided:
            routing = type(routing)(routes=decided.routes[i : i + 1])
        logits = forward(model, single, routing).logits
        loss = loss_of(logits, single["labels"])
        loss.sum().backward()
        own = inputs["attention_mask"][i].bool()
        assert close(out[i][own], logits[0], tolerance)
        assert close(losses[i], loss[0], tolerance)
        for name, gradient in gradients(model).items():
            alone[name] = alone[name] + gradient if name in alone else gradient
    assert together.keys() == alone.keys()
    for name, gradient in together.items():
        assert close(gradient, alone[name], of_gradients), name


@pytest.mark.parametrize("setting, family", CASES)
def test_output_loss_and_gradient_are_the_same_alone_and_in_any_batch(setting, family):
    @few
    @given(batches())
    def check(drawn: Any) -> None:
        shapes, padding, dtype = drawn
        same_alone(model_of(setting, family, dtype), samples_of(family, shapes, dtype), padding)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_prototypes_in_training_route_alike_once_routes_are_decided(family):
    model = adapted(METHODS["prototype"](), FAMILIES[family]()).train().double()

    @few
    @given(batches())
    def check(drawn: Any) -> None:
        rows, padding = samples_of(family, drawn[0], torch.float64), drawn[1]
        decided = decide_routes(model, batch(rows, **padding)[1])
        same_alone(model, rows, padding, decided)
        after_step(model)

    check()


@pytest.mark.parametrize("linear", [False, True])
def test_distillation_of_a_batch_is_the_mean_over_its_tokens(linear):
    model = learned("strlora", "llama", **({"attention_dim": 0} if linear else {})).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name or "query" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))

    def added(rows: list[dict[str, torch.Tensor]], **padding: Any) -> torch.Tensor:
        forward(model, *batch(rows, **padding))
        loss = auxiliary_loss(model)
        assert loss is not None
        return loss

    @few
    @given(batches())
    def check(drawn: Any) -> None:
        rows, padding = samples_of("llama", drawn[0], torch.float32), drawn[1]
        lengths = torch.tensor([float(len(sample["input_ids"])) for sample in rows])
        single = torch.stack([added([sample]) for sample in rows])
        assert close(added(rows, **padding), (single * lengths).sum() / lengths.sum())
        assert (single > 0).all()

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_pooling_every_position_is_what_makes_a_sample_depend_on_padding(family):
    model = learned("frozen", family, pool="all", num_experts_visual=8)
    rows = [row(family, seed, 4 + 5 * (seed % 2)) for seed in range(6)]
    with pytest.raises(AssertionError):
        same_alone(model, rows, {"extra": 8})
