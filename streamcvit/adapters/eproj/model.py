"""EProj as a PEFT tuner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import nn

from streamcvit.adapters.eproj.layer import EProjLayer
from streamcvit.adapters.parts import Parts
from streamcvit.adapters.routing import RoutingCall, RoutingInputs
from streamcvit.adapters.targets import matching, outside
from streamcvit.adapters.tuner import ExpertTuner, PendingLosses
from streamcvit.adapters.usage import Bank
from streamcvit.errors import UserError


class EProjModel(ExpertTuner):
    """Puts several projectors in the place of a model's one."""

    prefix = "eproj_"
    tuner_layer_cls = EProjLayer
    loss_of: ClassVar[str] = "samples"

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, EProjLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = EProjLayer(target, adapter_name, peft_config, self.routing, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def layers(self) -> Iterator[EProjLayer]:
        """The projector, or none where it was taken out."""
        return (module for module in self.model.modules() if isinstance(module, EProjLayer))

    def _end(self, call: RoutingCall) -> None:
        # The language model's own call comes after that of the projectors, and decides nothing.
        if call.routes:
            super()._end(call)
            self.routed = None  # a sample without a picture has no route

    def banks(self, config: Any) -> dict[str, Bank]:
        """One."""
        return {"projector": Bank(slice(0, 1), 0, config.num_projectors)}

    def expert_parameters(self) -> list[nn.Parameter]:
        """Projectors and their keys: one that no sample took stands still."""
        return [p for layer in self.layers() for p in layer.parameters() if p.requires_grad and p.dim() > 1]

    def step(self) -> None:
        """Projectors that were taken are there for good."""
        self._losses = PendingLosses()  # those of samples that were rehearsed
        for layer in self.layers():
            layer.settle()

    def undo(self) -> None:
        """Projectors that were taken are free again."""
        self._losses = PendingLosses()
        for layer in self.layers():
            layer.undo()


def choosing_projectors(
    model: nn.Module, instructions: Callable[[], torch.Tensor], image_mask: torch.Tensor
) -> AbstractContextManager:
    """While it lasts, a model's tower and projector run for these samples, outside the model's own forward.

    Args:
        model: the base model; nothing is done unless `EProjModel` is on it.
        instructions: gives [B, Di], the embeddings of their instructions.
        image_mask: [B, S] bool, true at their image tokens.
    """
    layer = next((module for module in model.modules() if isinstance(module, EProjLayer)), None)
    if layer is None or layer.routing.call is not None:
        return nullcontext()
    inputs = RoutingInputs(instruction=instructions().to(image_mask.device), image_mask=image_mask)
    return layer.routing.using(inputs, learning=layer.training and torch.is_grad_enabled())


def settle_projector(model: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's options with the model's projector in `target_modules`.

    Raises:
        UserError: the model has none, or several, or what the options name is none.
    """
    if (wanted := options.get("target_modules")) is not None:
        found = matching(model, wanted)
        if len(found) != 1 or not outside(model, found):
            told = f"names {len(found)} modules" if len(found) != 1 else f"names {found[0]} of the language model"
            fix = "Name the one module between vision tower and language model, or leave it out"
            raise UserError(f"eproj is on one projector, and this {told}", where="target_modules", fix=fix)
        return {**options, "target_modules": found}
    names = Parts.of(model).projector
    if len(names) != 1:
        told = f"has {len(names)} projectors ({', '.join(names[:3])})" if names else "has no projector that is known"
        raise UserError(
            f"{type(model).__name__} {told}, and eproj is on one",
            where="target_modules",
            fix="Name it in the method's options, as target_modules: [multi_modal_projector], or take another adapter",
        )
    return {**options, "target_modules": [names[0]]}
