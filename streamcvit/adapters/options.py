"""The options of an adapter: the fields of its PEFT configuration that a pipeline may set."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftConfig

from streamcvit.errors import UserError

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}
PATTERNS = {"rank_pattern": "int", "alpha_pattern": "float"}
"""Options that give layers values of their own, by patterns of their names -> the kind of value."""


def options_of(config_cls: type[PeftConfig]) -> dict[str, dataclasses.Field]:
    """Name -> field of everything that this kind of adapter adds to what all PEFT configurations have."""
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    return {field.name: field for field in dataclasses.fields(config_cls) if field.name not in common}


def check_options(config_cls: type[PeftConfig], name: str, options: Mapping[str, Any]) -> None:
    """Refuse what PEFT would take in silence, or refuse much later in words of its own.

    Raises:
        UserError: an unknown option, one that only other adapters can have, or no number where one is needed.
    """
    fields = options_of(config_cls)
    taken = {field.name for field in dataclasses.fields(config_cls)}
    for option, value in options.items():
        if option == "target_parameters" and option not in taken:
            raise UserError(
                f"{name} cannot go to fused weights: one update is added to such a weight, experts add one a token",
                where=option,
                fix="Name linear layers in target_modules, or take the adapter lora",
            )
        if option not in taken:
            near = difflib.get_close_matches(str(option), fields, 1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise UserError(
                f"{name} has no option {option!r}", where="adapter options", fix=f"{meant}It has {', '.join(fields)}"
            )
        if option not in fields:
            continue
        if option in PATTERNS:
            _check_pattern(name, option, value)
        kind, _, none = str(fields[option].type).partition(" | ")
        if kind not in _KINDS or (none and (none != "None" or value is None)):
            continue
        types, words = _KINDS["float" if option.endswith("alpha") else kind]
        if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
            raise UserError(
                f"{name}: {option} must be {words} (got {value!r})",
                where="adapter options",
                fix="See docs/settings.md for what it means",
            )


def _check_pattern(name: str, option: str, given: Any) -> None:
    types, words = _KINDS[PATTERNS[option]]
    pairs: Iterable[tuple[Any, Any]] = given.items() if isinstance(given, Mapping) else [(given, None)]
    for key, value in pairs:
        number = isinstance(value, types) and not isinstance(value, bool)
        if not isinstance(key, str) or not number or not value > 0 or not _compiles(key):
            raise UserError(
                f"{name}: {option} maps names or regular expressions of layers to {words} above 0 (got {key!r:.60}"
                f"{'' if value is None else f': {value!r:.40}'})",
                where=option,
                fix=f"Write it as {option}: {{q_proj: 4}}",
            )


def _compiles(key: str) -> bool:
    try:
        re.compile(key)
    except re.error:
        return False
    return True


def check_matches(config: PeftConfig, names: Iterable[str]) -> None:
    """Refuse patterns for layers of their own (`PATTERNS`) that fit no adapted layer, which PEFT leaves at a warning.

    Args:
        config: an adapter's.
        names: of the modules that it goes to.

    Raises:
        UserError: a key fits none.
    """
    names = list(names)
    for option in PATTERNS:
        for key in getattr(config, option, None) or {}:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
                last = dict.fromkeys(name.split(".")[-1] for name in names)
                raise UserError(
                    f"{key!r} fits no layer that the adapter goes to",
                    where=option,
                    fix=f"Name or match the end of a layer's path; there are {', '.join(list(last)[:12])}",
                )


def check_parameters(config: PeftConfig, names: Iterable[str]) -> None:
    """Refuse `target_parameters` that fit none of a model's, which PEFT leaves at a warning, or without a word.

    Args:
        config: an adapter's.
        names: of the model's parameters.

    Raises:
        UserError: one fits none.
    """
    names = list(names)
    for target in getattr(config, "target_parameters", None) or ():
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise UserError(
                f"the model has no parameter {target!r}",
                where="target_parameters",
                fix="Name the end of a parameter's path, as in mlp.experts.down_proj",
            )
