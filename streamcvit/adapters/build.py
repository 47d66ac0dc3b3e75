"""Put an adapter on a base model, reproducibly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from streamcvit.adapters.eproj import settle_projector
from streamcvit.adapters.flattened import routed, without_flattened
from streamcvit.adapters.options import check_matches, check_parameters
from streamcvit.adapters.targets import inside, matching, outside, settle_targets, target_modules, touched
from streamcvit.errors import UserError

NEED_DATA = ("eva", "corda", "lora_ga")
"""Starts of LoRA's that PEFT computes from samples, before anything is learned."""


def adapter_config(
    name: str,
    modules: list[str] | str | None,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> PeftConfig:
    """The PEFT configuration of an adapter; arguments and errors as those of `attach`."""
    from streamcvit.adapters import ADAPTERS

    if name not in ADAPTERS:
        raise UserError(f"unknown adapter {name!r}", fix=f"Choose one of {', '.join(sorted(ADAPTERS))}")
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())])}
    derived = {"seed": seed, **(sizes or {})}
    settings = {key: value for key, value in derived.items() if key in known} | dict(options or {})
    if settings.get("init_lora_weights") in NEED_DATA:
        raise UserError(
            f"{settings['init_lora_weights']!r} is computed from samples, and a stream has none before it begins",
            where="init_lora_weights",
            fix="Choose another, or leave it out",
        )
    return ADAPTERS[name](settings, modules)


def attach(
    model: torch.nn.Module,
    name: str,
    modules: str | list[str] | None = None,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> PeftModel:
    """Wrap `model` with a fresh adapter whose start depends on `seed` alone.

    What lies before the language model stays frozen unless `options` names it: then its modules learn, too, and image
    features follow them (`streamcvit.adapters.targets` says how names are taken). Layers that see tokens without their
    samples are left out where experts are routed per sample (`streamcvit.adapters.flattened`).

    Args:
        model: the frozen base; its modules are wrapped in place (`PeftModel.unload()` restores them).
        name: a key of `ADAPTERS`.
        modules: which linear layers, as PEFT takes `target_modules`; None: all of the language model.
        seed: of the adapter's initial weights, routers included; the global random state is left as it was.
        options: the adapter's own settings.
        sizes: settings that follow from the model (`instruction_dim`, `visual_dim`) and the stream (`tasks`); those
            that the adapter has are taken where `options` does not say otherwise.

    Raises:
        UserError: unknown adapter or option; modules that the model does not have, or that the adapter cannot go to.
    """
    default = target_modules(model) if modules is None else modules
    if name == "eproj":
        settled = settle_projector(model, options or {})
    else:
        settled = settle_targets(model, default, options or {}, beyond=name == "lora")
    config: Any = adapter_config(name, None, seed=seed, options=settled, sizes=sizes)
    if routed(config):
        config.target_modules = without_flattened(model, config.target_modules)
    check_parameters(config, (parameter for parameter, _ in model.named_parameters()))
    if not getattr(config, "target_parameters", None):
        check_matches(config, matching(model, config.target_modules))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config)
        except (
            ValueError,
            TypeError,
            AttributeError,
            NotImplementedError,
            ImportError,
        ) as error:  # PEFT's, and torch's
            said = " ".join(str(error).split())[:300]
            raise UserError(f"{name}: {said}", where="adapter options", fix="See docs/settings.md for them") from error
    assert isinstance(wrapped, PeftModel)
    # `bias: all` is of the whole model; it too means the language model's.
    adapters = touched(model)
    loose = [n for n, p in model.named_parameters() if p.requires_grad and not inside(n, adapters)]
    for parameter in outside(model, loose):
        model.get_parameter(parameter).requires_grad_(False)
    return wrapped
