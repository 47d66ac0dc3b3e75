"""YAML in which a key stands once: the language's own reader lets the last one win, in silence."""

from __future__ import annotations

from typing import Any

import yaml


class Doubled(ValueError):
    """A key that stands twice in its section."""


def load(text: str) -> Any:
    """The one document of a text.

    Raises:
        Doubled: names the key, with the sections above it, and both lines.
        yaml.YAMLError, ValueError: no YAML, or a value of no sense (a 30th of February).
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root, "", set())
        return loader.construct_document(root)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _check(node: yaml.Node, above: str, seen: set[int]) -> None:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            _check(item, f"{above}{place}.", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            name = above
            if isinstance(key, yaml.ScalarNode):
                name, line = f"{above}{key.value}", key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    first = lines[key.tag, key.value]
                    raise Doubled(f"the key {name} stands twice, in lines {first} and {line}")
                lines[key.tag, key.value] = line
            _check(value, f"{name}.", seen)
