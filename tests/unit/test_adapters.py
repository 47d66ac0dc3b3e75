"""Routed adapters as a PEFT user meets them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from adapter_models import adapted, moelora, padded, samples, smolora, strlora, tiny_llama, tiny_llava
from peft import LoraConfig, PeftModel, get_peft_model

from streamcvit.adapters import (
    ADAPTERS,
    RoutingInputs,
    after_step,
    checkpointing_kwargs,
    decide_routes,
    expert_usage,
    routing_kwargs,
    tuner_of,
)
from streamcvit.errors import UserError

ROUTERS = ["frozen", "straight_through", "prototype"]
CONFIGS = {router: lambda router=router: smolora(router=router) for router in ROUTERS} | {
    "moelora": moelora,
    "strlora": strlora,
}


@pytest.fixture(params=CONFIGS)
def model(request):
    """A tiny Llama under each adapter; prototype routers have learned from one batch."""
    model = adapted(CONFIGS[request.param]())
    ids, routing = samples(8, seed=5)
    model.train()(input_ids=ids, **routing_kwargs(model, routing))
    after_step(model)
    return model.eval()


def logits(model, ids, routing, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids, **routing_kwargs(model, routing), **kwargs).logits


def close(a, b, tolerance=1e-5):
    return float((a - b).detach().abs().max()) < tolerance


def test_adapter_starts_as_the_base_model():
    ids, routing = samples()
    model = adapted(smolora(init_weights=True))
    assert torch.equal(logits(model, ids, routing), tiny_llama()(input_ids=ids).logits)


def test_output_of_a_sample_does_not_depend_on_its_batch(model):
    ids, routing = samples()
    together = logits(model, ids, routing)
    alone = torch.cat([logits(model, ids[i : i + 1], routing.select(slice(i, i + 1))) for i in range(len(ids))])
    assert close(together, alone)


@pytest.mark.parametrize("left, right", [(4, 0), (0, 4)])
def test_padding_does_not_change_the_output(model, left, right):
    ids, routing = samples()
    attention = padded(torch.ones_like(ids), left, right)
    wide = RoutingInputs(routing.instruction, routing.visual, None, padded(routing.prompt_mask, left, right))
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    out = logits(model, padded(ids, left, right), wide, attention_mask=attention, position_ids=positions)
    assert close(out[:, left : left + ids.shape[1]], logits(model, ids, routing))


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


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_equals_generating_each_sample_alone(model, beams):
    ids, routing = samples()
    prompt = RoutingInputs(routing.instruction, routing.visual, None, torch.ones_like(ids, dtype=torch.bool))
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    together = model.generate(input_ids=ids, **routing_kwargs(model, prompt), **options)
    alone = [
        model.generate(input_ids=ids[i : i + 1], **routing_kwargs(model, prompt.select(slice(i, i + 1))), **options)
        for i in range(len(ids))
    ]
    assert torch.equal(together, torch.cat(alone))


def test_greedy_generation_follows_the_full_forward(model):
    ids, routing = samples()
    prompt = RoutingInputs(routing.instruction, routing.visual, None, torch.ones_like(ids, dtype=torch.bool))
    made = model.generate(input_ids=ids, **routing_kwargs(model, prompt), max_new_tokens=4, do_sample=False)
    whole = RoutingInputs(prompt.instruction, prompt.visual, None, padded(torch.ones_like(ids, dtype=torch.bool), 0, 3))
    full = logits(model, made[:, :-1], whole)
    assert torch.equal(full[:, -4:].argmax(-1), made[:, -4:])


def test_save_and_load_give_the_same_outputs_and_routes(model, tmp_path):
    ids, routing = samples()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(logits(loaded, ids, routing), logits(model, ids, routing))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_disabled_adapter_is_the_base_model_and_needs_no_routing(model):
    ids, _ = samples()
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits)


def test_second_adapter_can_be_added_chosen_and_deleted(model):
    ids, routing = samples()
    first = logits(model, ids, routing)
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("second")
    assert not close(logits(model, ids, routing), first)
    assert all("second" in name or "prototypes" in name for name, p in model.named_parameters() if p.requires_grad)
    model.set_adapter("default")
    assert torch.equal(logits(model, ids, routing), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model, ids, routing), first)
    assert not any("second" in name for name in model.state_dict())


def test_checkpointed_gradients_equal_plain_ones_with_two_forwards_before_a_backward(model):
    (ids, routing), (others, other_routing) = samples(), samples(seed=9)

    def gradients():
        model.zero_grad()
        first = model(input_ids=ids, labels=ids, **routing_kwargs(model, routing)).loss
        second = model(input_ids=others, labels=others, **routing_kwargs(model, other_routing)).loss
        (first + 2 * second).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    # Prototypes learn in training mode; decided beforehand, both runs route alike.
    routing, other_routing = decide_routes(model, routing), decide_routes(model, other_routing)
    plain = gradients()
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_kwargs(model))
    model.enable_input_require_grads()
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    assert all(close(plain[name], checkpointed[name]) for name in plain)


def test_recomputing_without_the_context_is_refused_rather_than_misrouted():
    model = adapted(smolora(router="frozen")).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
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


def test_merging_is_refused(model):
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match="cannot be merged"):
            merge()
    assert model.unload() is not None


def test_only_what_can_learn_is_trainable(model):
    ids, routing = samples()
    model.train()(input_ids=ids, labels=ids, **routing_kwargs(model, routing)).loss.backward()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in model.named_parameters() if p.grad is not None}
    kinds = {name.split(".")[-2] for name in trainable}
    gates = {"smolora_gate_visual", "smolora_gate_instruction"}
    if getattr(model.peft_config["default"], "router", "") == "straight_through":
        assert gates <= kinds
    else:
        assert not gates & kinds


def test_modules_to_save_are_trained_and_saved(tmp_path):
    ids, routing = samples()
    model = adapted(smolora(router="frozen", modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(logits(loaded, ids, routing), logits(model, ids, routing))


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


def test_bfloat16_base_runs_with_float32_experts(model):
    config = copy.deepcopy(model.peft_config["default"])
    half = adapted(config, tiny_llama().to(torch.bfloat16))
    ids, routing = samples()
    out = half(input_ids=ids, labels=ids, **routing_kwargs(half, routing))
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    weights = [p for p in half.parameters() if p.requires_grad]
    assert weights
    assert {p.dtype for p in weights} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in weights)


def test_autocast_runs_the_experts_in_the_base_layers_type(model):
    ids, routing = samples()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(input_ids=ids, labels=ids, **routing_kwargs(model, routing))
        out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    # On average: where rounding makes a token of StrLoRA take its other expert, that token differs by more.
    assert float((out.logits.float() - logits(model, ids, routing)).detach().abs().mean()) < 0.03


def test_model_and_configuration_survive_copy_and_pickle(model):
    ids, routing = samples()
    before = logits(model, ids, routing)
    assert torch.equal(logits(copy.deepcopy(model), ids, routing), before)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), ids, routing), before)
    config = model.peft_config["default"]
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


def test_copy_of_a_model_routes_by_its_own_context():
    model = adapted(smolora(router="frozen"))
    twin = copy.deepcopy(model)
    assert tuner_of(twin).routing is not tuner_of(model).routing
    layers = [m for m in twin.modules() if hasattr(m, "smolora_A")]
    assert all(layer.routing is tuner_of(twin).routing for layer in layers)
    assert tuner_of(twin).routing._begin.__self__ is tuner_of(twin)


def test_picture_model_routes_by_its_image_tokens():
    inputs, routing = pictures()
    model = adapted(smolora(router="frozen"), tiny_llava())
    with torch.no_grad():
        out = model(**inputs, routing=routing).logits
        alone = model(**{k: v[:1] for k, v in inputs.items()}, routing=routing.select(slice(0, 1))).logits
    assert close(out[:1], alone)
    assert not any("vision_tower" in name for name, p in model.named_parameters() if p.requires_grad)
    prompt = RoutingInputs(routing.instruction, None, routing.image_mask, routing.prompt_mask)
    made = model.generate(**inputs, routing=prompt, max_new_tokens=3, do_sample=False)
    assert made.shape == (3, 12)


def test_expert_usage_counts_training_samples_only():
    ids, routing = samples(8)
    model = adapted(smolora())
    logits(model, ids, routing)
    assert expert_usage(model) == {}
    model.train()(input_ids=ids, routing=routing)
    usage = expert_usage(model)
    assert {bank: len(shares) for bank, shares in usage.items()} == {"visual": 3, "instruction": 4}
    assert all(abs(sum(shares) - 1) < 1e-6 for shares in usage.values())
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
    for name in ADAPTERS:
        options = {"visual_dim": 4} if name == "smolora" else {}
        config: Any = ADAPTERS[name]({"r": 2, **options}, ["q_proj"])
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
