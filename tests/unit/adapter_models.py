"""Tiny models and inputs for the adapter tests, built from configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, get_peft_model

from streamcvit.adapters import MoELoraConfig, RoutingInputs, SMoLoraConfig, StrLoraConfig, after_step, routing_kwargs
from tests.models import TINY, tiny_llama

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LANGUAGE_MODEL = r"(model\.)?(language_model\.)?layers\..*_proj"
INSTRUCTION_DIM, VISUAL_DIM = 12, 10


def tiny_llava() -> Any:
    """A LLaVA without its processor."""
    return TINY["llava"]()[0]


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "llava": tiny_llava,
    "qwen25vl": lambda: TINY["qwen25vl"]()[0],
    "gemma3": lambda: TINY["gemma3"]()[0],
}
PROJECTORS = {
    "llama": "lm_head",
    "llava": "multi_modal_projector",
    "qwen25vl": "merger",
    "gemma3": "multi_modal_projector",
}


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
        "target_modules": LANGUAGE_MODEL,
    }
    return SMoLoraConfig(**{**defaults, **options})


def moelora(**options: Any) -> MoELoraConfig:
    """A small MoELoRA whose B is drawn, so that it acts."""
    defaults = {"r": 3, "num_experts": 4, "init_weights": False, "target_modules": LANGUAGE_MODEL}
    return MoELoraConfig(**{**defaults, **options})


def strlora(**options: Any) -> StrLoraConfig:
    """A small StrLoRA whose B is drawn, so that it acts."""
    defaults = {
        "r": 3,
        "num_experts": 4,
        "attention_dim": 6,
        "instruction_dim": INSTRUCTION_DIM,
        "init_weights": False,
        "target_modules": LANGUAGE_MODEL,
    }
    return StrLoraConfig(**{**defaults, **options})


METHODS: dict[str, Callable[..., PeftConfig]] = {
    "frozen": partial(smolora, router="frozen"),
    "straight_through": partial(smolora, router="straight_through"),
    "prototype": smolora,
    "strlora": strlora,
    "moelora": moelora,
    "moelora_top": partial(moelora, top_k=2),
}


def adapted(config: Any, base: Any = None, seed: int = 1) -> Any:
    """A PEFT model in eval mode around `base` (the tiny Llama by default)."""
    base = tiny_llama() if base is None else base
    torch.manual_seed(seed)
    return get_peft_model(base, config).eval()


def learned(method: str, family: str, **options: Any) -> Any:
    """A model of `family` under `method` in eval mode, whose prototypes, if any, have learned from one batch."""
    model = adapted(METHODS[method](**options), FAMILIES[family]())
    inputs, routing = batch([row(family, seed) for seed in range(8)])
    forward(model.train(), inputs, routing)
    after_step(model)
    return model.eval()


def row(family: str, seed: int = 0, text: int = 6, picture: bool = True) -> dict[str, torch.Tensor]:
    """One sample of `text` words, the last two its answer: unpadded tensors [S], its picture, and what routers read.

    Every word is drawn from the seed. The picture's tokens follow the first word; Qwen's pictures have two shapes.
    """
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(16, 90, (text,), generator=draw)
    image, tensors = torch.tensor([], dtype=torch.long), {}
    if picture and family == "llava":
        image, tensors["pixel_values"] = torch.full((16,), 6), torch.randn(1, 3, 32, 32, generator=draw)
    if picture and family == "gemma3":
        image, tensors["pixel_values"] = torch.tensor([7, 6, 6, 6, 6, 8]), torch.randn(1, 3, 32, 32, generator=draw)
    if picture and family == "qwen25vl":
        wide = 4 + 4 * (seed % 2)
        image = torch.tensor([8, *[6] * wide, 9])
        tensors["pixel_values"] = torch.randn(4 * wide, 96, generator=draw)
        tensors["image_grid_thw"] = torch.tensor([[1, 4, wide]])
    ids = torch.cat((words[:1], image, words[1:]))
    of_image = ids == 6 if len(image) else torch.zeros_like(ids, dtype=torch.bool)
    answer = torch.arange(len(ids)) >= len(ids) - 2
    if family == "gemma3":
        tensors["token_type_ids"] = of_image.long()
    if family == "qwen25vl":
        tensors["mm_token_type_ids"] = of_image.long()
    return tensors | {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.where(answer, ids, -100),
        "image_mask": of_image,
        "prompt_mask": ~of_image & ~answer,
        "instruction": torch.randn(1, INSTRUCTION_DIM, generator=draw),
        "visual": torch.randn(1, VISUAL_DIM, generator=draw),
    }


def prompt(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sample without its answer and labels, to generate from."""
    short = {name: tensor[:-2] if tensor.dim() == 1 else tensor for name, tensor in sample.items()}
    return {name: tensor for name, tensor in short.items() if name != "labels"}


def batch(
    rows: list[dict[str, torch.Tensor]], left: bool = False, extra: int = 0
) -> tuple[dict[str, torch.Tensor], RoutingInputs]:
    """Model and routing inputs of a batch, padded on one side to its longest row and `extra` positions more."""
    longest = extra + max(len(sample["input_ids"]) for sample in rows)
    tensors: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(name for sample in rows for name in sample):
        column = [sample[name] for sample in rows if name in sample]
        if column[0].dim() == 1:
            fill = -100 if name == "labels" else 0
            gaps = [longest - len(tensor) for tensor in column]
            column = [
                torch.nn.functional.pad(tensor, (gap, 0) if left else (0, gap), value=fill).unsqueeze(0)
                for tensor, gap in zip(column, gaps, strict=True)
            ]
        tensors[name] = torch.cat(column)
    read = {name: tensors.pop(name) for name in ("instruction", "visual", "image_mask", "prompt_mask")}
    return tensors, RoutingInputs(**read, token_mask=tensors["attention_mask"].bool())


def forward(model: Any, inputs: dict[str, torch.Tensor], routing: RoutingInputs, **options: Any) -> Any:
    """The model's output; positions count from each sample's first token, as generate counts them."""
    if "mm_token_type_ids" not in inputs:  # Qwen's counts itself, in three dimensions
        options["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return model(**inputs, **options, **routing_kwargs(model, routing))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Whether no entry differs by more than `tolerance` of the largest, or of one if that is more."""
    return float((a - b).detach().abs().max()) <= tolerance * max(1.0, float(b.detach().abs().max()))


def samples(batch: int = 3, length: int = 9, seed: int = 2) -> tuple[torch.Tensor, Any]:
    """Token ids [batch, length] without padding, and routing inputs whose prompt is all but the last two tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 96, (batch, length), generator=generator)
    prompt = torch.ones(batch, length, dtype=torch.bool)
    prompt[:, -2:] = False
    return ids, RoutingInputs(
        instruction=torch.randn(batch, INSTRUCTION_DIM, generator=generator),
        visual=torch.randn(batch, VISUAL_DIM, generator=generator),
        prompt_mask=prompt,
    )
