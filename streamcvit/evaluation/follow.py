"""Whether an answer keeps to the demanded form, apart from whether it is right.

A rule takes predictions and their samples and returns bool [n]. The strict rules never count an empty answer as
following; the published ones (names starting with `strcvit_`) are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import regex

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation import needs
from streamcvit.evaluation.answers import parse_number
from streamcvit.evaluation.caption import words
from streamcvit.evaluation.needs import needing, needs_of
from streamcvit.evaluation.text import check_lengths

FollowRule = Callable[[Sequence[str], Sequence[Sample]], np.ndarray]

# A pattern comes with the data: its answers are bounded in length and its matching in time, as a pattern that
# backtracks without end would hold the evaluator for good.
MAX_PATTERN, MAX_MATCHED, MATCH_SECONDS = 500, 1000, 1.0


def _by_row(rule: Callable[[str, Sample], bool]) -> FollowRule:
    def follows(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
        check_lengths(predictions, samples)
        return np.asarray([rule(text, sample) for text, sample in zip(predictions, samples, strict=True)], dtype=bool)

    follows.__doc__ = rule.__doc__
    follows.__name__ = rule.__name__.lstrip("_")
    return needing(*needs_of(rule))(follows)


def _strcvit_short(prediction: str, sample: Sample) -> bool:
    """eval_vqa_instruction: at most two words, or the reference ignoring case; the empty answer follows."""
    text = prediction.strip()
    return len(text.split()) <= 2 or text.lower() == sample.answer.lower()


def _strcvit_caption(prediction: str, sample: Sample) -> bool:
    """eval_caption_instruction: a closing full stop and either more than four words or part of a reference."""
    text = prediction.strip()
    if not text.endswith("."):
        return False
    return len(text.split()) > 4 or any(text.lower() in answer.lower() for answer in sample.answers)


def _strcvit_letter(prediction: str, sample: Sample) -> bool:
    """eval_scienceqa_instruction: one character from A to Z, in either case."""
    text = prediction.strip().upper()
    return len(text) == 1 and "A" <= text <= "Z"


def _single_word(prediction: str, sample: Sample) -> bool:
    """A word or a phrase: at most two words, or any reference ignoring case; punctuation alone does not follow."""
    text = prediction.strip()
    if not words(text):
        return False
    return len(text.split()) <= 2 or text.casefold() in {answer.strip().casefold() for answer in sample.answers}


def _sentence(prediction: str, sample: Sample) -> bool:
    """A sentence: as `strcvit_caption`, and it holds a word."""
    return bool(words(prediction)) and _strcvit_caption(prediction, sample)


@needing(needs.choices)
def _letter(prediction: str, sample: Sample) -> bool:
    """The letter of an option and nothing else; within `meta["choices"]` where given."""
    if not _strcvit_letter(prediction, sample):
        return False
    options = needs.choices(sample)
    return options is None or ord(prediction.strip().upper()) - ord("A") < len(options)


def _number(prediction: str, sample: Sample) -> bool:
    """A number in digits and nothing else."""
    return any(char.isdigit() for char in prediction) and parse_number(prediction) is not None


_BOX = regex.compile(r"\[\s*(\d*\.?\d+)\s*(?:,\s*(\d*\.?\d+)\s*){3}\]", regex.ASCII)


@needing(needs.box_unit)
def _box(prediction: str, sample: Sample) -> bool:
    """Square brackets around four numbers and nothing else; in 0..1 unless `meta["box_unit"]` names another unit."""
    found = _BOX.fullmatch(prediction.strip())
    if not found:
        return False
    if needs.box_unit(sample) not in (None, "unit"):
        return True
    return max(float(number) for group in (1, 2) for number in found.captures(group)) <= 1.0


def _yes_no(prediction: str, sample: Sample) -> bool:
    """Yes or no, in any case, with at most a full stop."""
    return prediction.strip().casefold().removesuffix(".") in {"yes", "no"}


def follow_pattern(sample: Sample) -> str:
    """The regular expression `meta["follow_pattern"]`, which compiles; empty where there is none."""
    pattern = sample.meta.get("follow_pattern")
    if pattern is not None:
        if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN:
            expected = f"a regular expression of 1 to {MAX_PATTERN} characters"
            raise needs.unfit(sample, "follow_pattern", pattern, expected)
        _matches(pattern, "", sample)
    return pattern or ""


def _due_pattern(sample: Sample) -> str:
    pattern = follow_pattern(sample)
    if not pattern:
        raise needs.unfit(sample, "follow_pattern", None, "a regular expression")
    return pattern


@needing(_due_pattern)
def follows_pattern(prediction: str, sample: Sample) -> bool:
    """The whole answer matches the regular expression `meta["follow_pattern"]`; longer than 1,000 characters never."""
    pattern, text = _due_pattern(sample), prediction.strip()
    return 0 < len(text) <= MAX_MATCHED and _matches(pattern, text, sample)


def _matches(pattern: str, text: str, sample: Sample) -> bool:
    try:
        return regex.fullmatch(pattern, text, timeout=MATCH_SECONDS) is not None
    except (regex.error, ValueError, RecursionError) as error:
        raise UserError(
            f"follow_pattern {pattern!r} is no regular expression: {error}", where=sample.sample_id, fix="Correct it"
        ) from None
    except TimeoutError:
        raise UserError(
            f"follow_pattern {pattern!r} takes more than {MATCH_SECONDS:g} s on one answer",
            where=sample.sample_id,
            fix="Write it without repetitions inside repetitions",
        ) from None


PUBLISHED_FORMS = {"single_word": "strcvit_short", "sentence": "strcvit_caption", "letter": "strcvit_letter"}
"""Strict rule: the published one for the same form; other forms have none."""


def published_form(rule: str) -> str | None:
    """The published rule for the form that a rule judges; None where the field has none."""
    return rule if rule in PUBLISHED_FORMS.values() else PUBLISHED_FORMS.get(rule)


FOLLOW_RULES: dict[str, FollowRule] = {
    "single_word": _by_row(_single_word),
    "sentence": _by_row(_sentence),
    "letter": _by_row(_letter),
    "number": _by_row(_number),
    "box": _by_row(_box),
    "yes_no": _by_row(_yes_no),
    "pattern": _by_row(follows_pattern),
    "strcvit_short": _by_row(_strcvit_short),
    "strcvit_caption": _by_row(_strcvit_caption),
    "strcvit_letter": _by_row(_strcvit_letter),
}
