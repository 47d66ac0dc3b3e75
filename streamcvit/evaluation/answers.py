"""When a careful reader takes two answers for the same one, and the number that an answer is."""

from __future__ import annotations

import math
import re
import string
import unicodedata

from streamcvit.evaluation.text import vqa_normalise

# How people and chat models set what a keyboard writes plainly.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′ʼ＇", "'"),
        **dict.fromkeys("“”„‟″«»＂", '"'),
        **dict.fromkeys("‐‑‒–—―−－", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", None),
        "…": "...",
        "％": "%",
        "×": "x",
    }
)
# Around words, not within them (`2*3*4`); no longer than this, as each mark looks ahead for its other half.
_BOLD = re.compile(r"(?<!\w)(\*\*|__|\*|`)(?=\S)(.{1,300}?)(?<=\S)\1(?!\w)", re.DOTALL)

_PLAIN_NUMBER = re.compile(r"(?:[-+] ?)?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_GROUPED_NUMBER = re.compile(r"(?:[-+] ?)?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_PERCENT = re.compile(r"\s*(?:%|\bper\s?cent)$")
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
)
_UNITS += "eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(_UNITS.split())}
_TEN_WORDS = {word: 10 * (value + 2) for value, word in enumerate(_TENS.split())}
_HUNDREDS = {"hundred", "one hundred", "a hundred"}

# Marks that the normal form drops although they carry the meaning: a sign, what stands behind a grade or a name (`A-`,
# `18+`, `C++`), a comparison, and the stroke of a fraction or a date.
_MARKS = re.compile(
    r"(?<![\w.)\]])-(?=\.?\d)|(?<=\w)\++(?!\w)|(?:(?<=\b[A-Za-z])|(?<=\b[A-Za-z]{2}))-(?!\w)"
    r"|[<>≤≥≠]=?(?=\s*[\w.+-])|(?<=\d)/(?=\d)"
)


def plain(text: str) -> str:
    """A text as a keyboard writes it: composed letters (NFC), straight quotes, hyphens for dashes and the minus sign.

    Blanks of no width go, other blanks become one blank; marks of bold, slanted and code text go.
    """
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    while (bare_text := _BOLD.sub(r"\2", text)) != text:
        text = bare_text
    return " ".join(text.split())


def marks(text: str) -> list[str]:
    """The marks of a plain text that carry its meaning, in their order."""
    return _MARKS.findall(text)


def same_answer(prediction: str, reference: str) -> bool:
    """Whether two answers are equal to a careful reader; an empty answer equals nothing.

    Equal are strings that differ in case and typography alone; numbers of one value; else texts with the same
    meaning-bearing marks that are equal after `vqa_normalise`. Where that leaves nothing ("the", "A!"), the words
    themselves are compared.
    """
    said, wanted = plain(prediction), plain(reference)
    if said.casefold() == wanted.casefold():
        return said != ""
    value, due = parse_number(said), parse_number(wanted)
    if value is not None and due is not None:
        return value == due
    if marks(said) != marks(wanted):
        return False
    if normal := vqa_normalise(said):
        return normal == vqa_normalise(wanted)
    return bare(said) == bare(wanted) != ""


def bare(text: str) -> str:
    """A text in lower case without punctuation and blanks at its ends."""
    return text.casefold().strip(string.punctuation + string.whitespace)


def parse_number(text: str) -> float | None:
    """The number a whole answer is, else None.

    Read are signs, thousands commas, exponents, one closing full stop, words up to one hundred, and a percent sign or
    word, which divides by 100.
    """
    text = plain(text).removesuffix(".")
    found = _PERCENT.search(text.casefold())
    if found:
        text = text[: found.start()]
    if (value := _spoken(text.casefold())) is None:
        if _GROUPED_NUMBER.fullmatch(text):
            text = text.replace(",", "")
        if not _PLAIN_NUMBER.fullmatch(text):
            return None
        value = float(text.replace(" ", ""))
    value /= 100.0 if found else 1.0
    return value if math.isfinite(value) else None


def _spoken(text: str) -> float | None:
    """The number of words such as "twenty-one"."""
    tens, _, units = text.replace("-", " ").partition(" ")
    if text in _HUNDREDS:
        return 100.0
    if not units:
        return _WORDS.get(tens, _TEN_WORDS.get(tens))
    if tens in _TEN_WORDS and 0 < _WORDS.get(units, 0) < 10:
        return float(_TEN_WORDS[tens] + _WORDS[units])
    return None


def anls(prediction: str, reference: str) -> float:
    """Similarity of two texts in 0..1: one less their edit distance over the longer's length, 0 from 0.5 downwards.

    Average normalised Levenshtein similarity for one reference (Biten et al., "Scene Text Visual Question Answering",
    2019, equation 1); case and outer blanks do not count.
    """
    one, other = plain(prediction).casefold(), plain(reference).casefold()
    longer = max(len(one), len(other))
    if not longer or abs(len(one) - len(other)) * 2 >= longer:
        return 0.0
    row = list(range(len(other) + 1))
    for i, char in enumerate(one, 1):
        left = row[0] = i
        corner = i - 1
        for j, wanted in enumerate(other, 1):
            left = min(left + 1, row[j] + 1, corner + (char != wanted))
            corner, row[j] = row[j], left
    similarity = 1.0 - row[-1] / longer
    return similarity if similarity > 0.5 else 0.0
