"""Every setting with its default and meaning, as a page: `python -m streamcvit.settings > docs/settings.md`.

The page is made from the config tree, the adapters' configurations and the strategies themselves, so it cannot say
anything else than they do; a test holds docs/settings.md equal to it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from streamcvit.adapters.options import options_of
from streamcvit.config import RunConfig

HEAD = """# Settings

Made by `make docs` from the config tree, the adapters and the strategies themselves; a test holds this page equal to
them. A pipeline is a YAML file of these keys, `--set key.path=value` overrides one of them, and `streamcvit check` says
what a pipeline comes to. Unknown keys and keys given twice are errors.
"""


def settings_page() -> str:
    """The page, in Markdown."""
    parts = [HEAD, *_sections(RunConfig, "", "A run"), _adapters(), _strategies(), _sinks()]
    return "\n".join(parts).rstrip() + "\n"


def _sections(section: type[BaseModel], path: str, title: str) -> Iterator[str]:
    """A table of a section's own keys, then the sections below it."""
    rows, below = [], []
    for attribute, field in section.model_fields.items():
        name = field.alias or attribute
        key = f"{path}.{name}" if path else name
        if (inner := _section_in(field.annotation)) is not None:
            star = typing.get_origin(field.annotation) is dict
            below.append((inner, f"{key}.NAME" if star else key))
            continue
        rows.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {_cell(field.description or '')} |")
    about = _cell((section.__doc__ or "").strip().partition("\n")[0])
    lines = [f"## {title if not path else f'`{path}`'}", "", about, ""]
    if rows:
        lines += ["| key | values | default | meaning |", "|---|---|---|---|", *rows, ""]
    yield "\n".join(lines)
    for inner, key in below:
        yield from _sections(inner, key, key)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds: as it is, or by name in a mapping."""
    args = typing.get_args(annotation) or (annotation,)
    return next((a for a in args if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in typing.get_args(annotation))
    if annotation is type(None):
        return "empty"
    names = {str: "text", int: "number", float: "number", bool: "true, false", dict: "mapping", Any: "anything"}
    origin = typing.get_origin(annotation)
    if origin in (list, tuple):
        return f"list of {_type(typing.get_args(annotation)[0])}"
    return names.get(origin or annotation, str(annotation))


def _default(field: Any) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "(needed)"
    return _value(field.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    if value is None or value == "" or value == {} or value == []:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value and abs(value) < 1e-2:
        return f"{value:g}"
    return f"{list(value)}" if isinstance(value, tuple) else f"{value}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _adapters() -> str:
    """The options of every adapter: ours from their docstrings, stock PEFT's from its fields' own help."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    from streamcvit.adapters import ADAPTERS

    lines = ["## `methods.NAME.options`", "", "The adapter's own settings, checked before anything is written.", ""]
    for name in ADAPTERS:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())]
        stated = _stated(config)
        lines += [f"### `adapter: {name}`", "", "| option | default | meaning |", "|---|---|---|"]
        for field in options_of(config).values():
            default = "" if field.default is dataclasses.MISSING else _value(field.default)
            meaning = stated.get(field.name) or field.metadata.get("help", "")
            lines.append(f"| `{field.name}` | {_cell(default)} | {_cell(meaning)} |")
        lines.append("")
    return "\n".join(lines)


def _strategies() -> str:
    from streamcvit.learning import STRATEGIES

    lines = ["## `methods.NAME.strategy_options`", ""]
    for name, strategy in STRATEGIES.items():
        about = _cell((strategy.__doc__ or "").strip().partition("\n")[0])
        lines += [f"### `strategy: {name}`", "", about, ""]
        options = {key: value for key, value in inspect.signature(strategy).parameters.items() if key != "seed"}
        if options:
            stated = _stated(strategy)
            lines += ["| option | default | meaning |", "|---|---|---|"]
            lines += [f"| `{k}` | {_value(v.default)} | {_cell(stated.get(k, ''))} |" for k, v in options.items()]
            lines.append("")
    return "\n".join(lines)


def _sinks() -> str:
    from streamcvit.monitoring.sinks import SINKS

    lines = ["## `monitor.sink_options.NAME`", ""]
    for name, sink in SINKS.items():
        about = _cell((sink.__doc__ or "").strip().partition("\n")[0])
        lines += [f"### `{name}`", "", about, ""]
        options, stated = inspect.signature(sink).parameters, _stated(sink)
        if options:
            lines += ["| option | default | meaning |", "|---|---|---|"]
            lines += [f"| `{k}` | {_value(v.default)} | {_cell(stated.get(k, ''))} |" for k, v in options.items()]
            lines.append("")
    return "\n".join(lines)


def _stated(cls: type) -> dict[str, str]:
    """What the `Args:` of a class and of those it derives from say, by name."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        text = inspect.cleandoc(one.__dict__.get("__doc__") or "")
        block = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
        for name, meaning in re.findall(
            r"^    (\w+)(?: \([^)\n]*\))?:\s*(.*?)(?=^    \w|\Z)", block[1] if block else "", re.M | re.S
        ):
            found[name] = " ".join(meaning.split())
    return found


if __name__ == "__main__":
    print(settings_page(), end="")
