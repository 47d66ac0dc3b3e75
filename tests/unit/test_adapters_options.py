"""Dropout, and ranks and scalings by layer, of routed adapters: what PEFT's LoRA has under the same names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import METHODS, adapted, batch, close, forward, learned, row
from models import tiny_base, tiny_samples
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional as F

from streamcvit.adapters import InstructionEncoder, attach, tuner_of, undo_step
from streamcvit.errors import UserError
from streamcvit.learning import OnlineLearner
from streamcvit.models.batch import Batch
from streamcvit.models.vision import vision_dim
from tests.models import tiny_llama

DROPS = {**METHODS, "strlora_linear": lambda **o: METHODS["strlora"](attention_dim=0, **o)}
DROPS["strlora_sample"] = lambda **o: METHODS["strlora"](sub_top_k=0, **o)
ROWS = [row("llama", seed, text=5 + seed) for seed in range(2)]
RANKS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.down_proj": 2},
    "alpha_pattern": {r".*\.1\.self_attn\.v_proj": 30, "up_proj": 7.5},
}


def layers(model: Any) -> dict[str, Any]:
    return {module.key: module for module in model.modules() if isinstance(module, BaseTunerLayer)}


def logits(model: Any, **options: Any) -> torch.Tensor:
    return forward(model, *batch(ROWS), **options).logits.detach()


@pytest.fixture(params=DROPS)
def method(request: Any) -> str:
    return request.param


def test_dropout_acts_in_training_alone(method: str) -> None:
    model, plain = adapted(DROPS[method](lora_dropout=0.5)), adapted(DROPS[method]())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(logits(model), logits(plain))
    once, again = logits(model.train()), logits(model)
    assert not close(once, again)
    with torch.no_grad():
        assert not close(logits(model), logits(model))
    torch.manual_seed(5)
    first = logits(model)
    torch.manual_seed(5)
    assert torch.equal(logits(model), first)
    undo_step(model)
    assert torch.equal(logits(model.eval()), logits(plain))


def test_dropout_keeps_the_mean_and_what_routers_see(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(DROPS[method](lora_dropout=0.3, target_modules=["q_proj"])).train()
    tuner, layer = tuner_of(model), next(iter(layers(model).values()))
    inputs = torch.randn(2, 4, layer.in_features)
    routing = batch([row("llama", seed, text=4) for seed in range(2)])[1]

    def output(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[Any, torch.Tensor]]:
        with tuner.routing.using(routing, learning=True) as call:
            out = layer(x)
        return out - layer.base_layer(x), *((call.routes, call.weights)[bool(call.weights)],)  # type: ignore[return-value]

    with torch.no_grad():
        seen = [output(inputs) for _ in range(120)]
        want, routes = model.eval() and output(inputs)
    mean = torch.stack([out for out, _ in seen]).mean(0)
    spread = torch.stack([out for out, _ in seen]).std(0).mean() / 120**0.5
    assert (mean - want).abs().mean() < 3 * spread
    for _, decided in seen[:5]:
        assert all(torch.equal(tensor, routes[key]) for key, tensor in decided.items())


@pytest.mark.parametrize("name", ["moelora", "moelora_top", "strlora", "strlora_linear"])
def test_experts_given_an_input_of_their_own_have_the_same_gradients(name: str) -> None:
    model = adapted(DROPS[name](target_modules=["q_proj"])).double().train()
    layer, tuner = next(iter(layers(model).values())), tuner_of(model)
    if name.startswith("strlora"):
        tuner.begin_chunk(0)
        with torch.no_grad():
            for average in layer.buffers():
                average.add_(0.1)
    x = torch.randn(2, 4, layer.in_features, dtype=torch.float64, requires_grad=True)
    routing = batch([row("llama", seed, text=4) for seed in range(2)])[1]
    weights = [p for p in layer.parameters() if p.requires_grad]

    def run(dropped: Any) -> list[torch.Tensor]:
        layer.dropped = dropped
        with tuner.routing.using(routing, learning=True) as call:
            out = layer(x)
        loss = out.sin().sum() + sum(call.losses.values())
        return [out.detach(), *torch.autograd.grad(loss, [x, *weights])]

    for apart, together in zip(run(lambda _, x: x.clone()), run(lambda _, x: x), strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-11)


def test_experts_alone_see_the_dropped_input_as_the_formula_says() -> None:
    model = adapted(METHODS["moelora"](lora_dropout=0.4, target_modules=["q_proj"])).double().train()
    layer = next(iter(layers(model).values()))
    x = torch.randn(2, 4, layer.in_features, dtype=torch.float64, requires_grad=True)
    a, b, router = (getattr(layer, f"moelora_{name}")["default"] for name in ("A", "B", "router"))
    torch.manual_seed(3)
    seen = F.dropout(x, 0.4)
    shares = torch.softmax(x @ router.T, -1)
    mixed = torch.einsum("bse,bser,ero->bso", shares, torch.einsum("eri,bsi->bser", a, seen), b)
    want = layer.base_layer(x) + layer.scaling["default"] * mixed
    torch.manual_seed(3)
    got = layer(x)
    wanted = [want, *torch.autograd.grad(want.sin().sum(), [x, a, b, router])]
    for ours, theirs in zip([got, *torch.autograd.grad(got.sin().sum(), [x, a, b, router])], wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def learner_for(adapter: str, **more: Any) -> Any:
    base = tiny_base("llava")
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, adapter, seed=3, options={"lora_dropout": 0.3}, sizes=sizes)
    return base, OnlineLearner(base, model, encoder=encoder, seed=3, **more)


@pytest.mark.parametrize(("adapter", "micro"), [("moelora", 0), ("smolora", 2), ("strlora", 0)])
def test_dropout_is_the_same_under_checkpointing_and_after_a_resume(tmp_path: Path, adapter: str, micro: int) -> None:
    samples, digests, commit = tiny_samples(6), [], None
    for life in range(3):
        more = {"gradient_checkpointing": life == 1, "micro_batch": micro}
        base, learner = learner_for(adapter, **more)
        if life == 2:
            assert commit is not None
            torch.rand(7)
            learner.resume(commit)
        for start in range(4 if life == 2 else 0, 6, 2):
            part = samples[start : start + 2]
            inputs = base.collator.train(part)
            learner.learn(Batch(start, start + 2, 0, tuple(range(start, start + 2)), tuple(part), inputs))
            if start == 2 and not life:
                commit = learner.commit(tmp_path)
        digests.append(learner.snapshot().digest)
    assert len(set(digests)) == 1


@pytest.mark.parametrize("name", METHODS)
def test_ranks_and_scalings_by_layer_are_those_of_pefts_lora(name: str, tmp_path: Path) -> None:
    config = METHODS[name](lora_alpha=12, **RANKS)
    model = adapted(config)
    stock = get_peft_model(tiny_llama(), LoraConfig(r=3, lora_alpha=12, target_modules=config.target_modules, **RANKS))
    theirs = {n: m for n, m in stock.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}
    ours = layers(model)
    assert ours.keys() == theirs.keys()
    assert {layer.r["default"] for layer in ours.values()} == {2, 3, 5}
    for key, layer in ours.items():
        own = theirs[key]
        assert layer.r == own.r
        assert layer.scaling["default"] == pytest.approx(own.scaling["default"] / config.total_experts)
        a, b = (getattr(layer, f"{model.prefix}{side}")["default"] for side in "AB")
        assert a.shape == (a.shape[0], own.r["default"], layer.in_features)
        assert b.shape == (a.shape[0], own.r["default"], layer.out_features)
    forward(model.train(), *batch(ROWS)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {key: saved[key] for key in RANKS} == RANKS
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    model.add_adapter("plain", METHODS[name]())
    assert {layer.r["plain"] for layer in layers(model).values()} == {3}
    model.delete_adapter("plain")
    assert not any("plain" in layer.dropout for layer in layers(model).values())


@pytest.mark.parametrize("name", METHODS)
def test_decoding_by_steps_serves_ranks_by_layer(name: str) -> None:
    model = learned(name, "llama", **RANKS)
    inputs, routing = batch([row("llama", seed) for seed in range(2)])
    ids = inputs["input_ids"]
    masks = {name: getattr(routing, name)[:, :-1] for name in ("image_mask", "prompt_mask", "token_mask")}
    with torch.no_grad(), tuner_of(model).routing.using(replace(routing, **masks)):
        prefill = model.base_model(input_ids=ids[:, :-1], use_cache=True)
        step = model.base_model(input_ids=ids[:, -1:], past_key_values=prefill.past_key_values)
    assert close(step.logits[:, -1], forward(model, inputs, routing).logits[:, -1], 1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_dropout": 1.0}, "lora_dropout is at least 0 and below 1"),
        ({"lora_dropout": "much"}, "lora_dropout must be a number (got 'much')"),
        ({"lora_droput": 0.1}, "has no option 'lora_droput'. Did you mean lora_dropout?"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern maps names or regular expressions of layers to a whole number"),
        ({"rank_pattern": ["q_proj"]}, "Write it as rank_pattern: {q_proj: 4}"),
        (
            {"alpha_pattern": {"(": 1.0}},
            "alpha_pattern maps names or regular expressions of layers to a number above 0",
        ),
        ({"rank_pattern": {"z_proj": 2}}, "rank_pattern: 'z_proj' fits no layer that the adapter goes to"),
        ({"alpha_pattern": {"proj": 2}}, "there are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
        ({"target_parameters": ["experts.down_proj"]}, "cannot go to fused weights: one update is added to such a"),
    ],
)
def test_a_wrong_value_is_one_line(options: dict[str, Any], said: str) -> None:
    base = tiny_llama()
    before = [name for name, _ in base.named_modules()]
    with pytest.raises(UserError) as caught:
        attach(base, "moelora", options=options)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert [name for name, _ in base.named_modules()] == before


def test_a_parameter_that_the_model_does_not_have_is_refused() -> None:
    said = r"target_parameters: the model has no parameter 'nope\.weight'\. Name the end of a parameter's path"
    with pytest.raises(UserError, match=said):
        attach(tiny_llama(), "lora", options={"target_parameters": ["q_proj.weight", "nope.weight"]})
