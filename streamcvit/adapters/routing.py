"""What the routers read, and for how long: one context per tuner, one call per forward or generate.

A route is decided once per sequence. Within one call under `no_grad` (generation: a prefill and then one token at a
time) each layer decides at its first forward and keeps its route; forwards with gradients decide afresh each time, so
that a checkpointed block, run again during backward, decides the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from streamcvit.errors import UserError

POOLS = ("image", "prompt", "all")


@dataclass(frozen=True)
class RoutingInputs:
    """Per-sample facts that routers decide by; pass one to every forward and generate call of a routed model.

    Attributes:
        instruction: [B, Di] float, embedding of each sample's own instruction.
        visual: [B, Dv] float, pooled visual feature (prototype routing), that of the prompt's text (`TokenMeans`) where
            a sample has no picture; None for text.
        image_mask: [B, S] bool, true at image tokens, so nowhere in a sample without a picture; None for text.
        prompt_mask: [B, S] bool, true at text tokens of the prompt, so neither padding nor answer.
        token_mask: [B, S] bool, true at every token that is not padding, for losses averaged over tokens; None: all.
        routes: [B, banks] int64, routes decided before (see `decide_routes`); None to let the router decide.
        task: [B] int64, the tasks of the samples, for adapters that are told them (`told_tasks`); None for all others.
    """

    instruction: torch.Tensor | None = None
    visual: torch.Tensor | None = None
    image_mask: torch.Tensor | None = None
    prompt_mask: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None
    routes: torch.Tensor | None = None
    task: torch.Tensor | None = None

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> RoutingInputs:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(value) for name, value in given.items() if value is not None})

    def to(self, device: torch.device | str) -> RoutingInputs:
        """The same inputs on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def select(self, rows: slice | torch.Tensor) -> RoutingInputs:
        """The inputs of some samples only, as for a micro-batch."""
        return self._map(lambda tensor: tensor[rows])


