"""Routed adapters on other model families, compiled, and cast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_models import IMAGE_TOKEN, INSTRUCTION_DIM, LLAMA, VISUAL_DIM, adapted, moelora, samples, smolora, strlora
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from streamcvit.adapters import RoutingInputs, after_step, routing_kwargs, tuner_of

TEXT = {**LLAMA, "num_key_value_heads": 2}
CONFIGS: dict[str, Any] = {
    "frozen": lambda: smolora(router="frozen"),
    "straight_through": lambda: smolora(router="straight_through"),
    "prototype": lambda: smolora(),
    "moelora": moelora,
    "strlora": strlora,
}
LANGUAGE_MODEL = r".*language_model.*_proj"


def tiny_qwen() -> Any:
    torch.manual_seed(0)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "fullatt_block_indexes": [1],
        "window_size": 16,
    }
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        vision_start_token_id=1,
        vision_end_token_id=2,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def tiny_gemma() -> Any:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    text = {**TEXT, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=3,
        eoi_token_index=4,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def inputs_of(family: str, batch: int = 3) -> tuple[dict[str, torch.Tensor], RoutingInputs]:
    """Prompts of nine tokens with four image tokens each, with routing inputs."""
    ids, routing = samples(batch)
    ids[:, 1:5] = IMAGE_TOKEN
    image = ids == IMAGE_TOKEN
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    generator = torch.Generator().manual_seed(4)
    if family == "qwen":
        tensors["pixel_values"] = torch.randn(batch * 16, 3 * 2 * 4 * 4, generator=generator)
        tensors["image_grid_thw"] = torch.tensor([[1, 4, 4]]).expand(batch, 3).clone()
        tensors["mm_token_type_ids"] = image.long()
    else:
        tensors["pixel_values"] = torch.randn(batch, 3, 16, 16, generator=generator)
        tensors["token_type_ids"] = image.long()
    return tensors, RoutingInputs(routing.instruction, routing.visual, image, ~image)


def row(tensors: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
    """One sample's tensors; Qwen's pixels have no batch axis."""
    return {
        name: value[16 * i : 16 * (i + 1)] if name == "pixel_values" and value.dim() == 2 else value[i : i + 1]
        for name, value in tensors.items()
    }


@pytest.fixture(params=["qwen", "gemma"])
def family(request):
    return request.param


@pytest.fixture(params=["frozen", "prototype", "strlora"])
def model(request, family):
    config: Any = CONFIGS[request.param]()
    config.target_modules = LANGUAGE_MODEL
    model = adapted(config, tiny_qwen() if family == "qwen" else tiny_gemma())
    tensors, routing = inputs_of(family)
    model.train()(**tensors, **routing_kwargs(model, routing))
    after_step(model)
    return model.eval()


def test_sample_does_not_depend_on_its_batch_in_other_families(model, family):
    tensors, routing = inputs_of(family)
    with torch.no_grad():
        together = model(**tensors, **routing_kwargs(model, routing)).logits
        alone = model(**row(tensors, 1), **routing_kwargs(model, routing.select(slice(1, 2)))).logits
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_training_and_generating_work_in_other_families(model, family):
    tensors, routing = inputs_of(family)
    model.train()
    model(**tensors, labels=tensors["input_ids"], **routing_kwargs(model, routing)).loss.backward()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all("language_model" in name for name in names)
    model.eval()
    made = model.generate(**tensors, **routing_kwargs(model, routing), max_new_tokens=4, do_sample=False)
    one = model.generate(
        **row(tensors, 2), **routing_kwargs(model, routing.select(slice(2, 3))), max_new_tokens=4, do_sample=False
    )
    assert torch.equal(made[2:], one)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("training", [False, True])
def test_layer_compiles_into_one_graph_and_a_new_route_needs_no_other(name, training):
    torch._dynamo.reset()
    model = adapted(CONFIGS[name]())
    tuner = tuner_of(model)
    mlp = model.base_model.model.model.layers[0].mlp
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(mlp, backend=backend, fullgraph=True)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        routing = RoutingInputs(
            instruction=torch.randn(3, INSTRUCTION_DIM, generator=generator),
            visual=torch.randn(3, VISUAL_DIM, generator=generator),
            prompt_mask=torch.ones(3, 9, dtype=torch.bool),
        )
        x = torch.randn(3, 9, 32, generator=generator)
        with torch.set_grad_enabled(training):
            with tuner.routing.using(routing, learning=training):
                got = compiled(x)
            with tuner.routing.using(routing):
                want = mlp(x)
        assert torch.allclose(got, want, atol=1e-5)
    assert len(graphs) == 1


def test_trainable_parameters_are_counted(capsys):
    adapted(smolora()).print_trainable_parameters()
    assert "trainable params: 0" not in capsys.readouterr().out


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_model_can_be_cast_after_adapting(name):
    model = adapted(CONFIGS[name]()).to(torch.bfloat16)
    ids, routing = samples()
    with torch.no_grad():
        logits = model(input_ids=ids, **routing_kwargs(model, routing)).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
