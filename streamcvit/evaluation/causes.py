"""Why two rules disagree about an answer, in the words of docs/scoring.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from streamcvit.data.sample import Sample
from streamcvit.evaluation import needs
from streamcvit.evaluation.answers import marks, parse_number, plain
from streamcvit.evaluation.options import chosen
from streamcvit.evaluation.scorers import Scorer

_ARTICLE = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)
_LETTER = re.compile(r"\(?[A-Za-z]\)?[.:]?")
_WORD_OR_BLANK = re.compile(r"[^\w\s]|_")


def _without_punctuation(text: str) -> str:
    return _WORD_OR_BLANK.sub("", text)


def _number(text: str) -> str:
    value = parse_number(text)
    return text if value is None else repr(value)


# In the order in which they are undone.
_FORMS: dict[str, Callable[[str], str]] = {
    "typography": plain,
    "number word or format": _number,
    "punctuation": _without_punctuation,
    "article": lambda text: " ".join(_ARTICLE.sub("", text).split()),
    "case": str.casefold,
    "blanks": lambda text: "".join(text.split()),
}
# What is said of a text that several of them explain comes last.
_LEAST_TELLING = ("case", "article", "punctuation", "typography", "blanks", "number word or format")


def _same(prediction: str, reference: str, names: tuple[str, ...]) -> bool:
    for name in names:
        prediction, reference = _FORMS[name](prediction), _FORMS[name](reference)
    return prediction == reference


def _spelling(prediction: str, reference: str) -> tuple[str, ...] | None:
    """The least of the forms that make two texts equal; None: they say something else."""
    names = tuple(_FORMS)
    if not _same(prediction, reference, names):
        return None
    for name in _LEAST_TELLING:
        fewer = tuple(one for one in names if one != name)
        if _same(prediction, reference, fewer):
            names = fewer
    return names


def _at_issue(
    prediction: str, reference: str, names: tuple[str, ...], refusing: Scorer, sample: Sample
) -> tuple[str, ...]:
    """Those of the forms that the refusing rule does not forgive: each is left alone in the texts, and asked about."""

    def forgiven(name: str) -> bool:
        said, wanted = prediction, reference
        for other in names:
            if other != name:
                said, wanted = _FORMS[other](said), _FORMS[other](wanted)
        return bool(refusing([said], [replace(sample, answers=(wanted,) * len(sample.answers))])[0] > 0)

    return tuple(name for name in names if not forgiven(name)) or names


def causes(prediction: str, sample: Sample, rule: str, refusing: Scorer) -> tuple[str, ...]:
    """What sets an answer apart from its nearest reference, so that one rule counts it and another does not.

    Args:
        prediction: the answer.
        sample: its sample.
        rule: name of the strict rule of the two; boxes and captions have causes of their own.
        refusing: the rule that gives fewer points.
    """
    if rule == "cider":
        return ("caption measure",)
    if not prediction.strip():
        return ("empty answer",)
    if rule == "grounding":
        return ("box format or edge of IoU 0.5",)
    if "Unanswerable" in prediction:
        return ('"Unanswerable"',)
    if any(set(marks(plain(prediction))) ^ set(marks(plain(answer))) for answer in sample.answers) and any(
        _spelling(prediction, answer) for answer in sample.answers
    ):
        return ("sign or other mark with a meaning",)
    spelled = [(names, answer) for answer in sample.answers if (names := _spelling(prediction, answer))]
    if spelled:
        names, answer = min(spelled, key=lambda one: len(one[0]))
        return _at_issue(prediction, answer, names, refusing, sample)
    if prediction in sample.answers:
        return ("people who disagree",) if len(set(sample.answers)) > 1 else ("equal string refused",)
    return (_meaning(prediction, sample),)


def _meaning(prediction: str, sample: Sample) -> str:
    options = needs.choices(sample)
    if options and any(chosen(prediction, options) == chosen(answer, options) is not None for answer in sample.answers):
        return "letter vs text"
    if _LETTER.fullmatch(prediction.strip()) or any(_LETTER.fullmatch(answer.strip()) for answer in sample.answers):
        return "letter vs text"
    if parse_number(prediction) is not None and any(parse_number(answer) is not None for answer in sample.answers):
        return "another number"
    said = prediction.casefold()
    if any(answer.casefold() in said for answer in sample.answers):
        return "reference within a longer answer"
    if any(said in answer.casefold() for answer in sample.answers):
        return "answer is a part of the reference"
    return "other"
