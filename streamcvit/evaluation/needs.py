"""What rules read of a sample's `meta`: a reader for each key, which names sample and key where the value is unfit.

A rule says which readers it uses (`needing`), so that test sets are checked before a run learns anything
(`check_test_set`), and reads through them. A value of null counts as absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation.boxes import ORDERS, UNITS

Reader = Callable[[Sample], Any]
Rule = TypeVar("Rule", bound=Callable[..., Any])


def needing(*readers: Reader) -> Callable[[Rule], Rule]:
    """Note at a rule what it reads of a sample besides the answers."""

    def note(rule: Rule) -> Rule:
        rule.needs = readers  # type: ignore[attr-defined]
        return rule

    return note


def needs_of(rule: Callable[..., Any]) -> tuple[Reader, ...]:
    """What a rule reads; nothing where it says nothing."""
    return getattr(rule, "needs", ())


def unfit(sample: Sample, key: str, value: Any, expected: str) -> UserError:
    """What a reader raises."""
    fix = f'Give meta "{key}" as {expected}, or name another rule for the task'
    return UserError(f'meta "{key}" is {value!r:.80}', where=f"sample {sample.sample_id}", fix=fix)


def unanswerable(sample: Sample, what: str, fix: str) -> UserError:
    """What is raised of a sample whose every answer would score 0."""
    return UserError(
        f"no answer to it could be right: {what}",
        where=f"sample {sample.sample_id}",
        fix=f"{fix}, or name another rule for the task",
    )


def people(count: int) -> Reader:
    """A reader that asks for so many human answers, without which the rule's full marks are out of reach."""

    def answers(sample: Sample) -> Sequence[str]:
        if len(sample.answers) < count:
            raise unanswerable(sample, f"{len(sample.answers)} human answers, the rule wants {count}", "Give them all")
        return sample.answers

    return answers


def letter(sample: Sample) -> str:
    """The reference, which is one capital letter, within the choices where they are given."""
    found, options = sample.answer, choices(sample)
    if len(found) == 1 and "A" <= found <= "Z" and (options is None or ord(found) - ord("A") < len(options)):
        return found
    raise unanswerable(sample, f"the reference {found!r:.80} is no letter of an option", "Give the letter as answer")


def _given(sample: Sample, key: str, fits: Callable[[Any], bool], expected: str) -> Any:
    value = sample.meta.get(key)
    if value is not None and not fits(value):
        raise unfit(sample, key, value, expected)
    return value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choices(sample: Sample) -> Sequence[str] | None:
    """The options of a question, in the order of their letters."""
    return _given(sample, "choices", _is_texts, "a list of texts")


def synonyms(sample: Sample) -> Sequence[str]:
    """Other names of the label."""
    return _given(sample, "synonyms", _is_texts, "a list of texts") or ()


def picture_size(sample: Sample) -> Sequence[float] | None:
    """Width and height of the picture in pixels."""

    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(n) and n > 0 for n in value)

    return _given(sample, "size", fits, "[width, height] in pixels")


def box_unit(sample: Sample) -> str | None:
    """What the numbers of a box are."""
    return _given(sample, "box_unit", lambda unit: unit in UNITS, f"one of {', '.join(UNITS)}")


def box_order(sample: Sample) -> str | None:
    """Which number of a corner comes first."""
    return _given(sample, "box_order", lambda order: order in ORDERS, f"one of {', '.join(ORDERS)}")


def slots(sample: Sample) -> list[set[str]]:
    """The words due, in their order and case-folded: of each set, one."""

    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(s, str) or (s and _is_texts(s)) for s in value)

    expected = "a list of words, or of lists of words of which one is due"
    value = _given(sample, "slots", fits, expected)
    if not value:
        raise unfit(sample, "slots", value, expected)
    return [{slot.casefold()} if isinstance(slot, str) else {word.casefold() for word in slot} for slot in value]


def max_words(sample: Sample) -> float:
    """The longest caption, in words; 0: none is given."""
    return _given(sample, "max_words", lambda n: _is_number(n) and n >= 0, "a number of words") or 0
