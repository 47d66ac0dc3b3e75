"""How much of a model an adapter reaches, in one line for a person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from streamcvit.adapters.flattened import flattened, routed
from streamcvit.adapters.parts import Parts
from streamcvit.adapters.targets import language_model, linear_layers, outside, touched


@dataclass(frozen=True)
class Reach:
    """What an adapter is on.

    Attributes:
        adapted, linear: linear layers of the language model that have an adapter, and all of them (no output head).
        beyond: names of adapted modules outside the language model.
        whole: names of modules that are trained whole.
        weights: numbers that are trained.
        unreached: names of the language model's fused expert weights without an adapter.
        share: of the language model's weights that those are.
        parts: numbers that are trained, by the part of the model that they lie in (`streamcvit.adapters.parts`).
        kinds: of a language model with experts, adapted layers by what they are there for; empty for others.
        flat: names of layers that were left out because they see tokens without their samples.
    """

    adapted: int
    linear: int
    beyond: tuple[str, ...]
    whole: tuple[str, ...]
    weights: int
    unreached: tuple[str, ...] = ()
    share: float = 0.0
    parts: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    flat: tuple[str, ...] = ()

    @classmethod
    def of(cls, peft_model: PeftModel) -> Reach:
        """Of an adapter on a model; nothing is read from the device."""
        model = peft_model.get_base_model()
        on = {name: model.get_submodule(name) for name in touched(model)}
        adapted = [name for name, module in on.items() if isinstance(module, BaseTunerLayer)]
        linear = linear_layers(model)
        inner = set(adapted) & set(linear)
        config = peft_model.peft_config[peft_model.active_adapter]
        named = [str(name) for name in getattr(config, "target_parameters", None) or ()]
        unreached, share = _fused(model, named)
        flat: list[str] = []
        if inner and routed(config) and set(linear) - set(adapted):
            with peft_model.disable_adapter():
                flat = [name for name in flattened(model) if name not in on]
        return cls(
            len(inner),
            len(linear),
            tuple(outside(model, adapted)),
            tuple(name for name, module in on.items() if isinstance(module, ModulesToSaveWrapper)),
            sum(p.numel() for p in peft_model.parameters() if p.requires_grad),
            unreached,
            share,
            Parts.of(model).sizes(model, trained=True),
            Counter(map(_kind, sorted(inner))) if unreached or any(".experts." in name for name in linear) else {},
            flat=tuple(flat),
        )

    def line(self, name: str, exact: bool = True) -> str:
        """For people; the number of weights may be known but roughly."""
        text = f"{name} reaches {self.adapted} of {self.linear} linear layers of the language model"
        if self.beyond:
            text += f" and {len(self.beyond)} {'layer' if len(self.beyond) == 1 else 'layers'} beyond it"
        if self.whole:
            text += f", trains {', '.join(self.whole)} whole"
        text += f", {'' if exact else 'about '}{self.weights:,} weights trained"
        if set(self.parts) - {"language model"}:
            text += f" ({', '.join(f'{part} {size:,}' for part, size in self.parts.items())})"
        if self.kinds:
            text += f"; of its mixture of experts: {', '.join(f'{kind} ({n})' for kind, n in self.kinds.items())}"
        if self.flat:
            kinds = dict.fromkeys(".".join(name.split(".")[-2:]) for name in self.flat)
            text += f"; left out: {', '.join(kinds)} ({len(self.flat)}), which see tokens without their samples"
        if self.unreached:
            text += (
                f"; not reached: {len(self.unreached)} fused expert weights, {100 * self.share:.0f} % of the language "
                "model (an adapter `lora` reaches them with target_parameters)"
            )
        return text


def _kind(name: str) -> str:
    """What a layer of a mixture of experts is there for, from its name."""
    for kind, pattern in _KINDS.items():
        if re.search(pattern, name):
            return kind
    return "other layers"


_KINDS = {
    "shared experts": r"shared_(expert|mlp)",
    "experts": r"\.experts\.",
    "attention": r"attn|attention|mixer|conv",
    "dense layers": r"mlp|feed_forward|ffn",
}


def _fused(model: nn.Module, named: list[str]) -> tuple[tuple[str, ...], float]:
    """Expert weights stacked in one parameter (PEFT's `target_modules` cannot name them) that `named` leaves out."""
    prefix, language = language_model(model)
    adapters = [name.removeprefix(f"{prefix}.") for name in touched(model) if name.startswith(f"{prefix}.")]
    total, found, size = 0, [], 0
    for path, module in language.named_modules():
        home = next((name for name in adapters if path == name or path.startswith(f"{name}.")), None)
        plain = path.replace(".base_layer", "").replace(".original_module", "")
        if home is not None and plain != home and path == plain:
            continue  # the adapter's own
        for key, parameter in module.named_parameters(plain, recurse=False):
            total += parameter.numel()
            if parameter.dim() < 3 or isinstance(module, nn.modules.conv._ConvNd):
                continue
            if not any(key == name or key.endswith(f".{name}") for name in named):
                found.append(key)
                size += parameter.numel()
    return tuple(found), size / max(1, total)
