"""The normal forms of published evaluators: how they bring answers to one form before they compare them."""

from __future__ import annotations

import re
from collections.abc import Sequence

# The VQA evaluator's table of contractions, kept as the finished forms: every form with one of its apostrophes left out
# is a key of the published table. Its keys with a capital ("Im") never match lower-cased text and are left away.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
_CONTRACTIONS = {
    form[:at] + form[at + 1 :]: form for form in _CONTRACTED.split() for at, char in enumerate(form) if char == "'"
}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the published table has this one pair the wrong way round
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
# Published as "(?!<=\d)(\.)(?!\d)": the first group looks for a literal "<=" and never bars anything, so "3." loses its
# point; re.UNICODE (32) was handed over as the count of replacements.
_PERIOD, _PERIOD_COUNT = re.compile(r"\.(?!\d)"), int(re.UNICODE)


def _punctuation(text: str) -> str:
    grouped = _DIGIT_COMMA.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        # Judged on the text as it came in, not on what the earlier marks left of it.
        drop = grouped or mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if drop else " ")
    return _PERIOD.sub("", out, count=_PERIOD_COUNT)


def _digits_and_articles(text: str) -> str:
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def flatten(text: str) -> str:
    """One line without blanks at its ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_official(text: str) -> str:
    """Normal form of an answer in the VQA evaluator (GT-Vision-Lab/VQA, `vqaEval.py`)."""
    return _digits_and_articles(_punctuation(flatten(text)))


def vqa_normalise(text: str) -> str:
    """Normal form of an answer in the EvalAI/M4C processor, which the StrCVIT scripts use for VQAv2.

    As `vqa_official`, after lower-casing, deleting commas and question marks and splitting the possessive "'s" off.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_official(text.strip())


def check_lengths(predictions: Sequence, samples: Sequence) -> None:
    """Every prediction has its sample.

    Raises:
        ValueError: there are more of one than of the other.
    """
    if len(predictions) != len(samples):
        raise ValueError(f"{len(predictions)} predictions for {len(samples)} samples")
