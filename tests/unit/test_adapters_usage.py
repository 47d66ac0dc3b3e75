"""Which experts training used, overall and layer by layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from adapter_models import adapted, moelora, samples, smolora, strlora, tiny_llama
from torch.nn import functional as F

from streamcvit.adapters import (
    ExpertUsage,
    checkpointing_kwargs,
    decide_routes,
    expert_usage,
    routing_kwargs,
    tuner_of,
)

CONFIGS = {router: lambda router=router: smolora(router=router) for router in ("frozen", "straight_through")} | {
    "prototype": smolora,
    "moelora": moelora,
    "moelora-top-k": lambda: moelora(top_k=2),
    "strlora": strlora,
    "strlora-all": lambda: strlora(top_k=0),
    "strlora-sample": lambda: strlora(sub_top_k=0),
}
BANKS = {"moelora": ["token"], "moelora-top-k": ["token"], "strlora-all": ["token"], "strlora-sample": ["instruction"]}
BANKS |= {"strlora": ["instruction", "token"]}


def train(model: Any, ids: torch.Tensor, routing: Any, **kwargs: Any) -> torch.Tensor:
    return model.train()(input_ids=ids, **routing_kwargs(model, routing), **kwargs).logits


@pytest.mark.parametrize("kind", CONFIGS)
def test_shares_sum_to_one_and_entropy_is_theirs(kind):
    model = adapted(CONFIGS[kind]())
    train(model, *samples(8))
    usage = expert_usage(model)
    assert list(usage) == BANKS.get(kind, ["visual", "instruction"])
    for use in usage.values():
        for shares in (use.shares, *use.layers.values()):
            assert sum(shares) == pytest.approx(1)
            assert min(shares) >= 0
        assert use.entropy == pytest.approx(-sum(p * math.log(p) for p in use.shares if p))
        assert 0 <= use.entropy <= math.log(len(use.shares)) + 1e-9
    assert expert_usage(model) == {}


def test_entropy_is_zero_for_one_expert_and_greatest_for_all_alike():
    assert ExpertUsage([0.0, 1.0, 0.0]).entropy == 0
    assert ExpertUsage([0.25] * 4).entropy == pytest.approx(math.log(4))


@pytest.mark.parametrize("kind", ["frozen", "straight_through", "strlora", "moelora"])
def test_layers_that_decide_for_themselves_differ(kind):
    model = adapted(CONFIGS[kind]())
    train(model, *samples(8))
    use = list(expert_usage(model).values())[0]
    assert len(use.layers) == 14
    assert all("layers." in name for name in use.layers)
    assert len({tuple(shares) for shares in use.layers.values()}) > 1
    # Every layer sees the same samples, so that the whole is the mean of the layers.
    mean = [sum(column) / 14 for column in zip(*use.layers.values(), strict=True)]
    assert use.shares == pytest.approx(mean, rel=1e-5)


def test_routes_that_all_layers_share_are_counted_once():
    model = adapted(smolora())
    ids, routing = samples(8)
    routes = torch.tensor([[0, 3], [0, 3], [1, 3], [2, 6]] * 2)
    train(model, ids, replace(routing, routes=routes))
    usage = expert_usage(model)
    assert usage["visual"].shares == [0.5, 0.25, 0.25]
    assert usage["instruction"].shares == [0.75, 0, 0, 0.25]
    assert usage["visual"].layers == {}


def test_counts_are_those_of_the_routes_the_layers_took():
    model = adapted(smolora(router="frozen"))
    ids, routing = samples(8)
    with tuner_of(model.train()).routing.using(routing, learning=True) as call:
        model.base_model.model(input_ids=ids)
    usage = expert_usage(model)
    for (_, layer), route in call.routes.items():
        for column, bank, first in ((0, "visual", 0), (1, "instruction", 3)):
            counts = torch.bincount(route[:, column] - first, minlength=len(usage[bank].shares))
            assert usage[bank].layers[layer] == (counts / 8).tolist()


@pytest.mark.parametrize("kind", ["moelora", "strlora"])
def test_weights_of_padding_do_not_count(kind):
    ids, routing = samples(4)
    found = []
    for pad in (0, 5):
        model = adapted(CONFIGS[kind]())
        attention = F.pad(torch.ones_like(ids), (0, pad))
        wide = replace(routing, prompt_mask=F.pad(routing.prompt_mask, (0, pad)), token_mask=attention.bool())
        train(model, F.pad(ids, (0, pad)), wide, attention_mask=attention)
        found.append(expert_usage(model)["token"])
    assert found[0].shares == pytest.approx(found[1].shares, abs=1e-5)
    assert found[0].layers.keys() == found[1].layers.keys()


def test_shares_of_tokens_are_the_mean_weights():
    model = adapted(moelora(target_modules=["q_proj"], layers_to_transform=[0]))
    ids, _ = samples(4)
    read: list[torch.Tensor] = []
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    train(model, ids, None)
    want = torch.softmax(read[0] @ layer.moelora_router["default"].T, -1).mean((0, 1))
    assert expert_usage(model)["token"].shares == pytest.approx(want.tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", ["frozen", "moelora", "strlora"])
def test_neither_evaluation_nor_forwards_without_gradients_count(kind):
    model = adapted(CONFIGS[kind]())
    ids, routing = samples(4)
    model.eval()(input_ids=ids, **routing_kwargs(model, routing))
    with torch.no_grad():
        train(model, ids, routing)
        model.eval().generate(input_ids=ids, max_new_tokens=2, **routing_kwargs(model, routing))
    assert expert_usage(model) == {}


@pytest.mark.parametrize("kind", ["frozen", "prototype", "moelora", "strlora"])
def test_gradient_checkpointing_counts_nothing_twice(kind):
    ids, routing = samples(4)
    found = []
    for checkpointed in (False, True):
        model = adapted(CONFIGS[kind]())
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_kwargs(model))
        for _ in range(2):
            train(model, ids, routing).sum().backward()
        found.append(tuner_of(model)._usage._counts)
    plain, again = found
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[key].float(), again[key].float(), rtol=1e-5) for key in plain)


@pytest.mark.parametrize("kind", CONFIGS)
def test_use_is_no_part_of_the_adapter(kind):
    model = adapted(CONFIGS[kind]())
    before = set(model.state_dict())
    train(model, *samples(4))
    assert set(model.state_dict()) == before


def test_reading_without_reset_goes_on_counting():
    model = adapted(smolora(router="frozen"))
    train(model, *samples(4, seed=1))
    first = expert_usage(model, reset=False)
    train(model, *samples(4, seed=7))
    both = expert_usage(model)
    train(model, *samples(4, seed=7))
    second = expert_usage(model)
    for bank in both:
        mean = [(a + b) / 2 for a, b in zip(first[bank].shares, second[bank].shares, strict=True)]
        assert both[bank].shares == pytest.approx(mean)


def test_adapter_with_other_experts_starts_its_own_count():
    model = adapted(moelora(num_experts=4))
    train(model, *samples(4))
    model.add_adapter("other", moelora(num_experts=2))
    model.set_adapter("other")
    train(model, *samples(4))
    assert len(expert_usage(model)["token"].shares) == 2


@pytest.mark.parametrize("kind", ["moelora", "strlora"])
def test_compiled_model_counts_the_same_in_one_graph(kind):
    torch._dynamo.reset()
    model = adapted(CONFIGS[kind](), tiny_llama(layers=1)).train()
    ids, routing = samples(4)
    keywords = routing_kwargs(model, decide_routes(model, routing))
    model(input_ids=ids, **keywords)
    plain = expert_usage(model)
    graphs = []
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    model(input_ids=ids, **keywords)
    for _ in range(2):
        compiled(input_ids=ids, **keywords)
    assert len(graphs) == 1
    counted = expert_usage(model)
    assert counted.keys() == plain.keys()
    for bank in plain:
        assert counted[bank].shares == pytest.approx(plain[bank].shares, abs=1e-6)
        assert counted[bank].layers.keys() == plain[bank].layers.keys()
    torch._dynamo.reset()
