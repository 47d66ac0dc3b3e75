"""Which parts of a model learn, as options of the adapter that is put on it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from streamcvit.adapters.parts import Parts
from streamcvit.adapters.targets import ALL_LINEAR, layer_numbers, linear_layers, matching, settle_targets
from streamcvit.errors import UserError

Layers = int | str | list[int]


def check_layers(layers: Layers) -> None:
    """Raises a ValueError where text names no layers: `0-7, 12`, `last 8`, or nothing for all."""
    if isinstance(layers, str) and layers:
        _numbers(layers, range(1 << 20))


def _numbers(layers: Layers, there: Iterable[int]) -> list[int]:
    """Layers by number, of those that are there."""
    if not isinstance(layers, str):
        return [layers] if isinstance(layers, int) else list(layers)
    known = sorted(there)
    if match := re.fullmatch(r"\s*last\s+([1-9]\d*)\s*", layers):
        if int(match[1]) > len(known):
            raise UserError(f"there are {len(known)} layers", where="layers_to_transform", fix="Ask for fewer")
        return known[-int(match[1]) :]
    found: list[int] = []
    for word in layers.split(","):
        if not (match := re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", word)):
            raise ValueError(f"{layers!r} names no layers: write numbers and ranges (0-7, 12), or last 8")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not found:
        raise ValueError(f"{layers!r} names no layers: a range begins with the smaller number")
    return found


@dataclass(frozen=True)
class Selection:
    """What of a model learns.

    Attributes:
        modules: of the language model, as an adapter's `target_modules`: `all-linear`, names, or a regular expression.
        exclude: those to leave out, in the same words; empty: none.
        layers: those of the language model's layers that learn; empty: all.
        projector, tower: `none`, `adapter` (on all of its linear layers), or `whole`.
    """

    modules: str | list[str] = ALL_LINEAR
    exclude: str | list[str] = ""
    layers: Layers = ""
    projector: str = "none"
    tower: str = "none"

    @property
    def keys(self) -> dict[str, str]:
        """Adapter option -> the field here that says it; of fields that say something."""
        found: dict[str, str] = {}
        for part in ("tower", "projector"):
            if (how := getattr(self, part)) != "none":
                found["modules_to_save" if how == "whole" else "target_modules"] = part
        if self.modules != ALL_LINEAR:
            found["target_modules"] = "modules"
        if self.exclude:
            found["exclude_modules"] = "exclude"
        if self.layers not in ("", []):
            found["layers_to_transform"] = "layers"
        return found

    def options(self, model: nn.Module, given: Mapping[str, Any], *, routed: bool) -> dict[str, Any]:
        """An adapter's options with those that this selection comes to.

        Args:
            model: the base, before it is adapted; its weights are not read.
            given: the adapter's own options.
            routed: whether it routes experts, which live in the language model alone.

        Raises:
            UserError: both say the same thing; the model has no such part or layer, or the adapter cannot go there.
                Its `where` is the adapter's option (see `keys`) or the field.
        """
        keys = self.keys
        if not keys:
            return dict(given)
        for option, key in keys.items():
            if given.get(option) is not None:
                raise UserError(f"the method's options name {option} too", where=key, fix="Keep one of them")
        for part in ("projector", "tower"):
            if routed and getattr(self, part) == "adapter":
                raise UserError(
                    f"experts are routed in the language model alone, and its {part} can only be trained whole",
                    where=part,
                    fix=f"Set {part} to whole or none, or take the adapter lora",
                )
        parts = Parts.of(model)
        options: dict[str, Any] = {**given, "target_modules": self.modules}
        if self.exclude:
            options["exclude_modules"] = self.exclude
        if "layers_to_transform" in keys:
            options["layers_to_transform"] = _numbers(self.layers, layer_numbers(model))
        if whole := [name for part in ("projector", "tower") for name in self._whole(parts, part)]:
            options["modules_to_save"] = whole
        if added := [name for part in ("projector", "tower") for name in self._adapted(model, parts, part)]:
            # Layers are counted in the language model, so they are settled before others come along.
            inner: dict[str, Any] = {
                k: options.pop(k) for k in ("target_modules", "layers_to_transform") if k in options
            }
            settled = settle_targets(model, linear_layers(model), inner)["target_modules"]
            options["target_modules"] = list(dict.fromkeys([*matching(model, settled), *added]))
        elif self.modules == ALL_LINEAR:
            del options["target_modules"]
        return options

    def _whole(self, parts: Parts, part: str) -> tuple[str, ...]:
        if getattr(self, part) != "whole":
            return ()
        names = _names(parts, part)
        if part == "tower" and any(name.startswith(f"{outer}.") for name in parts.projector for outer in names):
            if self.projector != "whole":
                raise UserError(
                    f"the projector lies inside the tower ({parts.projector[0]}), which is trained whole with it",
                    where="tower",
                    fix="Set projector to whole too, or tower to adapter",
                )
            return names
        inner = part == "projector" and self.tower == "whole"
        return tuple(n for n in names if not (inner and any(n.startswith(f"{outer}.") for outer in parts.tower)))

    def _adapted(self, model: nn.Module, parts: Parts, part: str) -> list[str]:
        if getattr(self, part) != "adapter":
            return []
        kind = {"projector": "projector", "tower": "vision tower"}[part]
        found = [
            name
            for name, module in model.named_modules()
            # That of torch's own attention is read, never called.
            if isinstance(module, nn.Linear) and type(module) is not nn.modules.linear.NonDynamicallyQuantizableLinear
            if any(name == outer or name.startswith(f"{outer}.") for outer in _names(parts, part))
            if parts.part_of(name) == kind
        ]
        if not found:
            raise UserError(f"the model's {part} has no linear layers", where=part, fix=f"Set {part} to whole or none")
        return found


def _names(parts: Parts, part: str) -> tuple[str, ...]:
    names: tuple[str, ...] = getattr(parts, part)
    if not names:
        raise UserError(
            f"cannot tell which of the model's modules are its {part}",
            where=part,
            fix="Name them in the method's options: target_modules, or modules_to_save to train them whole",
        )
    return names
