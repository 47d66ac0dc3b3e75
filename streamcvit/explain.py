"""What pydantic found wrong with a tree of settings, in one line of plain words."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
NAME_RULE = "must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"


def explain(error: ValidationError) -> str:
    """The first three faults, each with its key and what was given."""
    found = error.errors()
    faults = [_fault(dict(item)) for item in found[:3]]
    more = len(found) - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more > 0 else "")


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
