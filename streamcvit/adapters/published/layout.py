"""The published key layout: what a module of each method holds, and what it is called here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from streamcvit.adapters.published.files import PREFIX, Problems

Weights = dict[str, torch.Tensor]

_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<rest>.+)$")
# The authors' code registers an expert's weight under two names; a file holds either or both.
_EXPERT = re.compile(r"^(?P<side>[AB])\.lora(?P=side)\.(?P<expert>\d+)\.(?:mlp\.)?weight$")
NAMES = {
    "gate_vu": "lora_vu_gate.weight",
    "gate_if": "lora_ins_gate.weight",
    "fc_vu": "lora_fc_A.weight",
    "fc_if": "lora_fc_B.weight",
    "w_router": "lora_router.weight",
    "wq": "lora_attn_wq.weight",
    "wk": "lora_attn_wk.weight",
    "proto": "lora_attn_expert_proto",
    "w_sub": "lora_sub_router.weight",
    "average wq": "lora_ema_attn_wq_weight",
    "average wk": "lora_ema_attn_wk_weight",
    "average proto": "lora_ema_attn_expert_proto",
    "average w_sub": "lora_ema_sub_router_weight",
}
"""Name in the papers' formulae -> published key after the module's path."""

_RESTS = {published.removeprefix("lora_"): name for name, published in NAMES.items()}
# In router_distill_ema.bin the running averages go without their prefix.
_AVERAGES = {NAMES[name].removeprefix("lora_ema_"): name for name in NAMES if name.startswith("average ")}
STRLORA_NAMES = {
    "A": "strlora_A",
    "B": "strlora_B",
    "w_router": "strlora_sample_router",
    "wq": "strlora_query",
    "wk": "strlora_key",
    "proto": "strlora_prototypes",
    "w_sub": "strlora_token_router",
}
"""Name in the papers' formulae -> attribute of `StrLoraLayer`."""

STRLORA_ROUTERS = ("wq", "wk", "proto", "w_sub")


@dataclass
class Module:
    """Published tensors of one adapted module.

    Attributes:
        path: of the module in the model that was trained.
        experts: A [r, I] and B [O, r] of each expert.
        named: the other tensors, by the papers' names.
    """

    path: str
    experts: dict[str, dict[int, torch.Tensor]] = field(default_factory=lambda: {"A": {}, "B": {}})
    named: Weights = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int]:
        """Features in and out, as the first expert has them; 0 where it is missing or no matrix."""
        a, b = (next(iter(self.experts[side].values()), None) for side in "AB")
        return (
            a.shape[-1] if a is not None and a.dim() == 2 else 0,
            b.shape[0] if b is not None and b.dim() == 2 else 0,
        )

    def stacked(self) -> Weights:
        """Experts as we hold them, A [E, r, I] and B [E, r, O]."""
        a, b = ([bank[e] for e in sorted(bank)] for bank in (self.experts["A"], self.experts["B"]))
        return {"A": torch.stack(a), "B": torch.stack([w.T for w in b])}


def by_module(tensors: Mapping[str, torch.Tensor], problems: Problems) -> dict[str, Module]:
    """The tensors of `adapter_model`, module by module; names that are not the published ones are noted."""
    modules: dict[str, Module] = {}
    for name, tensor in tensors.items():
        match = _KEY.match(name)
        expert = match and _EXPERT.match(match["rest"])
        if match is None or (expert is None and match["rest"] not in _RESTS):
            problems.add("unknown tensors", name)
            continue
        module = modules.setdefault(match["module"], Module(match["module"]))
        if expert is None:
            module.named[_RESTS[match["rest"]]] = tensor
            continue
        bank, number = module.experts[expert["side"]], int(expert["expert"])
        if number in bank and not torch.equal(bank[number], tensor):
            problems.add("experts whose two names hold different numbers", name)
        bank[number] = tensor
    return modules


def add_averages(modules: Mapping[str, Module], averages: Mapping[str, torch.Tensor], problems: Problems) -> None:
    """Put the running averages of `router_distill_ema` to their modules."""
    for name, tensor in averages.items():
        path, _, rest = name.removeprefix(PREFIX).rpartition(".")
        if path not in modules or rest not in _AVERAGES:
            problems.add("unknown running averages", name)
        else:
            modules[path].named[_AVERAGES[rest]] = tensor


@dataclass(frozen=True)
class Dims:
    """Sizes that hold for a whole checkpoint.

    Attributes:
        experts: E, over both banks.
        r: rank of one expert.
        text: size T of the instruction embedding.
        attention: size D of StrLoRA's query and key; 0 where there are none.
        held: names, beside the experts, that any module holds.
    """

    experts: int
    r: int
    text: int
    attention: int
    held: frozenset[str]

    @classmethod
    def of(cls, modules: Mapping[str, Module]) -> Dims:
        """As the first module that holds each of them says; later ones are compared with it."""

        def first(name: str, axis: int) -> int:
            held = (m.named[name] for m in modules.values() if name in m.named)
            return next((t.shape[axis] for t in held if t.dim() == 2), 0)

        ranks = (t.shape[0] for m in modules.values() for t in m.experts["A"].values() if t.dim() == 2)
        numbers = (e for m in modules.values() for bank in m.experts.values() for e in bank)
        text = first("gate_if", 1) or first("w_router", 1) or first("wk", 1)
        held = frozenset(name for m in modules.values() for name in m.named)
        return cls(max(numbers, default=-1) + 1, next(ranks, 0), text, first("wq", 0), held)


def check_tensors(
    module: Module, wanted: Mapping[str, tuple[int, ...]], spare: frozenset[str], dims: Dims, problems: Problems
) -> None:
    """Note what a module lacks, what of it has the wrong shape, and what is neither wanted nor to spare."""
    inputs, outputs = module.sizes

    def check(key: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        if tensor is None:
            problems.add("missing tensors", key)
        elif tuple(tensor.shape) != shape:
            problems.add("tensors of the wrong shape", f"{key} {list(tensor.shape)}, not {list(shape)}")

    for side, matrix in (("A", (dims.r, inputs)), ("B", (outputs, dims.r))):
        for e in range(dims.experts):
            key = f"{module.path}.lora_{side}.lora{side}.{e}.mlp.weight"
            check(key, module.experts[side].get(e), matrix)
    for name, shape in wanted.items():
        check(f"{module.path}.{NAMES[name]}", module.named.get(name), shape)
    for name in sorted(module.named.keys() - wanted.keys() - spare):
        problems.add("tensors that this method does not have", f"{module.path}.{NAMES[name]}")


def whole(config: Mapping[str, Any], key: str, problems: Problems) -> int | None:
    """A count that the configuration says, however it spells it; None where it says nothing."""
    for spelled in (key, key.replace("topk", "top_k"), f"expert_{key}"):
        value = config.get(spelled)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            problems.add(f"{spelled} in the configuration is {_brief(value)}, not a whole number")
            return None
        return value
    return None


def number(config: Mapping[str, Any], key: str, problems: Problems) -> float | None:
    """A finite number that the configuration says; None where it says nothing."""
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        problems.add(f"{key} in the configuration is {_brief(value)}, not a number")
        return None
    return value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