@dataclass(eq=False)
class RoutingCall:
    """One forward or generate call: its inputs and what was decided in it.

    Attributes:
        inputs: what the caller passed.
        learning: the model trains, so routes are counted and prototypes may spawn.
        shared: per adapter, routes [B, banks] that hold for every layer.
        late: decides them for an adapter that is active on layers alone (PEFT's `layer.set_adapter`); None where layers
            decide for themselves.
        routes: per (adapter, layer), the route [B, banks] that the layer decided.
        forms: what layers make of routes and keep for the call, such as shared routes in the form they compute with.
        weights: per (adapter, layer), weights [B, S, k] of its tokens over the route's experts, or over all; only while
            learning, for counting.
        losses: per (adapter, layer), what the layer adds to the training loss.
        tokens: samples and positions, (B, S), of the last input that a layer was given per sample; () before.
    """

    inputs: RoutingInputs
    learning: bool = False
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    late: Callable[[str], torch.Tensor] | None = None
    routes: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    weights: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    losses: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    forms: dict[tuple, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    _weights: dict[tuple[str, int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def instruction(self, batch: int) -> torch.Tensor:
        """Instruction embeddings [batch, Di]; raises `UserError` where none were passed."""
        if self.inputs.instruction is None:
            raise UserError(
                "the router needs instruction embeddings", fix="Pass routing=RoutingInputs(instruction=...)"
            )
        return expand(self.inputs.instruction, batch)

    def token_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of values [B, S] over the tokens that are not padding."""
        mask = self.inputs.token_mask
        if mask is None:
            return values.mean()
        mask = expand(mask, values.shape[0]).to(values.dtype)
        return (values * mask).sum() / mask.sum().clamp_min(1)

    def pool(self, x: torch.Tensor, how: str) -> torch.Tensor:
        """Mean of x [B, S, I] over the positions that `how` names; [B, I].

        "image": a sample's image tokens, its prompt's text where it has none; "prompt": the prompt's text; "all": every
        position, padding and answer included, as the published code does.
        """
        if how == "all":
            return x.mean(1)
        key = (how, x.shape[0], x.dtype)
        weights = self._weights.get(key)
        if weights is None:
            weights = self._weights[key] = expand(_pool_weights(self.inputs, how, x.dtype), x.shape[0])
        if weights.shape[1] != x.shape[1]:
            raise UserError(
                f"the routing masks cover {weights.shape[1]} positions, the layer was given {x.shape[1]}",
                fix="Give masks of the prefill's length, adapt layers of the language model only, and decode with "
                "generate() or, under no_grad, inside `with tuner_of(model).routing.using(inputs)`",
            )
        return torch.bmm(weights.unsqueeze(1), x).squeeze(1)


def expand(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """Rows of `tensor` repeated to `batch`, each row's copies side by side, as generate lays out beams."""
    rows = tensor.shape[0]
    if rows == batch:
        return tensor
    if batch % rows:
        raise UserError(
            f"routing inputs hold {rows} samples, the layer was given a batch of {batch}",
            fix="Pass the routing inputs of this very batch, and adapt layers of the language model only",
        )
    return tensor.repeat_interleave(batch // rows, 0)


def _pool_weights(inputs: RoutingInputs, how: str, dtype: torch.dtype) -> torch.Tensor:
    """[B, S] weights that sum to 1 over the pooled positions of a sample (to 0 where it has none)."""
    image, prompt = inputs.image_mask, inputs.prompt_mask
    if how == "prompt" or image is None:
        mask = prompt
    elif prompt is None:
        mask = image
    else:
        mask = torch.where(image.any(1, keepdim=True), image, prompt)
    if mask is None:
        raise UserError(
            f'pool="{how}" needs to know which positions to pool',
            fix="Pass routing=RoutingInputs(..., image_mask=..., prompt_mask=...)",
        )
    weights = mask.to(torch.promote_types(dtype, torch.float32))
    return (weights / weights.sum(1, keepdim=True).clamp_min(1)).to(dtype)


class RoutingContext:
    """The current call, shared by reference by every layer of a tuner.

    Args:
        begin: called with each new call, to decide routes that all layers share.
        end: called when the call is over.
    """

    def __init__(self, begin: Callable[[RoutingCall], None], end: Callable[[RoutingCall], None]) -> None:
        self.call: RoutingCall | None = None
        self._begin, self._end = begin, end

    def current(self) -> RoutingCall:
        """The call in force; raises `UserError` where there is none, rather than route by something stale."""
        if self.call is None:
            raise UserError(
                "a routed adapter ran without routing inputs",
                fix="Pass routing=RoutingInputs(...) to the model's call or generate; what you checkpoint yourself "
                "wants checkpoint(..., **checkpointing_kwargs(model))",
            )
        return self.call

    @contextmanager
    def using(self, inputs: RoutingInputs, learning: bool = False) -> Iterator[RoutingCall]:
        """Put `inputs` in force; all forwards inside, such as a prefill and its decode steps, are one call."""
        call, before = RoutingCall(inputs, learning), self.call
        self._begin(call)
        self.call = call
        try:
            yield call
        finally:
            self.call = before
            self._end(call)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """`context_fn` for non-reentrant checkpointing: the recomputation runs under the call of its own forward."""
        return nullcontext(), self._restored(self.call)

    def restore_in(self, block: Any, needed: bool = True) -> None:
        """Have a block of transformers', whose gradient checkpointing is on, recompute under the call of its forward.

        The form is the one that is not reentrant, unless the other was asked for.

        Args:
            block: the module.
            needed: whether the recomputation has to know the call.

        Raises:
            UserError: it does, and the reentrant form, which cannot be told of it, was asked for.
        """
        function = getattr(block, "_gradient_checkpointing_func", None)
        if function is checkpoint:
            function = partial(checkpoint)
        if not isinstance(function, partial):
            return
        if function.keywords.get("use_reentrant"):
            if not needed:
                return
            raise UserError(
                "a routed adapter cannot be checkpointed in the reentrant form, which forgets the routing inputs",
                where="gradient checkpointing",
                fix="Set use_reentrant to False in gradient_checkpointing_kwargs, or leave it out",
            )
        given = function.keywords.get("context_fn")
        owner = getattr(given, "__self__", None)
        if owner is self:
            return
        if isinstance(owner, _Contexts):
            if owner.routing is self:
                return
            given = owner.given
        elif isinstance(owner, RoutingContext):  # an adapter's that was here before
            given = None
        contexts = self.checkpoint_contexts if given is None else _Contexts(self, given).both
        block._gradient_checkpointing_func = partial(function, use_reentrant=False, context_fn=contexts)

    @contextmanager
    def _restored(self, call: RoutingCall | None) -> Iterator[None]:
        before, self.call = self.call, call
        try:
            yield
        finally:
            self.call = before


@dataclass(eq=False)
class _Contexts:
    """A caller's own `context_fn` (selective checkpointing), and around it that of the routing."""

    routing: RoutingContext
    given: Callable[[], tuple[AbstractContextManager, AbstractContextManager]]

    def both(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """`context_fn`."""
        ours, theirs = self.routing.checkpoint_contexts(), self.given()
        return _nested(ours[0], theirs[0]), _nested(ours[1], theirs[1])


@contextmanager
def _nested(outer: AbstractContextManager, inner: AbstractContextManager) -> Iterator[None]:
    with outer, inner:
        yield
