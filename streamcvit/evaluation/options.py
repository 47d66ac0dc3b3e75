"""Which option of a multiple-choice question an answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from streamcvit.evaluation.answers import bare, plain, same_answer

_LETTER = re.compile(r"[(\[\"']?([A-Za-z])[)\]\"'.:,]{0,2}")
_LIST = re.compile(r"(?:both )?[(\[]?[A-Z][)\]]?(?:\s*(?:,|/|&|and|or)+\s*[(\[]?[A-Z][)\]]?\b)+\W*", re.IGNORECASE)
# "B. cat", "(B) cat", "B, cat", "B: cat", "[B] cat", "B - cat"
_LEAD = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])(?:\s-(?=\s)|[).:,]+))\s*(.*)", re.DOTALL)
# "Answer: B", "The answer is (B) because ...", "Option B", "I choose B": a capital, so that "is a dog" names none.
_SAID = re.compile(
    r"(?i:\b(?:answer|option|choice|choose|select|pick)s?\b(?:\s+(?:is|would be|should be|option|choice|letter))*)"
    r"\s*:?\s*[(\[\"']*([A-Z])\b[)\]\"']*(.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(r"\s*(?:,|/|&|or|and)\s*(?i:option\s+)?[(\[\"']*[A-Z]\b(?!')")
_DENIED = re.compile(r"(?:\b(?:not|no|never|neither|nor|without)|n't)\W+(?:\w+\W+)?$", re.IGNORECASE)


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """Index of the option that an answer names by its letter, by its text, or by both; None where it names none or two.

    A single letter within the list is a letter, also where an option's text is one. Else an answer is read as people
    and chat models write it: "Answer: B", "The answer is B because ...", "Option B", "[B]", "B, dog", "It is a dog.".

    Args:
        text: an answer, or a reference.
        choices: the options' texts in the order of their letters; empty where only letters are known.
    """
    text = plain(text)
    if found := _LETTER.fullmatch(text):
        return _index(found[1], choices)
    # The very text of an option comes before what only reads the same: "A. cat" reads like "cat", and names two.
    if (whole := next((k for k, own in enumerate(choices) if bare(text) == bare(plain(own)) != ""), None)) is not None:
        return whole
    if _LIST.fullmatch(text):
        return None
    if found := _LEAD.fullmatch(text):
        letter, rest = found[1] or found[2], found[3]
        if (index := _index(letter, choices)) is not None and not rest[:1].isdigit():
            return index if _agrees(rest, index, choices) else None
    said = list(dict.fromkeys(found.groups() for found in _SAID.finditer(text)))
    if said:
        (letter, rest), *more = said
        index = _index(letter, choices)
        if more or index is None or _ANOTHER.match(rest) or not _agrees(rest, index, choices, clause=True):
            return None
        return index
    if (whole := next((k for k, own in enumerate(choices) if same_answer(text, own)), None)) is not None:
        return whole
    named = _named(text, choices)
    return named[0] if len(named) == 1 else None


def _index(letter: str, choices: Sequence[str]) -> int | None:
    index = ord(letter.upper()) - ord("A")
    return index if not choices or index < len(choices) else None


def _agrees(rest: str, index: int, choices: Sequence[str], clause: bool = False) -> bool:
    """Whether what follows a letter names no other option than the letter's; in a sentence, up to its first clause."""
    if clause:
        rest = re.split(r"[.;,]\s|\b(?:because|since|as|which|but)\b", rest.lstrip(" .:,-("), maxsplit=1)[0]
    if not rest.strip():
        return True
    if not choices:
        return clause
    named = _named(rest, choices)
    return not named or named == [index]


def _named(text: str, choices: Sequence[str]) -> list[int]:
    """Indices of the options whose texts stand in an answer as whole words and are not denied; longer texts first."""
    found, left = [], text.casefold()
    for index in sorted(range(len(choices)), key=lambda k: (-len(choices[k]), k)):
        option = bare(plain(choices[index]))
        if not option:
            continue
        pattern = re.compile(rf"(?<!\w)(?<!\d[.,]){re.escape(option)}(?!\w)(?![.,]\d)")
        places = [place for place in pattern.finditer(left) if not _DENIED.search(left[: place.start()])]
        if places:
            found.append(index)
        left = pattern.sub(lambda place: " " * len(place[0]), left)
    return found
