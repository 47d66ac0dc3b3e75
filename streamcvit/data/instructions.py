"""Which part of a prompt is its instruction: named by the task's settings, and guessed only where they ask for it.

No text of a prompt is ever removed or moved. Where question, newline, instruction is not the very prompt, the prompt
is kept beside them (`Sample.whole`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from streamcvit.data.sample import PICTURE
from streamcvit.errors import UserError

Wording = Literal["given", "single", "drawn"]


class Parts(NamedTuple):
    """A prompt's question and instruction; `whole` is the prompt where it is not the two with a newline between.

    `found`: whether the row itself holds the instruction (a listed wording, its field's text, or the guessed line).
    """

    question: str
    instruction: str
    whole: str | None
    found: bool


@dataclass(frozen=True)
class Naming:
    """How a task names the instruction of its prompts.

    Attributes:
        wordings: its listed wordings. The longest one that a prompt ends or starts with, else one that is a line of it,
            is the instruction.
        wording: `given` keeps each row's own. `single` puts `wordings[0]` in the place of a listed wording, `drawn`
            one of `wordings`, drawn by the sample's id; behind the prompt on a new line where none of them is found.
        field: key of a row whose text is the instruction; put behind the prompt where it does not hold it.
        guess: with `given`, where no listed wording is found: the last line of a prompt of several lines.

    Raises:
        UserError: settings that contradict each other.
    """

    wordings: tuple[str, ...] = ()
    wording: Wording = "given"
    field: str = ""
    guess: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "wordings", tuple(self.wordings))
        if not all(isinstance(one, str) and one.strip() for one in self.wordings):
            raise UserError("an instruction wording is empty", fix="Leave it out of `instructions`")
        if self.wording != "given" and not self.wordings:
            raise UserError(
                f"wording is {self.wording!r}, but no instruction wordings are listed",
                fix="List them under `instructions`",
            )
        if self.field and (self.wordings or self.guess):
            raise UserError(
                "`instruction_field` stands beside `instructions` or `guess_instruction`",
                fix="Name the instruction in one way",
            )
        if self.guess and self.wording != "given":
            raise UserError(
                f"`guess_instruction` stands beside wording {self.wording!r}",
                fix="A guessed line is never exchanged for another; leave one of the two out",
            )

    def split(self, prompt: str, own: str = "", key: str = "") -> Parts:
        """A prompt's parts.

        Args:
            prompt: the whole of it.
            own: what the row itself says is its instruction; empty: nothing.
            key: what a wording is drawn by.
        """
        place = _find(prompt, [own] if own else self.wordings)
        if own and place is None:
            prompt, place = _append(prompt, own)
        found = place is not None
        if self.wording != "given":
            drawn = zlib.crc32(key.encode()) % len(self.wordings) if self.wording == "drawn" else 0
            wording = self.wordings[drawn]
            if place is None:
                prompt, place = _append(prompt, wording)
            else:
                prompt = prompt[: place[0]] + wording + prompt[place[1] :]
                place = (place[0], place[0] + len(wording))
        elif place is None and self.guess:
            place = _last_line(prompt)
            found = place is not None
        if place is None:
            return Parts(prompt, "", None, False)
        start, stop = place
        before, instruction, after = prompt[:start].rstrip(), prompt[start:stop], prompt[stop:].lstrip()
        question = "\n".join(filter(None, [before, after])) if before and after else before or after
        same = "\n".join(filter(None, [question, instruction])) == prompt
        return Parts(question, instruction, None if same else prompt, found)


UNNAMED = Naming()
"""No instruction is named: the whole prompt is the question."""


def _append(prompt: str, wording: str) -> tuple[str, tuple[int, int]]:
    whole = f"{prompt}\n{wording}" if prompt else wording
    return whole, (len(whole) - len(wording), len(whole))


def _find(prompt: str, wordings: Iterable[str]) -> tuple[int, int] | None:
    """Where the longest wording stands that the prompt ends or starts with, else one that is a line of it."""
    sorted_ = sorted(wordings, key=len, reverse=True)
    for wording in sorted_:
        for place in _ends(prompt, wording):
            if not (_joined(prompt, place[0]) or _joined(prompt, place[1])):
                return place
    for wording in sorted_:
        if found := re.search(rf"(?m)^[ \t]*({re.escape(wording)})[ \t]*$", prompt):
            return found.span(1)
    return None


def _ends(prompt: str, wording: str) -> Iterator[tuple[int, int]]:
    if prompt.endswith(wording):
        yield len(prompt) - len(wording), len(prompt)
    if prompt.startswith(wording):
        yield 0, len(wording)


def _joined(prompt: str, place: int) -> bool:
    """Whether a cut here would go through a word ("word." of "sword."); scripts without blanks have no such words."""
    pair = prompt[max(0, place - 1) : place + 1]
    return 0 < place < len(prompt) and pair.isascii() and pair.isalnum()


def _last_line(prompt: str) -> tuple[int, int] | None:
    start = prompt.rfind("\n") + 1
    line, before = prompt[start:], prompt[:start]
    return (start, len(prompt)) if line.replace(PICTURE, "").strip() and before.strip() else None
