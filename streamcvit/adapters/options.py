"""The options of an adapter: the fields of its PEFT configuration that a pipeline may set."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig

from streamcvit.errors import UserError

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}


def options_of(config_cls: type[PeftConfig]) -> dict[str, dataclasses.Field]:
    """Name -> field of everything that this kind of adapter adds to what all PEFT configurations have."""
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    return {field.name: field for field in dataclasses.fields(config_cls) if field.name not in common}


def check_options(config_cls: type[PeftConfig], name: str, options: Mapping[str, Any]) -> None:
    """Refuse what PEFT would take in silence, or refuse much later in words of its own.

    Raises:
        UserError: an unknown option, or no number where one is needed.
    """
    fields = options_of(config_cls)
    taken = {field.name for field in dataclasses.fields(config_cls)}
    for option, value in options.items():
        if option not in taken:
            near = difflib.get_close_matches(str(option), fields, 1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise UserError(
                f"{name} has no option {option!r}", where="adapter options", fix=f"{meant}It has {', '.join(fields)}"
            )
        if option not in fields:
            continue
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
