"""A base whose language model is held in 8 or 4 bits: which of its layers, what they need, how they are loaded."""

from __future__ import annotations

import importlib.util
import re
from types import MethodType
from typing import Any

import torch
from torch import nn

from streamcvit.adapters.parts import Parts
from streamcvit.adapters.targets import linear_layers, pattern_of
from streamcvit.errors import UserError

NONE = "none"
QUANTIZE = (NONE, "8bit", "4bit")
_KEY = "model.quantize"
_GATES = re.compile(r"(^|[._])(gate|router)(\.|$)")
_BLOCK = 64  # weights that share a scale in 4 bits; 256 of the scales share one of their own


def check_quantize(quantize: str, config: Any = None) -> None:
    """Whether a base can be quantised here.

    Args:
        quantize: one of `QUANTIZE`.
        config: the model's configuration, where it is known.

    Raises:
        UserError: unknown, its package is not installed, or the model's files are quantised already.
    """
    if quantize not in QUANTIZE:
        raise UserError(f"unknown value {quantize!r}", where=_KEY, fix=f"Use {', '.join(QUANTIZE)}")
    if quantize == NONE:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        fix = f"pip install 'streamcvit[quantize]', or set {_KEY} to none"
        raise UserError(f"{quantize} needs the package bitsandbytes, which is not installed", where=_KEY, fix=fix)
    if getattr(config, "quantization_config", None):
        raise UserError(
            "the model's files are quantised already", where=_KEY, fix="Set it to none: they stay as they are"
        )


def quantised_layers(model: nn.Module) -> list[str]:
    """Names of the layers that are held in fewer bits, the linear ones of the language model; of one that is not yet.

    Not its output head, its embeddings, or the gates of a mixture of experts, whose choice small errors change; nothing
    of tower and projector, whose features route experts. Fused expert weights are no layers and stay as they are.
    """
    prefix, head = len(Parts.of(model).language) + 1, Parts.of(model).head
    return [
        name
        for name in linear_layers(model)
        if name != head and type(model.get_submodule(name)) is nn.Linear and not _GATES.search(name[prefix:])
    ]


def loading_options(quantize: str, model: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Keywords of `from_pretrained` that load a model so; none for `none`.

    4 bits are QLoRA's: NF4 with scales that are quantised too (Dettmers et al., "QLoRA", 2023). 8 bits are the weights
    of LLM.int8 (Dettmers et al., 2022), with a scale a row; see `settle_layers`.

    Args:
        quantize: one of `QUANTIZE`.
        model: the same model without weights (`streamcvit.models.base.skeleton`).
        dtype: what the layers compute in.
    """
    if quantize == NONE:
        return {}
    from transformers import BitsAndBytesConfig

    found = pattern_of(model, quantised_layers(model))
    kept = found if isinstance(found, str) else "|".join(map(re.escape, found))
    config = BitsAndBytesConfig(
        load_in_8bit=quantize == "8bit",
        load_in_4bit=quantize == "4bit",
        llm_int8_skip_modules=[rf"(?!(?:{kept})$).*"],  # all but these, as transformers reads it
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def settle_layers(model: nn.Module) -> None:
    """Have quantised layers compute the same whoever asks, and give gradients.

    In 4 bits: on a CPU with AVX512-BF16 bitsandbytes rearranges weights at the first forward without gradients, and a
    layer so arranged gives none to what lies before it. In 8 bits: bitsandbytes quantises the inputs too, all but
    columns in which some row of the batch has a large value, so that an answer depends on what it was batched with;
    here inputs stay whole.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        elif type(module).__name__ == "Linear8bitLt":
            module.forward = MethodType(_forward, module)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.weight.CB is not None:
        layer.init_8bit_state()
    return _EightBits.apply(x, layer.state.CB, layer.state.SCB, layer.bias)


class _EightBits(torch.autograd.Function):
    """x W^T + b, x [..., I], of W [O, I] in 8 bits with a scale a row; nothing of x is kept for backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, few: torch.Tensor, scale: torch.Tensor, bias: Any) -> torch.Tensor:
        ctx.save_for_backward(few, scale)
        return nn.functional.linear(x, _whole(few, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        few, scale = ctx.saved_tensors
        d_x = grad @ _whole(few, scale, grad.dtype) if ctx.needs_input_grad[0] else None
        return d_x, None, None, grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None


def _whole(few: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return few.to(dtype).mul_(scale.unsqueeze(1) / 127)


def held_bytes(model: nn.Module, quantize: str, dtype: torch.dtype) -> int:
    """Bytes of a model's weights in memory, scales included.

    Args:
        model: the model without weights.
        quantize: one of `QUANTIZE`.
        dtype: of what is not quantised.
    """
    whole = sum(parameter.numel() for parameter in model.parameters())
    few = scales = 0
    for name in quantised_layers(model) if quantize != NONE else ():
        layer: Any = model.get_submodule(name)
        few += (size := layer.weight.numel())
        scales += 4 * layer.out_features if quantize == "8bit" else size // _BLOCK + 4 * size // (_BLOCK * 256)
    return (whole - few) * dtype.itemsize + (few if quantize == "8bit" else few // 2) + scales


def quantised_line(model: nn.Module, quantize: str) -> str:
    """For people: how much of a model is held in fewer bits."""
    few = sum(model.get_parameter(f"{name}.weight").numel() for name in quantised_layers(model))
    whole = sum(parameter.numel() for parameter in model.parameters())
    return f"model.quantize {quantize}: {few:,} of {whole:,} weights, {100 * few / max(1, whole):.0f} %"
