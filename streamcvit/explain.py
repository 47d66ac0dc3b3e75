"""What pydantic found wrong with a tree of settings, in one line of plain words."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_KINDS = {"int": "a number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list"}
_KIND = re.compile(r"^(int|float|bool|str|list\[.*\])$")
"""How pydantic names, in a fault's place, which of the kinds that a value may be of was tried."""
NAME_RULE = "must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"


def explain(error: ValidationError) -> str:
    """The first three faults, each with its key and what was given."""
    found = _by_key([dict(item) for item in error.errors()])
    faults = [_fault(item) for item in found[:3]]
    more = len(found) - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more > 0 else "")


def _by_key(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The faults, those of one value that may be of several kinds as one."""
    found: dict[Any, dict[str, Any]] = {}
    kinds: dict[Any, list[str]] = {}
    for item in items:
        tag = next((k for k, part in enumerate(item["loc"]) if isinstance(part, str) and _KIND.match(part)), None)
        if tag is None:
            found[item["loc"], item["type"]] = item
            continue
        key, kind = item["loc"][:tag], str(item["loc"][tag])
        kinds.setdefault(key, []).append(next(word for start, word in _KINDS.items() if kind.startswith(start)))
        found.setdefault(key, item | {"loc": key, "type": "union"})
    for key, words in kinds.items():
        words = list(dict.fromkeys(words))
        if len(words) > 1:
            found[key]["msg"] = f"must be {', '.join(words[:-1])} or {words[-1]}"
    return list(found.values())


def _fault(item: dict[str, Any]) -> str:
    key, kind, given = ".".join(str(part) for part in item["loc"]), item["type"], item["input"]
    message, shown = item["msg"].removeprefix("Value error, "), f" (got {given!r})"
    if kind == "extra_forbidden":
        message, shown = "no such setting", ""
    elif kind in ("missing", "value_error"):
        shown = ""
    elif kind in ("model_type", "dict_type", "model_attributes_type"):
        empty = "is empty: remove the line, or put settings below it"
        message, shown = (empty, "") if given is None else ("must be a section with settings below it", shown)
    elif kind == "string_pattern_mismatch" and item["ctx"]["pattern"] == NAME:
        message = NAME_RULE
    elif kind == "string_type" and not isinstance(given, list | dict | None):
        message = "must be a text: put it in quotes"
    return f"{key}: {message}{shown}" if key else f"{message}{shown}"


def allowed(error: ValidationError, tree: type[BaseModel]) -> str:
    """For an unknown key: the keys that its section has."""
    first = error.errors()[0]
    if first["type"] != "extra_forbidden":
        return ""
    section: Any = tree
    for part in first["loc"][:-1]:
        fields = getattr(section, "model_fields", {})
        if part in fields:
            section = fields[part].annotation
        args = [a for a in getattr(section, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        if args:
            section = args[-1]
    fields = getattr(section, "model_fields", {})
    return f"Allowed here: {', '.join(field.alias or name for name, field in fields.items())}" if fields else ""
