"""Learning rates by group of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel

from streamcvit.adapters.parts import Parts
from streamcvit.errors import UserError

_A, _B = (re.compile(rf"\.\w*lora_(embedding_)?{matrix}\.") for matrix in "AB")
_LOW_RANK = re.compile(r"\.lora_")  # stock LoRA has no routers
_OF_ADAPTER = re.compile(r"\.\w*lora_\w+\.")


def _adapter(name: str) -> bool:
    """A and B, and what else stock LoRA learns (DoRA's magnitudes)."""
    return bool(_A.search(name) or _B.search(name) or _LOW_RANK.search(name))


GROUPS: dict[str, Callable[[str, str], bool]] = {
    "adapter": lambda name, _: _adapter(name),
    "A": lambda name, _: bool(_A.search(name)),
    "B": lambda name, _: bool(_B.search(name)),
    "routers": lambda name, _: not _adapter(name) and bool(_OF_ADAPTER.search(name)),
    "whole": lambda name, _: ".modules_to_save." in name,
    "projector": lambda _, part: part == "projector",
    "tower": lambda _, part: part == "vision tower",
}
"""Group -> whether a parameter is in it, by its name and by the part of the model (`Parts`) that it lies in.

`adapter`: the matrices A and B; `A` and `B`: one of the two (LoRA+, Hayou et al. 2024); `routers`: gates, queries,
keys, prototypes and fusion of routed adapters; `whole`: modules that are trained whole; `projector` and `tower`:
whatever is trained in them.
"""


def grouped(
    peft_model: PeftModel, trained: Mapping[str, torch.Tensor], lr: float, lrs: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: those that `lrs` names, in its order, then the rest at `lr`.

    Args:
        peft_model: the adapted model, with or without weights.
        trained: its trained parameters by name.
        lr: rate of all that `lrs` does not name.
        lrs: rate by group (`GROUPS`) or by a regular expression that is found in a parameter's name; the first that
            fits a parameter holds.

    Raises:
        UserError: a group or expression that fits no trained parameter, or none that those before it leave.
    """
    if not lrs:
        return [{"params": list(trained.values()), "lr": lr}]
    parts = Parts.of(peft_model.get_base_model())
    left = dict(trained)
    groups: list[dict[str, Any]] = []
    for key, rate in lrs.items():
        fits = _rule(key, parts)
        if not (named := [name for name in left if fits(name)]):
            raise _unmatched(key, trained, any(fits(name) for name in trained), parts)
        groups.append({"params": [left.pop(name) for name in named], "lr": rate})
    return [*groups, {"params": list(left.values()), "lr": lr}] if left else groups


def _rule(key: str, parts: Parts) -> Callable[[str], bool]:
    if key in GROUPS:
        member = GROUPS[key]
        return lambda name: member(name, parts.part_of(name.removeprefix("base_model.model.")))
    try:
        pattern = re.compile(key)
    except re.error as error:
        raise UserError(
            f"{key!r} is neither a group ({', '.join(GROUPS)}) nor a regular expression ({error})", where=f"lrs.{key}"
        ) from None
    return lambda name: bool(pattern.search(name))


def _unmatched(key: str, trained: Iterable[str], taken: bool, parts: Parts) -> UserError:
    if taken:
        what, fix = "fits only parameters that the keys before it have", "Put it before them, or remove it"
        return UserError(f"{key!r} {what}", where=f"lrs.{key}", fix=fix)
    names = list(trained)
    present = [group for group in GROUPS if any(map(_rule(group, parts), names))]
    return UserError(
        f"{key!r} fits none of the {len(names)} trained parameters (such as {names[0]})",
        where=f"lrs.{key}",
        fix=f"There are the groups {', '.join(present)}; else name a regular expression that is found in their names",
    )
