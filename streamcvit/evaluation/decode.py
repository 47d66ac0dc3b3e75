"""Greedy decoding with a KV cache: what `generate(do_sample=False, num_beams=1)` gives, without its overhead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from streamcvit.adapters import RoutingInputs, tuner_of
from streamcvit.models.vision import unwrap


@torch.no_grad()
def greedy(
    model: Any,
    text: dict[str, torch.Tensor],
    vision: Mapping[str, Any],
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
    routing: RoutingInputs | None = None,
) -> torch.Tensor:
    """The most probable token at each step, for B left-padded prompts, until every row has ended.

    All forwards are one routing call: routes are decided at the prefill and kept while decoding.

    Args:
        model: an image-text-to-text model in eval mode, or a PEFT model around one.
        text: `input_ids` and `attention_mask` [B, S], and what else the model's forward reads besides pixels.
        vision: what stands for the pixels of the prompts' pictures, as `encode_images(...).given`.
        max_new_tokens: the most tokens a row may get.
        stop_ids: a row ends with the first of these.
        pad_id: fills a row behind its end.
        routing: facts that routed adapters decide by; None for other models.

    Returns:
        [B, n] int64 new tokens, stop tokens included, 1 <= n <= max_new_tokens.
    """
    base = unwrap(model)
    mask = text["attention_mask"]
    stops = torch.tensor(sorted(stop_ids), device=mask.device)
    inputs = {**text, **vision}
    if not (three_axes := _three_axes(base)) or not vision:
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        inputs["position_ids"] = positions.expand(3, -1, -1) if three_axes else positions
    tokens: list[torch.Tensor] = []
    with _routed(model, routing):
        out = base(**inputs, use_cache=True, logits_to_keep=1)
        ended = torch.zeros(mask.shape[0], dtype=torch.bool, device=mask.device)
        positions = mask.sum(1, keepdim=True)
        if three_axes:
            # Equal on all axes in text. Without pictures the model keeps what an earlier batch left there.
            deltas = base.model.rope_deltas if vision else None
            positions = (positions if deltas is None else positions + deltas.to(mask.device)).expand(3, -1, -1)
        while True:
            chosen = out.logits[:, -1].argmax(-1).masked_fill(ended, pad_id)
            tokens.append(chosen)
            ended = ended | torch.isin(chosen, stops)
            if len(tokens) == max_new_tokens or bool(ended.all()):
                return torch.stack(tokens, 1)
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], 1)
            out = base(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=out.past_key_values,
                use_cache=True,
                logits_to_keep=1,
            )
            positions = positions + 1


def _routed(model: Any, routing: RoutingInputs | None) -> AbstractContextManager:
    tuner = tuner_of(model)
    return nullcontext() if tuner is None or routing is None else tuner.routing.using(routing)


def _three_axes(base: Any) -> bool:
    """Whether positions are three-dimensional (Qwen-VL); its prefill works them out from the image grids."""
    return hasattr(getattr(base, "model", None), "get_rope_index")
