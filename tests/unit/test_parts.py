"""Which modules of a model are its projector and its tower is told in every family, and what is trained of each."""

from __future__ import annotations

import pytest
import torch
from models import TINY, tiny_aria, tiny_paligemma

from streamcvit.adapters import Reach, attach
from streamcvit.adapters.parts import PARTS, Parts

FAMILIES = {**TINY, "aria": tiny_aria, "paligemma": tiny_paligemma}
PROJECTORS = {
    "qwen25vl": ("model.visual.merger",),
    "qwen3vl": ("model.visual.merger", *(f"model.visual.deepstack_merger_list.{k}" for k in (0, 1))),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_weight_of_every_family_belongs_to_the_part_it_is_in(kind: str) -> None:
    model = FAMILIES[kind]()[0]
    parts = Parts.of(model)
    assert parts.projector == PROJECTORS.get(kind, ("model.multi_modal_projector",))
    assert parts.tower == ("model.visual" if kind.startswith("qwen") else "model.vision_tower",)
    assert (parts.language, parts.embeddings) == ("model.language_model", "model.language_model.embed_tokens")
    assert parts.head == "lm_head"
    sizes = parts.sizes(model)
    assert set(sizes) <= set(PARTS) - {"other"} and sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    projector = sum(p.numel() for name in parts.projector for p in model.get_submodule(name).parameters())
    assert sizes["projector"] == projector > 0
    whole = sum(p.numel() for p in model.get_submodule(parts.tower[0]).parameters())
    assert sizes["vision tower"] == whole - projector * kind.startswith("qwen")
    line = parts.line(model)
    assert f"vision tower ({parts.tower[0]}) {sizes['vision tower']:,}" in line and f"{sum(sizes.values()):,}" in line


@pytest.mark.parametrize(
    ("family", "projector", "tower"),
    [
        ("janus", ["model.aligner"], ["model.vision_model"]),
        ("idefics3", ["model.connector"], ["model.vision_model"]),
        ("blip-2", ["qformer", "language_projection"], ["vision_model"]),
        ("glm4v", ["model.visual.merger", "model.visual.downsample"], ["model.visual"]),
        ("molmo2", ["model.multi_modal_projector"], ["model.vision_tower"]),
        ("mistral3", ["model.multi_modal_projector"], ["model.vision_tower"]),
        ("minicpmv4_6", ["model.merger"], ["model.vision_tower"]),
    ],
)
def test_what_joins_tower_and_language_model_is_found_under_the_names_that_families_use(
    family: str, projector: list[str], tower: list[str]
) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family))
    parts = Parts.of(model)
    assert (list(parts.projector), list(parts.tower)) == (projector, tower)


@pytest.mark.parametrize("kind", TINY)
def test_what_is_trained_is_counted_part_by_part_around_an_adapter_too(kind: str) -> None:
    model = TINY[kind]()[0]
    before = Parts.of(model)
    whole = {name: size for name, size in before.sizes(model).items() if name == "projector"}
    reach = Reach.of(attach(model, "lora", options={"modules_to_save": list(before.projector), "r": 2}))
    assert Parts.of(model) == before
    assert reach.parts == {"language model": reach.weights - whole["projector"], **whole}
    assert f"(language model {reach.parts['language model']:,}, projector {whole['projector']:,})" in reach.line("a")


def test_of_a_mixture_of_experts_the_kinds_of_layers_that_an_adapter_is_on_are_said() -> None:
    with torch.device("meta"):
        from transformers import AutoModelForImageTextToText, Qwen3_5MoeConfig

        text = {
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2,
            "head_dim": 16, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
            "vocab_size": 64, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        }  # fmt: skip
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
        config = Qwen3_5MoeConfig(text_config=text, vision_config=vision)
        model = AutoModelForImageTextToText.from_config(config)
        line = Reach.of(attach(model, "lora")).line("mine")
        plain = Reach.of(attach(TINY["llava"]()[0], "lora")).line("mine")
    assert "of its mixture of experts: attention (" in line and "shared experts (" in line and "not reached: 8" in line
    assert "mixture" not in plain
