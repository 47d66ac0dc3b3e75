"""Routed adapters as a PEFT user meets them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_models import METHODS, adapted, close, learned, samples, smolora, tiny_llama
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint

from streamcvit.adapters import (
    ADAPTERS,
    RoutingInputs,
    after_step,
    expert_usage,
    routing_kwargs,
    tuner_of,
)
from streamcvit.errors import UserError

ROUTERS = ["frozen", "straight_through", "prototype"]


@pytest.fixture(params=METHODS)
def model(request):
    """A tiny Llama under each adapter; prototype routers have learned from one batch."""
    return learned(request.param, "llama")


def logits(model, ids, routing, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids, **routing_kwargs(model, routing), **kwargs).logits


def test_adapter_starts_as_the_base_model():
    ids, routing = samples()
    model = adapted(smolora(init_weights=True))
    assert torch.equal(logits(model, ids, routing), tiny_llama()(input_ids=ids).logits)


def test_decoding_keeps_the_route_of_the_prefill(model):
    ids, routing = samples()
    prefill = RoutingInputs(routing.instruction, routing.visual, None, routing.prompt_mask[:, :-2])
    full = logits(model, ids, routing)
    tuner = tuner_of(model)
    with torch.no_grad(), tuner.routing.using(prefill):
        out = model(input_ids=ids[:, :-2], use_cache=True)
        steps = [out.logits]
        for t in (-2, -1):
            out = model(input_ids=ids[:, t:][:, :1], past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits)
    assert close(torch.cat(steps, 1), full)


def test_recomputing_without_the_context_is_refused_rather_than_misrouted():
    model = adapted(smolora(router="frozen")).train()
    model.gradient_checkpointing_enable()
    for block in model.base_model.model.model.layers:
        block._gradient_checkpointing_func = lambda run, *args: checkpoint(run, *args, use_reentrant=False)
    model.enable_input_require_grads()
    ids, routing = samples()
    loss = model(input_ids=ids, labels=ids, routing=routing).loss
    with pytest.raises(UserError, match="checkpointing_kwargs"):
        loss.backward()


def test_missing_routing_inputs_are_named_with_the_fix():
    ids, routing = samples()
    model = adapted(smolora(router="frozen"))
    with pytest.raises(UserError, match=r"Pass routing=RoutingInputs"):
        model(input_ids=ids)
    with pytest.raises(UserError, match="prompt_mask"):
        model(input_ids=ids, routing=RoutingInputs(instruction=routing.instruction))
    with pytest.raises(UserError, match="instruction"):
        model(input_ids=ids, routing=RoutingInputs(prompt_mask=routing.prompt_mask))
    with pytest.raises(UserError, match="visual"):
        adapted(smolora())(input_ids=ids, routing=RoutingInputs(instruction=routing.instruction))
    with pytest.raises(UserError, match="3 samples"):
        model(input_ids=ids[:2], routing=routing)


@pytest.mark.parametrize("banks", ["visual", "instruction"])
@pytest.mark.parametrize("router", ROUTERS)
def test_one_bank_alone_acts_at_weight_one(banks, router):
    ids, routing = samples()
    model = adapted(smolora(banks=banks, router=router))
    out = logits(model, ids, routing)
    layer = next(module for module in model.modules() if hasattr(module, "smolora_A"))
    assert "default" not in layer.smolora_fc
    x = torch.randn(3, 9, layer.in_features)
    tuner = tuner_of(model)
    with torch.no_grad(), tuner.routing.using(routing) as call:
        got = layer(x)
        (expert,) = layer.route("default", call, x)[0].experts.T
        a, b = layer.smolora_A["default"][expert], layer.smolora_B["default"][expert]
        want = layer.base_layer(x) + 2 * x @ a.mT @ b
    assert close(got, want)
    assert not close(out, tiny_llama()(input_ids=ids).logits)


def test_autocast_runs_the_experts_in_the_base_layers_type(model):
    ids, routing = samples()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(input_ids=ids, labels=ids, **routing_kwargs(model, routing))
        out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    # By the median: where rounding makes a token of StrLoRA take its other expert, that token differs by more.
    assert float((out.logits.float() - logits(model, ids, routing)).detach().abs().median()) < 0.05


def test_expert_usage_counts_training_samples_only():
    ids, routing = samples(8)
    model = adapted(smolora())
    logits(model, ids, routing)
    assert expert_usage(model) == {}
    model.train()(input_ids=ids, routing=routing)
    usage = expert_usage(model)
    assert {bank: len(use.shares) for bank, use in usage.items()} == {"visual": 3, "instruction": 4}
    assert all(abs(sum(use.shares) - 1) < 1e-6 for use in usage.values())
    assert expert_usage(model) == {}
    assert not any("usage" in name for name in model.state_dict())


def test_stock_lora_takes_no_routing_and_no_step():
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    ids, routing = samples()
    assert routing_kwargs(model, routing) == {}
    assert tuner_of(model) is None
    assert expert_usage(model) == {}
    after_step(model)
    model(input_ids=ids, **routing_kwargs(model, routing))


def test_named_adapters_build_their_configurations():
    needed: dict[str, Any] = {
        "smolora": {"visual_dim": 4},
        "eproj": {"visual_dim": 4},
        "tasklora": {"tasks": ["colour"]},
    }
    for name in ADAPTERS:
        rank = {} if name == "eproj" else {"r": 2}
        config: Any = ADAPTERS[name]({**rank, **needed.get(name, {})}, ["q_proj"])
        assert config.peft_type == name.upper()
        assert set(config.target_modules) == {"q_proj"}
    with pytest.raises(UserError, match="colour"):
        ADAPTERS["smolora"]({"colour": "red"}, None)


@pytest.mark.parametrize(
    "options", [{"router": "magic"}, {"pool": "none"}, {"banks": "three"}, {"visual_dim": None}, {"r": 0}]
)
def test_impossible_configurations_are_refused(options):
    with pytest.raises(UserError):
        smolora(**options)
