"""Whether the adapter that a method starts from is the one that it makes, and which options it has from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from streamcvit.adapters.instruction import encoder_identity
from streamcvit.adapters.options import options_of
from streamcvit.adapters.targets import pattern_of, target_modules
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.models.base import skeleton
from streamcvit.run.loading import selection_of
from streamcvit.run.origin import FOLDERS, Origin, find, weights_of

_PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
_PASSING = ("seed", "init_weights", "init_lora_weights", "lora_dropout", "dropout", "inference_mode", "runtime_config",
            "eva_config", "corda_config", "lora_ga_config", "megatron_core")  # fmt: skip
"""Options that say how an adapter begins or is learned, not what its weights mean."""
_SIZES = {"instruction_dim": "model.instruction_encoder", "visual_dim": "model.name_or_path", "tasks": "the stream"}
_HARMLESS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of LoRA's `init_lora_weights` that leave the base's own weights as they are."""


def settled(config: RunConfig) -> RunConfig:
    """A config in which the options of every method that starts from an adapter are that adapter's own.

    What a method's options name stays as it is; `check` compares it. Modules are those whose weights the folder holds,
    unless the options, or `train`, say where the adapter goes.

    Raises:
        UserError: a folder that cannot be started from, or is of another kind than the method's adapter.
    """
    methods = dict(config.methods)
    for name, method in config.methods.items():
        if not method.start:
            continue
        key = f"methods.{name}.from"
        if method.adapter == "none":
            raise UserError("the adapter 'none' learns nothing", where=key, fix="Remove it, or name an adapter")
        origin = find(config, name)
        if (kind := origin.settings["peft_type"].lower()) != method.adapter:
            told = f"holds an adapter of kind {kind:.40}, the method's is {method.adapter}"
            raise UserError(told, where=origin.where, fix=f"Set methods.{name}.adapter, or give another folder")
        methods[name] = method.model_copy(update={"options": _options(config, name, origin)})
    return config.model_copy(update={"methods": methods})


def _options(config: RunConfig, name: str, origin: Origin) -> dict[str, Any]:
    method = config.methods[name]
    options, fields = dict(method.options), _fields(method.adapter)
    for option in fields.keys() - {*_PLACES, *_PASSING, *_SIZES, *options}:
        if (value := _stated(origin, fields, option)) != _plain(_default(fields[option])):
            options[option] = value
    if _changes_base(origin.settings.get("init_lora_weights")):  # else its own weights would not be the whole of it
        options.setdefault("init_lora_weights", origin.settings["init_lora_weights"])
    placed = any(options.get(option) is not None for option in _PLACES) or selection_of(config, name)[1].keys
    if not placed:
        model = skeleton(config.model.name_or_path, config.model.revision)
        there, named = [module for module, _ in model.named_modules()], set(origin.modules(method.adapter))
        wanted = [module for module in there if module in named]
        if lacking := sorted(named.difference(wanted)):
            told = f"is of modules that the model does not have ({len(lacking)} of {len(named)}, {lacking[0]} first)"
            raise UserError(told, where=origin.where, fix="Name the model that it was learned on")
        if not wanted:
            raise UserError(f"holds no weights of a {method.adapter}", where=origin.where, fix=FOLDERS)
        if origin.settings.get("target_parameters"):
            options["target_modules"] = origin.settings.get("target_modules")
        elif (targets := pattern_of(model, wanted)) != target_modules(model):
            options["target_modules"] = targets
        if whole := origin.settings.get("modules_to_save"):
            options["modules_to_save"] = whole
    return dict(sorted(options.items()))


def check(config: RunConfig, method: str, adapted: PeftModel) -> None:
    """Compare the adapter that a method starts from with the one that it makes.

    Args:
        config: the run, after `settled`.
        method: one with `from`; else nothing is compared.
        adapted: the model, or its skeleton, with the method's adapter on it.

    Raises:
        UserError: an option, a module or a shape differs, a weight is not finite, or its routers were learned with
            another instruction encoder.
    """
    if not config.methods[method].start:
        return
    origin, made = find(config, method), adapted.peft_config[str(adapted.active_adapter)]
    fields = _fields(config.methods[method].adapter)
    for option in sorted(fields.keys() - {*_PLACES, *_PASSING}):
        here, there = _plain(getattr(made, option)), _stated(origin, fields, option)
        if here != there:
            source = _SIZES.get(option, f"methods.{method}.options.{option}")
            fix = f"Change {source}" + ("" if option in _SIZES else ", or leave it out to take the folder's")
            raise UserError(f"{option} is {there} there and {here} here", where=origin.where, fix=fix)
    starts = [settings.get("init_lora_weights") for settings in (config.methods[method].options, origin.settings)]
    if starts[0] != starts[1] and any(map(_changes_base, starts)):
        told = f"init_lora_weights is {starts[1]} there and {starts[0]} here, which makes other base weights"
        raise UserError(told, where=origin.where, fix=f"Leave methods.{method}.options.init_lora_weights out")
    _check_shapes(origin, adapted)
    encoder = origin.known.get("encoder")
    if encoder and encoder != encoder_identity(config.model.instruction_encoder):
        told = f"its routers were learned with another instruction encoder ({encoder[:12]})"
        raise UserError(told, where=origin.where, fix="Name that one in model.instruction_encoder")
    weights_of(origin)


def _check_shapes(origin: Origin, adapted: PeftModel) -> None:
    made = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    fix = "Let `options` and `train` name the modules that it was learned with, or leave them out"
    for names, told in (
        (made.keys() - origin.shapes.keys(), "lacks {} tensors that the method's adapter has, {} first"),
        (origin.shapes.keys() - made.keys(), "holds {} tensors that the method's adapter does not have, {} first"),
    ):
        if names:
            raise UserError(told.format(len(names), min(names)), where=origin.where, fix=fix)
    for name, shape in sorted(made.items()):
        if origin.shapes[name] != shape:
            told = f"{name} has shape {list(origin.shapes[name])} there, and {list(shape)} on this model"
            raise UserError(told, where=origin.where, fix="Name the model that it was learned on")


def _stated(origin: Origin, fields: Mapping[str, dataclasses.Field], option: str) -> Any:
    """An option as the folder has it, or as PEFT takes it where that is silent."""
    return _plain(origin.settings.get(option, _default(fields[option])))


def _fields(adapter: str) -> dict[str, dataclasses.Field]:
    cls: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(adapter.upper())]
    return options_of(cls)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value


def _changes_base(start: Any) -> bool:
    return not any(start is kind or start == kind for kind in _HARMLESS)
