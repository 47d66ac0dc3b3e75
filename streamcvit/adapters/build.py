"""Put an adapter on a base model, reproducibly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from streamcvit.errors import UserError


def adapter_config(
    name: str,
    target_modules: list[str] | str | None,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> PeftConfig:
    """The PEFT configuration of an adapter; arguments and errors as those of `attach`."""
    from streamcvit.adapters import ADAPTERS

    if name not in ADAPTERS:
        raise UserError(f"unknown adapter {name!r}", fix=f"Choose one of {', '.join(sorted(ADAPTERS))}")
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())])}
    derived = {"seed": seed, **(sizes or {})}
    settings = {key: value for key, value in derived.items() if key in known} | dict(options or {})
    return ADAPTERS[name](settings, target_modules)


def attach(
    model: torch.nn.Module,
    name: str,
    target_modules: str | list[str],
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> PeftModel:
    """Wrap `model` with a fresh adapter whose start depends on `seed` alone.

    Args:
        model: the frozen base; its modules are wrapped in place (`PeftModel.unload()` restores them).
        name: a key of `ADAPTERS`.
        target_modules: which linear layers, as PEFT takes them.
        seed: of the adapter's initial weights, routers included; the global random state is left as it was.
        options: the adapter's own settings.
        sizes: settings that follow from the model (`instruction_dim`, `visual_dim`); taken where the adapter has them
            and `options` does not say otherwise.

    Raises:
        UserError: unknown adapter or option.
    """
    config = adapter_config(name, target_modules, seed=seed, options=options, sizes=sizes)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped
