"""JSON as its standard has it (RFC 8259, I-JSON): what parsers read in different ways is refused.

A verdict must depend on the text alone. So nesting has a limit of its own, far below the one where Python's stack ends,
which depends on who calls; and what a later step could not write again (half a surrogate pair, NaN, numbers out of
range) is refused where it comes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

MAX_DEPTH = 64
"""Lists and objects within one another."""
MAX_TEXT = 16 << 20
"""Characters of a record or row (four bytes each at most: it fits into a shard's member)."""
PART = 1 << 20
"""Characters of a list of rows that are read at once."""
_DIGITS = 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBER = re.compile(r"[-+.eE0-9]*")
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


def read_rows(read: Callable[[int], str]) -> Iterator[Any]:
    """The rows of a JSON list, one by one; a row that is well-formed but refused comes as its ValueError.

    Args:
        read: so many characters of what follows; fewer only at the end. No more is held than a part and a row.

    Raises:
        ValueError: the text is no JSON list (rows before the fault have been given by then).
    """
    window = _Window(read)
    if window.skip() != "[":
        raise ValueError("it is no list")
    window.place += 1
    while window.skip() != "]":
        yield window.row()
        if window.skip() == ",":
            window.place += 1
            if window.skip() == "]":
                raise ValueError(f"expected a row at character {window.at}")
        elif window.skip() != "]":
            raise ValueError(f"expected a comma at character {window.at}")
    window.place += 1
    if window.skip():
        raise ValueError(f"something follows the list at character {window.at}")


class _Window:
    """A part of a text that moves on."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read, self._before, self._ended = read, 0, False
        self.text, self.place = "", 0

    @property
    def at(self) -> int:
        """The place in the whole text."""
        return self._before + self.place

    def _more(self) -> bool:
        """Let go of what lies behind, and read on by as much as is held; false at the end."""
        if self._ended:
            return False
        part = self._read(max(PART, len(self.text) - self.place))
        self._before += self.place
        self.text, self.place, self._ended = self.text[self.place :] + part, 0, not part
        return bool(part)

    def skip(self) -> str:
        """Go past blanks; the character behind them, empty at the end."""
        while True:
            self.place = _SPACE.match(self.text, self.place).end()  # type: ignore[union-attr]
            if self.place < len(self.text) or not self._more():
                return self.text[self.place : self.place + 1]

    def row(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = self._value()
            except json.JSONDecodeError as fault:
                # Perhaps only its end is not here yet; of one that is longer than a row may be, it never will be.
                if len(self.text) - self.place > 4 * MAX_TEXT or not self._more():
                    raise ValueError(f"{fault.msg} at character {self._before + fault.pos}") from None
                continue
            # A number may go on behind what is here.
            if _NUMBER.match(self.text, end).end() < len(self.text) or not self._more():  # type: ignore[union-attr]
                self.place = end
                return value

    def _value(self) -> tuple[Any, int]:
        try:
            return _decode(self.text, self.place)
        except _Refused as refused:
            try:
                return refused, _LENIENT.raw_decode(self.text, self.place)[1]
            except (RecursionError, StopIteration):
                raise ValueError(str(refused)) from None


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
