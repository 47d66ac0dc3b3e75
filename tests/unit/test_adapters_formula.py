"""SMoLoRA's hand-written gradient against the formula written out sample by sample and differentiated by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_models import INSTRUCTION_DIM, VISUAL_DIM, adapted, smolora
from torch import nn

from streamcvit.adapters import RoutingInputs, decide_routes
from streamcvit.adapters.smolora.function import Route, RoutedExperts, Step

B, S, WIDTH, OUT = 5, 4, 6, 7


def case(seed: int = 0) -> tuple[torch.Tensor, RoutingInputs, torch.Tensor]:
    """Input [B, S, I], routing inputs and upstream gradient [B, S, O], in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, S, WIDTH, generator=generator, dtype=torch.float64)
    prompt = torch.ones(B, S, dtype=torch.bool)
    prompt[::2, -1] = False
    routing = RoutingInputs(
        instruction=torch.randn(B, INSTRUCTION_DIM, generator=generator, dtype=torch.float64),
        visual=torch.randn(B, VISUAL_DIM, generator=generator),
        prompt_mask=prompt,
    )
    return x, routing, torch.randn(B, S, OUT, generator=generator, dtype=torch.float64)


def written_out(layer: Any, x: torch.Tensor, routing: Any) -> torch.Tensor:
    """The layer's output by its definition: every branch formed, weights of one with the gate's softmax gradient."""
    config = layer.configs["default"]
    a, b, s = layer.smolora_A["default"], layer.smolora_B["default"], layer.scaling["default"]
    rows = []
    for i in range(len(x)):
        branches, offset = [], 0
        for column, (bank, size) in enumerate(config.bank_sizes.items()):
            weight: torch.Tensor | float = 1.0
            if config.router == "prototype":
                expert = int(routing.routes[i, column])
            else:
                mask = routing.prompt_mask[i]
                read = x[i][mask].mean(0).detach() if bank == "visual" else routing.instruction[i]
                share = torch.softmax(getattr(layer, f"smolora_gate_{bank}")["default"] @ read, 0)
                chosen = int(share.argmax())
                expert = chosen + offset
                if config.router == "straight_through":
                    weight = 1 + share[chosen] - share[chosen].detach()
            branches.append(weight * s * x[i] @ a[expert].T @ b[expert])
            offset += size
        out = branches[0]
        if len(branches) == 2 and config.fusion == "even":
            out = (branches[0] + branches[1]) / 2
        elif len(branches) == 2:
            fc = layer.smolora_fc["default"]
            shares = torch.softmax(
                torch.stack([branch @ row for branch, row in zip(branches, fc, strict=True)], -1), -1
            )
            out = sum(shares[:, m : m + 1] * branches[m] for m in range(2))
        rows.append(layer.base_layer(x[i]) + out)
    return torch.stack(rows)


@pytest.mark.parametrize(
    "banks, fusion", [("both", "learned"), ("both", "even"), ("visual", "even"), ("instruction", "learned")]
)
@pytest.mark.parametrize("router", ["frozen", "straight_through", "prototype"])
def test_output_and_every_gradient_are_those_of_the_formula(router, banks, fusion):
    x, routing, upstream = case()
    config = smolora(router=router, banks=banks, fusion=fusion, target_modules=["0"])
    model = adapted(config, nn.Sequential(nn.Linear(WIDTH, OUT))).double().train()
    layer = model.base_model.model[0]
    routing = decide_routes(model, routing)
    found = []
    for run in (lambda inputs: model(inputs, routing=routing), lambda inputs: written_out(layer, inputs, routing)):
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        out = run(inputs)
        out.backward(upstream)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({"out": out.detach(), "x": inputs.grad, **gradients})
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-10, atol=1e-12), name
    if router == "straight_through":
        gates = [name for name in ours if "gate" in name]
        assert len(gates) == (2 if banks == "both" else 1)
        assert all(ours[name].abs().max() > 1e-6 for name in gates)


def test_gradient_passes_the_numerical_check():
    torch.manual_seed(0)
    index = torch.tensor([[0, 3], [1, 2], [0, 3]])
    route = Route.of(index, 4, torch.float64)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    inputs = (leaf(3, 2, 5), leaf(3, 2, 6), leaf(4, 2, 5), leaf(4, 2, 6), leaf(2, 6))

    def run(x, base, a, b, fc):
        return RoutedExperts.apply(
            x, base, a, b, fc, None, route.flat, route.score, route.owner, route.score_owner, 1.5
        )

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("samples", [3, 1])  # with one, its experts are fewer than all
@pytest.mark.parametrize("banks, fused", [(2, True), (2, False), (1, False)])
def test_one_token_equals_the_full_formula(banks, fused, samples):
    torch.manual_seed(0)
    index = torch.tensor([[0, 3], [1, 2], [0, 3]]) if banks == 2 else torch.tensor([[2], [0], [2]])
    index = index[:samples]
    x, base, a, b = torch.randn(samples, 1, 5), torch.randn(samples, 1, 6), torch.randn(4, 2, 5), torch.randn(4, 2, 6)
    fc = torch.randn(2, 6) if fused else None
    with torch.no_grad():
        route = Route.of(index, 4, torch.float32)
        quick = Step.of(route, fc, a, b, 1.5, torch.float32).add(x, base)
        full = RoutedExperts.apply(
            x, base, a, b, fc, None, route.flat, route.score, None, None, 1.5 if fused else 1.5 / banks
        )
    assert torch.allclose(quick, full, atol=1e-5)
