"""SMoLoRA as a PEFT tuner."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from streamcvit.adapters.prototypes import Prototypes
from streamcvit.adapters.routing import RoutingCall, RoutingInputs
from streamcvit.adapters.smolora.layer import SMoLoraLayer
from streamcvit.adapters.tuner import ExpertTuner
from streamcvit.adapters.usage import Bank
from streamcvit.errors import UserError


class SMoLoraModel(ExpertTuner):
    """Adapts a model's linears with SMoLoRA; holds the prototypes, which all layers of an adapter share."""

    prefix = "smolora_"
    tuner_layer_cls = SMoLoraLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt `model`; PEFT calls this for the first adapter and for every further one."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._add_prototypes(adapter_name, next(model.parameters()).device)

    def _add_prototypes(self, adapter_name: str, device: torch.device) -> None:
        if "smolora_prototypes_visual" not in self._modules:
            self.smolora_prototypes_visual = nn.ModuleDict()
            self.smolora_prototypes_instruction = nn.ModuleDict()
        config: Any = self.peft_config[adapter_name]
        if config.router != "prototype":
            return
        dims: dict[str, Any] = {"visual": config.visual_dim, "instruction": config.instruction_dim}
        thresholds = {"visual": config.spawn_below_visual, "instruction": config.spawn_below_instruction}
        for bank, size in config.bank_sizes.items():
            prototypes = Prototypes(
                size,
                dims[bank],
                thresholds[bank],
                standardise=bank == "visual",
                warmup=config.visual_warmup,
                spawn_below_text=config.spawn_below_text,
            )
            self.prototypes(bank)[adapter_name] = prototypes.to(device)

    def prototypes(self, bank: str) -> nn.ModuleDict:
        """Prototypes of a bank by adapter name."""
        return getattr(self, f"smolora_prototypes_{bank}")

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its prototypes."""
        super().delete_adapter(adapter_name)
        for bank in ("visual", "instruction"):
            if adapter_name in self.prototypes(bank):
                del self.prototypes(bank)[adapter_name]

    def _begin(self, call: RoutingCall) -> None:
        # Not the call, which would hold itself and what layers left in it.
        inputs, learning = call.inputs, call.learning
        call.late = lambda name: self.decide(name, inputs, learning)
        for name in self.active_adapters:
            config: Any = self.peft_config[name]
            if config.router == "prototype":
                call.shared[name] = call.late(name)

    def decide(self, name: str, inputs: RoutingInputs, learning: bool) -> torch.Tensor:
        """Routes [B, banks] of adapter `name`, as indices into the stacked experts."""
        config: Any = self.peft_config[name]
        if inputs.routes is not None:
            return inputs.routes
        experts: dict[str, torch.Tensor] = {}
        # The instruction's expert first: it may say which visual prototypes a sample sees.
        for bank in sorted(config.bank_sizes):
            features = getattr(inputs, bank)
            if features is None:
                raise UserError(
                    f"the prototype router needs the {bank} feature of each sample",
                    fix=f"Pass routing=RoutingInputs({bank}=...), or configure banks or another router",
                )
            prototypes: Any = self.prototypes(bank)[name]
            groups = None
            if bank == "visual":
                groups = _groups(experts.get("instruction") if config.visual_scope == "instruction" else None, inputs)
            experts[bank] = prototypes.learn(features, groups) if learning else prototypes.assign(features, groups)
        banks = self.banks(config)
        return torch.stack([experts[bank] + place.first for bank, place in banks.items()], 1)

    def banks(self, config: Any) -> dict[str, Bank]:
        """One column a bank, visual first."""
        banks, first = {}, 0
        for column, (label, size) in enumerate(config.bank_sizes.items()):
            banks[label] = Bank(slice(column, column + 1), first, size)
            first += size
        return banks

    def step(self) -> None:
        """Move the prototypes."""
        for prototypes in self._all_prototypes():
            prototypes.step()

    def undo(self) -> None:
        """Put the prototypes back to where they stood after the last step."""
        for prototypes in self._all_prototypes():
            prototypes.undo()

    def _all_prototypes(self) -> Iterator[Prototypes]:
        yield from chain(self.smolora_prototypes_visual.values(), self.smolora_prototypes_instruction.values())  # type: ignore[misc]


def _groups(own: torch.Tensor | None, inputs: RoutingInputs) -> torch.Tensor | None:
    """Groups of visual prototypes: `own` [B], below 0 those of samples without a picture."""
    if inputs.image_mask is None:
        return own
    seeing = inputs.image_mask.any(1)
    own = torch.zeros_like(seeing, dtype=torch.int64) if own is None else own.to(seeing.device)
    return torch.where(seeing, own, -1 - own)
