"""What routers and experts make of a batch, layer by layer: recorded in one forward, and asked again later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from streamcvit.adapters.calls import shares_routes, tuner_of
from streamcvit.adapters.routing import RoutingCall, RoutingInputs
from streamcvit.adapters.tuner import ExpertLayer

MODULES = 64
"""Adapted modules looked at, spread evenly over the model: what is kept of a large one stays small."""
ONLY = "adapter"
"""Bank of an adapter without experts: it is one expert that every sample takes."""


@dataclass(frozen=True)
class Trace:
    """B samples as L adapted modules saw them; float32, on the model's device.

    Attributes:
        inputs: [B, I summed over different inputs]: each module's input, averaged over the tokens of the prompt and its
            pictures. Modules that were given the same tensor share it.
        places: of each module that was reached, its number among `traced_modules`, and where its input stands among
            these: (module, first, behind the last).
        weights: by bank, [B, L, E] (L is 1 where all modules share their routes): how much of each expert a sample
            takes, averaged over the same tokens. One-hot where the route is one expert, 1 / k at each of k.
    """

    inputs: torch.Tensor
    places: tuple[tuple[int, int, int], ...]
    weights: dict[str, torch.Tensor]

    def to(self, device: torch.device | str) -> Trace:
        """The same on `device`."""
        weights = {bank: each.to(device).contiguous() for bank, each in self.weights.items()}
        return Trace(self.inputs.to(device), self.places, weights)


def traced_modules(model: PeftModel) -> list[Any]:
    """The adapted linear layers of the active adapter that are looked at, in the model's order.

    LoRA on parameters that are no layers (`target_parameters`, as those of a sparse model's experts) is left out.
    """
    name = str(model.active_adapter)
    found = [module for module in model.modules() if _adapts(module, name)]
    step = max(1.0, len(found) / MODULES)
    return [found[int(k * step)] for k in range(min(len(found), MODULES))]


def _adapts(module: Any, name: str) -> bool:
    if isinstance(module, ExpertLayer):
        return name in module.r
    linear = isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper) and name in module.lora_A
    return linear and isinstance(module.lora_A[name], nn.Linear)


@torch.no_grad()
def trace(
    model: PeftModel,
    modules: Sequence[Any],
    forward: Callable[[], Any],
    routing: RoutingInputs | None,
    mask: torch.Tensor,
) -> Trace | None:
    """What the adapted modules see in a forward; nothing is counted, learned or drawn.

    Args:
        model: in eval mode.
        modules: its `traced_modules`.
        forward: runs the base model, without gradients, on B samples.
        routing: what routers read; None for an adapter that reads nothing.
        mask: [B, S] bool, the tokens that are averaged over.

    Returns:
        None where no module can be looked at: none is a linear layer that is given [batch, positions, features].
    """
    tuner, name = tuner_of(model), str(model.active_adapter)
    weights = mask.float() / mask.sum(1, keepdim=True).clamp_min(1)
    recorder = _Recorder(name, weights)
    with ExitStack() as stack:
        stack.enter_context(_eager(model))
        if tuner is not None:
            recorder.call = stack.enter_context(tuner.routing.using(routing or RoutingInputs()))
        for module in modules:
            stack.callback(module.register_forward_pre_hook(recorder).remove)
        forward()
    return recorder.found(modules)


@torch.no_grad()
def routes_now(
    model: PeftModel, modules: Sequence[Any], routing: Callable[[], RoutingInputs | None], like: Trace
) -> dict[str, torch.Tensor] | None:
    """`Trace.weights` as a forward would find them now, where that needs none: by prototypes, or with one expert.

    None where layers decide for themselves; only where prototypes do it is what they read (`routing`) asked for.
    """
    if (tuner := tuner_of(model)) is None:
        return like.weights
    if not shares_routes(model):
        return None
    with tuner.routing.using(routing()) as call:
        layer = modules[like.places[0][0]]
        x = like.inputs.new_zeros(len(like.inputs), 1, layer.in_features)
        return _stacked([layer.expert_weights(str(model.active_adapter), call, x, x.new_ones(x.shape[:2]))])


@torch.no_grad()
def expert_outputs(model: PeftModel, modules: Sequence[Any], seen: Trace) -> dict[str, torch.Tensor]:
    """By bank, sum_e w_e B_e A_e x of every module, side by side: [B, O summed over modules], float32.

    x and w are those of the trace, A and B those that the model holds now: what differs between two calls is what
    became of the experts, wherever their routers send samples meanwhile. Scalings, which do not change, are left out.
    """
    name = str(model.active_adapter)
    found: dict[str, list[torch.Tensor]] = {bank: [] for bank in seen.weights}
    for k, (number, first, stop) in enumerate(seen.places):
        a, b = _experts(modules[number], name)
        h = (seen.inputs[:, first:stop] @ a.float().flatten(0, 1).T).unflatten(1, a.shape[:2])
        wide = b.float().flatten(0, 1)
        for bank, weights in seen.weights.items():
            own = weights[:, k if weights.shape[1] > 1 else 0]
            found[bank].append((h * own.unsqueeze(-1)).flatten(1) @ wide)
    return {bank: torch.cat(parts, 1) for bank, parts in found.items()}


def moved(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """[B] share of each sample's route that is another one, from weights [B, L, E]: mean over modules of the total
    variation sum_e |w_e - w'_e| / 2. 0 or 1 a module where a route is one expert."""
    return (now - before).abs().sum(-1).div(2).mean(1)


def _experts(module: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A [E, r, I] and B [E, r, O] of a module."""
    if isinstance(module, ExpertLayer):
        return module.experts(name)
    return module.lora_A[name].weight.unsqueeze(0), module.lora_B[name].weight.T.unsqueeze(0)


def _stacked(by_module: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {bank: torch.stack([each[bank] for each in by_module], 1).float() for bank in by_module[0]}


class _Recorder:
    """A forward pre-hook of the modules that are looked at."""

    def __init__(self, name: str, weights: torch.Tensor) -> None:
        self.name, self.mask = name, weights
        self.call: RoutingCall | None = None
        self.inputs: list[torch.Tensor] = []
        self.seen: dict[int, tuple[int, dict[str, torch.Tensor]]] = {}  # id of a module -> its input's number, weights
        self._last: torch.Tensor | None = None

    def __call__(self, module: Any, given: tuple[Any, ...]) -> None:
        x = given[0]
        rows, width = self.mask.shape
        if x.dim() == 2 and len(x) == rows * width:  # OPT flattens what its attention saw
            x = x.unflatten(0, (rows, width))
        if id(module) in self.seen or x.shape[:2] != self.mask.shape:
            return
        if given[0] is not self._last:
            self._last = given[0]
            self.inputs.append(torch.bmm(self.mask.unsqueeze(1), x.float()).squeeze(1))
        if isinstance(module, ExpertLayer):
            assert self.call is not None
            own = module.expert_weights(self.name, self.call, x, self.mask)
        else:
            own = {ONLY: x.new_ones(rows, 1)}
        self.seen[id(module)] = len(self.inputs) - 1, own

    def found(self, modules: Sequence[Any]) -> Trace | None:
        """What was recorded; None where nothing was."""
        reached = [(k, *self.seen[id(module)]) for k, module in enumerate(modules) if id(module) in self.seen]
        if not reached:
            return None
        ends = list(accumulate((x.shape[1] for x in self.inputs), initial=0))
        by_module = [own for *_, own in reached]
        shared = self.call is not None and self.name in self.call.shared or ONLY in by_module[0]
        return Trace(
            torch.cat(self.inputs, 1),
            tuple((k, ends[number], ends[number + 1]) for k, number, _ in reached),
            _stacked(by_module[:1] if shared else by_module),
        )


def _eager(model: nn.Module) -> AbstractContextManager:
    """Compiled layers run as they are written, so that hooks see what goes through them."""
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()  # the other one imports the compiler, which takes seconds
