"""Which layers of a mixture of experts see tokens without their samples, so that no route per sample can reach them."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from streamcvit.adapters.targets import inside, linear_layers, matching, pattern_of
from streamcvit.errors import UserError

_FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, UserError)


def routed(config: PeftConfig) -> bool:
    """Whether an adapter chooses experts by the sample, so that its layers need to know it."""
    return bool(getattr(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], "needs_routing", False))  # type: ignore[index]


def flattened(model: nn.Module) -> list[str]:
    """Linear layers of the language model that are given [tokens, features] instead of [batch, positions, features].

    They lie in blocks with experts. Each block is shown two samples of three tokens, with its experts left out; that
    costs what the block's other layers cost, and nothing on the meta device. A block that cannot be shown them is taken
    to keep samples apart: where it does not, the first batch says so.
    """
    linear = linear_layers(model)
    blocks = dict.fromkeys(match[1] for name in linear if (match := re.match(r"(.*?\.\d+\.[^.]+)\.", name)))
    found: list[str] = []
    for place in blocks:
        block = model.get_submodule(place)
        experts = getattr(block, "experts", None)
        if isinstance(experts, nn.Module):
            held = [name for name in linear if inside(name, [place])]
            flat = _flat(model, block, experts, held)
            found += [name for name in held if name in flat or inside(name, [f"{place}.experts"])]
    return found


def without_flattened(model: nn.Module, wanted: Any) -> Any:
    """PEFT's `target_modules` (a regular expression, or names) without layers that see tokens only.

    Raises:
        UserError: nothing else was asked for.
    """
    if not (out := set(flattened(model))):
        return wanted
    chosen = matching(model, wanted)
    kept = [name for name in chosen if name not in out]
    if chosen and not kept:
        raise UserError(
            f"{chosen[0]} is given tokens without their samples, and experts are routed per sample",
            where="target_modules",
            fix="Name layers outside the mixture of experts; `lora` and `moelora` reach these, too",
        )
    return wanted if len(kept) == len(chosen) else pattern_of(model, kept)


@torch.no_grad()
def _flat(model: nn.Module, block: nn.Module, experts: nn.Module, names: list[str]) -> set[str]:
    """Those of a block's layers that are given tokens only."""
    seen: dict[str, int] = {}

    def watch(name: str) -> Any:
        return model.get_submodule(name).register_forward_pre_hook(
            lambda module, given: seen.__setitem__(name, given[0].dim())
        )

    parameter = next(block.parameters())
    width = int(model.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
    # Quantised weights are whole numbers; what is not quantised says what the block computes in.
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    tokens = torch.zeros(2, 3, width, dtype=dtype, device=parameter.device)
    hooks = [watch(name) for name in names]
    before = vars(experts).get("forward")
    experts.forward = lambda given, *args, **kwargs: torch.zeros_like(given)  # type: ignore[method-assign]
    try:
        block(tokens)
    except _FAULTS:
        pass  # what was seen so far counts
    finally:
        del experts.forward
        if before is not None:
            experts.forward = before
        for hook in hooks:
            hook.remove()
    return {name for name, dims in seen.items() if dims != 3}
