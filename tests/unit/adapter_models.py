"""Tiny models and inputs for the adapter tests, built from configurations."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from streamcvit.adapters import MoELoraConfig, RoutingInputs, SMoLoraConfig, StrLoraConfig

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
IMAGE_TOKEN, INSTRUCTION_DIM, VISUAL_DIM = 96, 12, 10


def tiny_llama(**options: Any) -> Any:
    """A two-layer Llama, the same on every call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **options})).eval()


def tiny_llava() -> Any:
    """A LLaVA with four image tokens per picture of 16 x 16 pixels."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**LLAMA),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config).eval()


def smolora(**options: Any) -> SMoLoraConfig:
    """A small SMoLoRA whose B is drawn, so that it acts."""
    defaults = {
        "r": 3,
        "num_experts_visual": 3,
        "num_experts_instruction": 4,
        "instruction_dim": INSTRUCTION_DIM,
        "visual_dim": VISUAL_DIM,
        "visual_warmup": 0,
        "init_weights": False,
        "target_modules": r".*language_model.*_proj|model\.layers.*_proj",
    }
    return SMoLoraConfig(**{**defaults, **options})


def moelora(**options: Any) -> MoELoraConfig:
    """A small MoELoRA whose B is drawn, so that it acts."""
    defaults = {"r": 3, "num_experts": 4, "init_weights": False, "target_modules": LINEARS}
    return MoELoraConfig(**{**defaults, **options})


def strlora(**options: Any) -> StrLoraConfig:
    """A small StrLoRA whose B is drawn, so that it acts."""
    defaults = {
        "r": 3,
        "num_experts": 4,
        "attention_dim": 6,
        "instruction_dim": INSTRUCTION_DIM,
        "init_weights": False,
        "target_modules": LINEARS,
    }
    return StrLoraConfig(**{**defaults, **options})


def adapted(config: Any, base: Any = None, seed: int = 1) -> Any:
    """A PEFT model in eval mode around `base` (the tiny Llama by default)."""
    base = tiny_llama() if base is None else base
    torch.manual_seed(seed)
    return get_peft_model(base, config).eval()


def samples(batch: int = 3, length: int = 9, seed: int = 2) -> tuple[torch.Tensor, Any]:
    """Token ids [batch, length] without padding, and routing inputs whose prompt is all but the last two tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, IMAGE_TOKEN, (batch, length), generator=generator)
    prompt = torch.ones(batch, length, dtype=torch.bool)
    prompt[:, -2:] = False
    return ids, RoutingInputs(
        instruction=torch.randn(batch, INSTRUCTION_DIM, generator=generator),
        visual=torch.randn(batch, VISUAL_DIM, generator=generator),
        prompt_mask=prompt,
    )


def pictures(batch: int = 3, length: int = 9, seed: int = 2) -> tuple[dict[str, torch.Tensor], Any]:
    """LLaVA inputs with four image tokens after the first token, and routing inputs."""
    ids, routing = samples(batch, length, seed)
    ids[:, 1:5] = IMAGE_TOKEN
    pixels = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    image = ids == IMAGE_TOKEN
    assert routing.prompt_mask is not None
    masks = RoutingInputs(routing.instruction, routing.visual, image, routing.prompt_mask & ~image)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}, masks


def padded(mask_or_ids: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """Columns of zeros (padding ids, false) added on both sides."""
    return torch.nn.functional.pad(mask_or_ids, (left, right))
