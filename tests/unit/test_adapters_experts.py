"""The hand-written gradients of experts weighed per token, and what they keep for backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_models import LINEARS, adapted, moelora, samples, strlora, tiny_llama
from peft import LoraConfig, get_peft_model

from streamcvit.adapters import RoutingInputs, auxiliary_loss, routing_kwargs
from streamcvit.adapters.experts import Chosen, TokenExperts, largest
from streamcvit.adapters.strlora.function import AttentionRows

BATCH, LENGTH, EXPERTS, RANK, WIDTH, OUT = 3, 4, 4, 2, 5, 6
INDEX = torch.tensor([[0, 3], [1, 2], [3, 0]])


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def run(
    inputs: tuple[torch.Tensor, ...], teacher: torch.Tensor | None, keep: int, straight: bool, through: bool
) -> Any:
    chosen = Chosen.of(INDEX, EXPERTS, torch.float64)
    return TokenExperts.apply(*inputs, teacher, chosen.flat, chosen.owner, keep, straight, through, 1.5, 0.7)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return (
        leaf(BATCH, LENGTH, WIDTH),
        leaf(BATCH, LENGTH, OUT),
        leaf(EXPERTS, RANK, WIDTH),
        leaf(EXPERTS, RANK, OUT),
        leaf(BATCH * 2, 1, WIDTH),
    )


@pytest.mark.parametrize("keep", [0, 1])
def test_gradient_of_token_experts_passes_the_numerical_check(inputs, keep):
    assert torch.autograd.gradcheck(lambda *tensors: run(tensors, None, keep, False, True)[0], inputs)


def test_gradient_of_the_divergence_passes_the_numerical_check(inputs):
    x, base, a, b, rows = inputs
    teacher = torch.randn(BATCH * 2, 1, WIDTH, dtype=torch.float64)
    # By the student's rows only: the teacher reads x too, and its scores get no gradient.
    assert torch.autograd.gradcheck(lambda rows: run((x.detach(), base, a, b, rows), teacher, 0, True, True), (rows,))


def test_dropped_experts_pass_their_gradient_only_where_asked(inputs):
    x, base, a, b, rows = inputs

    def written_out(straight: bool) -> torch.Tensor:
        share = torch.softmax(torch.einsum("bsi,bki->bks", x, rows.view(BATCH, 2, WIDTH)), 1)
        kept = torch.zeros_like(share).scatter(1, share.argmax(1, keepdim=True), 1.0)
        weights = kept - share.detach() + share if straight else kept * share
        h = torch.einsum("bsi,bkri->bkrs", x, a[INDEX]) * weights.unsqueeze(2)
        return base + 0.7 * torch.einsum("bkrs,bkro->bso", h, b[INDEX])

    for straight in (True, False):
        ours, theirs = run(inputs, None, 1, straight, True)[0], written_out(straight)
        upstream = torch.randn(ours.shape, dtype=torch.float64)
        assert torch.allclose(ours, theirs)
        for got, want in zip(
            torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
        ):
            assert torch.allclose(got, want)


def test_divergence_leaves_the_input_alone_unless_told(inputs):
    teacher = torch.randn(BATCH * 2, 1, WIDTH, dtype=torch.float64)
    for through in (False, True):
        divergence = run(inputs, teacher, 1, True, through)[1]
        by_x, by_rows = torch.autograd.grad(divergence.sum(), (inputs[0], inputs[4]))
        assert by_x.any() == through
        assert by_rows.any()


def test_gradient_of_attention_rows_passes_the_numerical_check():
    torch.manual_seed(0)
    text, size = torch.randn(BATCH, 3, dtype=torch.float64), 7
    chosen = Chosen.of(INDEX, EXPERTS, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *weights: AttentionRows.apply(text, *weights, chosen.flat, chosen.owner),
        (leaf(size, 3), leaf(size, WIDTH), leaf(EXPERTS, size)),
    )


def test_largest_keeps_one_of_equal_shares():
    equal = torch.full((2, 4, 3), 0.25)
    for keep in (1, 2):
        assert torch.equal(largest(equal, keep, renormalise=True).sum(1), torch.ones(2, 3))
        assert torch.equal((largest(equal, keep, renormalise=False) > 0).sum(1), torch.full((2, 3), keep))
    assert largest(equal, 0, renormalise=True) is equal


@pytest.mark.parametrize("options", [{"num_experts": 1, "top_k": 1}, {"top_k": 0}, {"top_k": 3, "sub_top_k": 2}])
@pytest.mark.parametrize("attention_dim", [6, 0])
def test_decode_step_weighs_as_the_full_forward_does(options, attention_dim):
    ids, routing = samples()
    model = adapted(strlora(attention_dim=attention_dim, **options))
    layer = next(module for module in model.modules() if hasattr(module, "strlora_A"))
    x = torch.randn(3, 2, layer.in_features)
    with torch.no_grad(), layer.routing.using(routing):
        together = layer(x)
        steps = torch.cat([layer(x[:, :1]), layer(x[:, 1:])], 1)
    assert torch.allclose(together, steps, atol=1e-5)


def kept_bytes(model: Any, ids: torch.Tensor, routing: RoutingInputs) -> int:
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(input_ids=ids, **routing_kwargs(model, routing)).logits
    auxiliary_loss(model)
    assert out.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("config", [strlora(r=4), moelora(r=2), moelora(r=2, top_k=2)], ids=["strlora", "soft", "top"])
def test_no_more_is_kept_for_backward_than_a_tenth_above_lora(config):
    ids, routing = samples(4, 64)
    lora = get_peft_model(tiny_llama(width=64), LoraConfig(r=8, target_modules=LINEARS)).train()
    ours = adapted(config, tiny_llama(width=64)).train()
    assert kept_bytes(ours, ids, routing) <= 1.1 * kept_bytes(lora, ids, routing)
