"""The low-rank matrices of an adapted model, layer by layer, whichever adapter it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from streamcvit.adapters.tuner import ExpertLayer
from streamcvit.errors import UserError


@dataclass(frozen=True)
class LowRank:
    """What one layer adds to its base, B A x.

    Attributes:
        name: of the layer.
        a: A, [R, I], or [E, R, I] of experts.
        b: B, [O, R], or [E, R, O] of experts: its second axis counts ranks in both.
        rank: R.
    """

    name: str
    a: nn.Parameter
    b: nn.Parameter
    rank: int


def low_ranks(model: PeftModel) -> list[LowRank]:
    """Of every layer that the active adapter is on.

    Raises:
        UserError: the adapter is on something that is no linear layer (embeddings, convolutions, fused weights), has
            magnitudes beside the matrices (DoRA), or has no such matrices.
    """
    adapter, found = str(model.active_adapter), []
    for name, module in model.named_modules():
        layer: Any = module
        a: Any
        b: Any
        if isinstance(layer, ExpertLayer) and adapter in layer.r:
            a, b = layer.experts(adapter)
            found.append(LowRank(name, a, b, layer.r[adapter]))
        elif isinstance(layer, LoraLayer) and adapter in layer.r:
            if adapter not in layer.lora_A or not isinstance(layer.get_base_layer(), nn.Linear):
                kind = type(layer.get_base_layer()).__name__
                raise UserError(f"{_short(name)} is no linear layer but {kind}", fix="Leave it out of target_modules")
            if layer.use_dora.get(adapter):
                raise UserError("DoRA's magnitudes belong to all ranks together", fix="Set use_dora to false")
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            found.append(LowRank(name, a, b, layer.r[adapter]))
    if not found:
        kind = str(model.peft_config[adapter].peft_type).rpartition(".")[2].lower()
        raise UserError(f"the adapter {kind} has no low-rank matrices", fix="Take lora or a mixture of experts")
    return found


def _short(name: str) -> str:
    return name.removeprefix("base_model.model.")
