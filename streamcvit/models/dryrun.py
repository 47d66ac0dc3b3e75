"""What a language model holds in memory while it learns and answers, found on the meta device, without data.

A few of the model's layers run forward and backward, with the adapter on them, and the bytes of all tensors that live
at the same time are counted; what one more layer adds is the same for all that are alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from streamcvit.adapters import RoutingInputs, auxiliary_loss, begin_chunk, learning_mode, shares_routes, tuner_of
from streamcvit.adapters.targets import language_model
from streamcvit.models.vision import unwrap, vision_dim

_DRY = "streamcvit_dry_run"
FEW = 2
"""Layers that run, and twice as many in a second run; of models whose layers alternate, whole periods of them."""


@dataclass(frozen=True)
class Shape:
    """A batch, all rows alike.

    Attributes:
        rows: B.
        tokens: S, of a row, its picture's included.
        answers: tokens of a row that are answered.
    """

    rows: int
    tokens: int
    answers: int


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it that are alive, on any device; shared storages count once.

    Attributes:
        now, most: bytes now, and at most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                self._see(tensor)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        held = storage.nbytes()

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= held

        self._known[key] = weakref.ref(storage, gone)
        self.now += held
        self.most = max(self.most, self.now)


def learning_bytes(adapted: PeftModel, shape: Shape, dtype: torch.dtype) -> int:
    """Bytes that a forward and a backward hold at most, beside weights, gradients and the optimizer's state.

    Args:
        adapted: a model on the meta device with an adapter on it, as it learns (`checkpoint_layers` included).
        shape: of what runs at a time.
        dtype: of the base's weights.

    Raises:
        Exception: whatever the model raises that cannot run so.
    """
    learning_mode(adapted)
    if (tuner := tuner_of(adapted)) is not None:
        config: Any = tuner.peft_config[tuner.active_adapters[0]]
        begin_chunk(adapted, getattr(config, "distill_after_chunk", 0))
    base = unwrap(adapted)
    _, language = language_model(base)
    head = base.get_output_embeddings()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)

    def run() -> int:
        with Held() as held, _fused_attention(language), torch.enable_grad():
            with _routed(adapted, shape, True):
                hidden = _forward(language, shape, dtype)[0]
            rows = hidden.flatten(0, 1)[: shape.rows * shape.answers]
            logits = (rows if head is None else head(rows)).float()
            targets = torch.zeros(len(logits), dtype=torch.long, device="meta")
            loss = F.cross_entropy(logits, targets)
            more = auxiliary_loss(adapted)
            (loss if more is None else loss + more).backward()
            return held.most

    return _extended(language, run)


def answering_bytes(adapted: nn.Module, shape: Shape, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the key-value cache of prompts, and of all else that the forward that fills it holds at most.

    Args:
        adapted: a model on the meta device, with an adapter on it or without.
        shape: the prompts that are answered together.
        dtype: of the base's weights.

    Raises:
        Exception: whatever the model raises that cannot run so.
    """
    adapted.eval()
    base = unwrap(adapted)
    _, language = language_model(base)
    head = base.get_output_embeddings()

    def run(cache: bool) -> int:
        with Held() as held, _fused_attention(language), torch.no_grad():
            with _routed(adapted, shape, False):
                out = _forward(language, shape, dtype, use_cache=cache)
            last = out[0][:, -1]
            _ = last if head is None else head(last)
            return held.most

    without = _extended(language, lambda: run(False))
    return max(0, _extended(language, lambda: run(True)) - without), without


def _forward(language: nn.Module, shape: Shape, dtype: torch.dtype, **more: Any) -> Any:
    """The language model on embeddings, with the mask that padded rows want."""
    width = vision_dim(language)
    embeds = torch.empty(shape.rows, shape.tokens, width, dtype=dtype, device="meta")
    eager = getattr(language.config, "_attn_implementation", "") == "eager"
    mask = torch.empty(
        shape.rows, 1, shape.tokens, shape.tokens, dtype=dtype if eager else torch.bool, device="meta"
    )  # of four axes, it is taken as it is
    return language(inputs_embeds=embeds, attention_mask=mask, **{"use_cache": False, "return_dict": False, **more})


def _routed(adapted: nn.Module, shape: Shape, learning: bool) -> Any:
    tuner = tuner_of(adapted)
    if tuner is None:
        return nullcontext()
    config: Any = tuner.peft_config[tuner.active_adapters[0]]
    rows, mask = shape.rows, torch.ones(shape.rows, shape.tokens, dtype=torch.bool, device="meta")
    facts: dict[str, Any] = {"token_mask": mask}
    if tuner.needs_routing:
        facts |= {"image_mask": mask, "prompt_mask": mask}
        facts["instruction"] = torch.empty(rows, getattr(config, "instruction_dim", 1), device="meta")
        facts["visual"] = torch.empty(rows, vision_dim(unwrap(adapted)), device="meta")
    if tuner.needs_task:
        facts["task"] = torch.zeros(rows, dtype=torch.long, device="meta")
    if shares_routes(adapted):
        facts["routes"] = torch.zeros(rows, len(tuner.banks(config)), dtype=torch.long, device="meta")
    return tuner.routing.using(RoutingInputs(**facts), learning)


def _extended(language: nn.Module, run: Callable[[], int]) -> int:
    """What `run` gives for all layers, from what it gives for few and for twice as many."""
    name, layers = decoder_layers(language)
    kinds = getattr(language.config, "layer_types", None) or [""]
    period = next(p for p in range(1, len(kinds) + 1) if all(k == kinds[i % p] for i, k in enumerate(kinds)))
    few = period * -(-FEW // period)
    if 2 * few >= len(layers):
        return run()
    with _shortened(language, name, layers[:few]):
        small = run()
    with _shortened(language, name, layers[: 2 * few]):
        large = run()
    return round(large + (large - small) / few * (len(layers) - 2 * few))


def decoder_layers(language: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of a language model's layers."""
    lists = [(name, child) for name, child in language.named_children() if isinstance(child, nn.ModuleList)]
    return max(lists, key=lambda pair: len(pair[1]))


@contextmanager
def _shortened(language: nn.Module, name: str, layers: nn.ModuleList) -> Iterator[None]:
    config: Any = language.config
    whole, count = getattr(language, name), config.num_hidden_layers
    setattr(language, name, layers)
    config.num_hidden_layers = len(layers)
    try:
        yield
    finally:
        setattr(language, name, whole)
        config.num_hidden_layers = count


@contextmanager
def _fused_attention(language: nn.Module) -> Iterator[None]:
    """Have attention keep what its fused kernels keep; on meta tensors torch would take the plain one."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = language.config
    before = config._attn_implementation

    def attend(*args: Any, **kwargs: Any) -> Any:
        with _Fusing():  # entered here, as backward, where checkpointed layers run again, knows no outer modes
            return sdpa_attention_forward(*args, **kwargs)

    if before != "eager":
        ALL_ATTENTION_FUNCTIONS[_DRY] = attend
        config._attn_implementation = _DRY
    try:
        yield
    finally:
        config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS.pop(_DRY, None)


class _Fusing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    """Output and gradients of the right shapes for q [B, H, S, D], k and v [B, G, T, D]."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
