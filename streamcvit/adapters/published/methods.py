"""What each published method's configuration means here, and how its tensors become ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig

from streamcvit.adapters.moelora import MoELoraConfig
from streamcvit.adapters.published.files import Problems
from streamcvit.adapters.published.layout import (
    STRLORA_NAMES,
    STRLORA_ROUTERS,
    Dims,
    Module,
    Weights,
    number,
    whole,
)
from streamcvit.adapters.smolora import SMoLoraConfig
from streamcvit.adapters.strlora import StrLoraConfig

CONFIGURATION, TENSORS, GIVEN = "its configuration", "its tensors", "as given"


@dataclass
class Settings:
    """Settings of our configuration, each with where it is from.

    Attributes:
        values: setting -> (value, source); a value of None is one that nothing says.
    """

    values: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values[name][0]

    def note(self, source: str, **values: Any) -> None:
        """Note values of one source."""
        self.values |= {name: (value, source) for name, value in values.items()}

    def fixed(self) -> set[str]:
        """Settings that follow from the tensors."""
        return {name for name, (_, source) in self.values.items() if source == TENSORS}


Published = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """How a method is read.

    Attributes:
        config: our configuration class.
        settings: (published configuration, sizes, problems) -> settings beside those of every method.
        shapes: (module, sizes, our configuration) -> shape of each tensor that a module must hold beside its experts.
        weights: (module, our configuration) -> tensors by the attribute of our layer.
        spare: names that a module may hold although its settings do not use them.
    """

    config: type[PeftConfig]
    settings: Callable[[Published, Dims, Problems], Settings]
    shapes: Callable[[Module, Dims, Any], dict[str, tuple[int, ...]]]
    weights: Callable[[Module, Any], Weights]
    spare: frozenset[str] = frozenset()


def _smolora(published: Published, dims: Dims, problems: Problems) -> Settings:
    if dims.experts % 2:
        problems.add(f"{dims.experts} experts do not split evenly between SMoLoRA's two banks")
    half = dims.experts // 2
    settings = Settings()
    settings.note(TENSORS, num_experts_visual=half, num_experts_instruction=half, instruction_dim=dims.text)
    settings.note("as it was trained", router="frozen", fusion="learned", pool="all")
    return settings


def _smolora_shapes(module: Module, dims: Dims, config: Any) -> dict[str, tuple[int, ...]]:
    inputs, outputs = module.sizes
    half = dims.experts // 2
    return {"gate_vu": (half, inputs), "gate_if": (half, dims.text), "fc_vu": (1, outputs), "fc_if": (1, outputs)}


def _smolora_weights(module: Module, config: Any) -> Weights:
    found, experts = module.named, module.stacked()
    return {
        "smolora_A": experts["A"],
        "smolora_B": experts["B"],
        "smolora_fc": torch.cat((found["fc_vu"], found["fc_if"])),
        "smolora_gate_visual": found["gate_vu"],
        "smolora_gate_instruction": found["gate_if"],
    }


def _moelora(published: Published, dims: Dims, problems: Problems) -> Settings:
    settings = Settings()
    settings.note(TENSORS, num_experts=dims.experts)
    settings.note(CONFIGURATION, top_k=whole(published, "topk", problems))
    return settings


def _moelora_shapes(module: Module, dims: Dims, config: Any) -> dict[str, tuple[int, ...]]:
    return {"w_router": (dims.experts, module.sizes[0])}


def _moelora_weights(module: Module, config: Any) -> Weights:
    experts = module.stacked()
    return {"moelora_A": experts["A"], "moelora_B": experts["B"], "moelora_router": module.named["w_router"]}


def _strlora(published: Published, dims: Dims, problems: Problems) -> Settings:
    for key, size in (("attn_proj_dim", dims.attention), ("task_embedding_dim", dims.text)):
        said = whole(published, key, problems)
        if said is not None and said != size:
            problems.add(f"{key} is {said} in the configuration and {size} in the tensors")
    settings = Settings()
    settings.note(TENSORS, num_experts=dims.experts, attention_dim=dims.attention, instruction_dim=dims.text)
    settings.note(CONFIGURATION, top_k=whole(published, "topk", problems))
    if dims.held & {"wq", "w_sub"}:
        settings.note(CONFIGURATION, sub_top_k=whole(published, "subtopk", problems))
    else:
        settings.note(TENSORS, sub_top_k=0)
    for ours, theirs in (("distill_lambda", "lambda"), ("distill_beta", "beta"), ("distill_tau", "tau")):
        value = number(published, f"sample_router_distill_{theirs}", problems)
        if value is not None:
            settings.note(CONFIGURATION, **{ours: value})
    for ours, theirs in (("freeze_query_key", "freeze_qk"), ("freeze_prototypes", "freeze_expo")):
        if theirs in published:
            settings.note(CONFIGURATION, **{ours: bool(published[theirs])})
    return settings


def _strlora_shapes(module: Module, dims: Dims, config: Any) -> dict[str, tuple[int, ...]]:
    inputs, size = module.sizes[0], dims.attention
    shapes = {
        "wq": (size, inputs),
        "wk": (size, dims.text),
        "proto": (dims.experts, size),
        "w_sub": (dims.experts, inputs),
    }
    used = {name: shape for name, shape in shapes.items() if _router(name) in config.routers}
    kept = {
        f"average {name}": shape
        for name, shape in used.items()
        if _router(name) in config.averaged and f"average {name}" in dims.held
    }
    return {"w_router": (dims.experts, dims.text), **used, **kept}


def _router(name: str) -> str:
    """What our configuration calls a router's weight."""
    return STRLORA_NAMES[name].removeprefix("strlora_")


def _strlora_weights(module: Module, config: Any) -> Weights:
    held = {**module.stacked(), **module.named}
    routers = {_router(name): held[name] for name in STRLORA_ROUTERS if _router(name) in config.routers}
    weights = {STRLORA_NAMES[name]: held[name] for name in ("A", "B", "w_router")}
    weights |= {f"strlora_{name}": value for name, value in routers.items()}
    kept = {_router(name): held.get(f"average {name}") for name in STRLORA_ROUTERS}
    for name in config.averaged:
        # Where none was kept, a running average starts at the weight that it follows.
        average = kept[name]
        weights[f"strlora_average_{name}"] = routers[name].clone() if average is None else average
    return weights


METHODS = {
    "SMOLORA": Method(SMoLoraConfig, _smolora, _smolora_shapes, _smolora_weights),
    "MOELORA": Method(MoELoraConfig, _moelora, _moelora_shapes, _moelora_weights),
    "STRLORA": Method(
        StrLoraConfig,
        _strlora,
        _strlora_shapes,
        _strlora_weights,
        # The authors' layer makes both token routers, and has no running averages to spare where it does not distil.
        frozenset(STRLORA_ROUTERS) | {f"average {name}" for name in STRLORA_ROUTERS},
    ),
}
"""Published `peft_type` -> how it is read."""
