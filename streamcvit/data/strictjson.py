"""JSON as its standard has it (RFC 8259, I-JSON): what parsers read in different ways is refused.

A verdict must depend on the text alone. So nesting has a limit of its own, far below the one where Python's stack ends,
which depends on who calls; and what a later step could not write again (half a surrogate pair, NaN, numbers out of
range) is refused where it comes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 64
"""Lists and objects within one another."""
MAX_TEXT = 16 << 20
"""Characters of a record or row (four bytes each at most: it fits into a shard's member)."""
_DIGITS = 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\n\r]*")


class _Refused(ValueError):
    """Well-formed, but not to be read."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {twice!r:.80} comes twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise _Refused(f"a number of {len(digits)} digits; at most {_DIGITS} are read")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {digits:.40} is out of range")
    return value


def _constant(name: str) -> None:
    raise _Refused(f"{name} is no number")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
# Finds where a refused value ends; it makes nothing of the numbers, which may be too long for Python.
_LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)


def loads(text: bytes | str, most: int | None = None) -> Any:
    """The value of a JSON text of at most so many characters (default: `MAX_TEXT`).

    Raises:
        ValueError: it is not UTF-8, no JSON, longer or nested deeper than allowed, names a key twice, or holds NaN,
            infinity, a number out of range or half a surrogate pair.
    """
    if isinstance(text, bytes):
        text = text.decode()
    start = _SPACE.match(text).end()  # type: ignore[union-attr]
    value, end = _decode(text, start, most)
    if _SPACE.match(text, end).end() < len(text):  # type: ignore[union-attr]
        raise ValueError(f"something follows at character {end}")
    return value


def rows(text: str) -> Iterator[Any]:
    """The rows of a JSON list, one by one; a row that is well-formed but refused comes as its ValueError.

    Raises:
        ValueError: the text is no JSON list (rows before the fault have been given by then).
    """

    def skip(place: int) -> int:
        return _SPACE.match(text, place).end()  # type: ignore[union-attr]

    place = skip(0)
    if text[place : place + 1] != "[":
        raise ValueError("it is no list")
    place = skip(place + 1)
    while text[place : place + 1] != "]":
        try:
            row, place = _decode(text, place)
        except _Refused as refused:
            row = refused
            try:
                place = _LENIENT.raw_decode(text, place)[1]
            except (RecursionError, StopIteration):
                raise ValueError(str(refused)) from None
        yield row
        place = skip(place)
        if text[place : place + 1] == ",":
            place = skip(place + 1)
            if text[place : place + 1] == "]":
                raise ValueError(f"expected a row at character {place}")
        elif text[place : place + 1] != "]":
            raise ValueError(f"expected a comma at character {place}")
    if skip(place + 1) < len(text):
        raise ValueError(f"something follows the list at character {place + 1}")


def _decode(text: str, start: int, most: int | None = None) -> tuple[Any, int]:
    try:
        value, end = _STRICT.raw_decode(text, start)
    except RecursionError:
        raise _Refused(f"nested deeper than {MAX_DEPTH} levels") from None
    most = MAX_TEXT if most is None else most
    if end - start > most:
        raise _Refused(f"{end - start} characters; at most {most} are read")
    # A cheap bound first: few records have that many brackets.
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _Refused(f"nested deeper than {MAX_DEPTH} levels")
    if _SURROGATE.search(text, start, end):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _Refused("half a surrogate pair, which is no text") from None
    return value, end


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        depth += 1
    return depth if isinstance(value, list | dict) else 0
