"""How a task is asked and judged, from what its rows say: scorer, rule of form, length of answers, instruction."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from streamcvit.data.sample import TaskSpec
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, check_test_set
from streamcvit.start.look import Seen

NEARLY = 0.95
"""Share of the answers that are of a kind, for all to count as of it."""
WORDINGS = 8
"""Wordings of an instruction that a task may have."""
LONGEST = 512
"""Tokens of an answer that are decoded at most, unless a person asks for more."""
_TOKEN = 2  # characters a token, to be on the safe side; digits and signs may each have one of their own
_OPTION = re.compile(r"\W?\w{1,2}\s?[.):]\s.*|.*[:?]")  # "B. a cat"; a question


@dataclass(frozen=True)
class Judgement:
    """Fields of a task in a pipeline, and why.

    Attributes:
        what: the answers, in words.
        odd: what a person should look at.
    """

    scorer: str
    follow: str
    max_new_tokens: int
    what: str
    odd: tuple[str, ...] = ()


def judge(seen: Seen, test: Seen) -> Judgement:
    """By the answers of all rows (`seen`); those of the test set must have what the rules read."""
    count = len(seen)
    longest = int(np.sort(np.frombuffer(seen.lengths, np.int64))[math.ceil(0.99 * count) - 1])
    scorer, follow, what = _kind(seen)
    odd = []
    try:
        for _ in check_test_set(TaskSpec("", scorer, follow), test.samples):
            pass
    except UserError as fault:
        odd.append(f"answers look like {what}, but {fault.what}: scored by exact; to mend: {fault.fix}")
        scorer, follow = "exact", "single_word"
    keeping = FOLLOW_RULES[follow]([sample.answer for sample in seen.samples], seen.samples).mean()
    if keeping < NEARLY and follow not in ("sentence", "box"):
        follow = "single_word"
    elif keeping < NEARLY:
        odd.append(f"{1 - keeping:.0%} of the answers do not keep to the rule {follow!r} of their form themselves")
    asked = max(16, 8 * math.ceil((longest / (1 if scorer in ("grounding", "number") else _TOKEN) + 2) / 8))
    if asked > LONGEST:
        odd.append(f"very long answers (up to {max(seen.lengths)} characters): {LONGEST} tokens are decoded")
    return Judgement(scorer, follow, min(asked, LONGEST), what, tuple(odd))


def _kind(seen: Seen) -> tuple[str, str, str]:
    """Scorer, rule of form, and the answers in words."""
    count, kinds = len(seen), seen.kinds

    def nearly(kind: str) -> bool:
        return kinds[kind] >= NEARLY * count

    if nearly("box"):
        return "grounding", "box", "boxes"
    if nearly("letter"):
        return "choice", "letter", "letters of options"
    if nearly("yes_no"):
        return "exact", "yes_no", "yes or no"
    if nearly("whole"):
        return "exact", "number", "whole numbers"
    if nearly("short"):
        if kinds["people"] > count / 2:
            return "vqa", "single_word", "short, of several people"
        if kinds["number"] > count / 2:
            mixed = "numbers" if nearly("number") else "numbers and short texts"
            return "number", "number" if nearly("number") else "single_word", mixed
        labels = len(seen.labels)
        if labels <= min(100, count // 4):
            return "classification", "single_word", f"{labels} labels"
        return "exact", "single_word", "short"
    return "cider", "sentence", "sentences"


def instructions_of(seen: Seen) -> list[str]:
    """The wordings that nearly all prompts end with; none where there is no such few."""
    top = [text for text, _ in seen.endings.most_common(WORDINGS) if _may_be(text)]
    while top and seen.endings[top[-1]] < max(2, len(seen) / (10 * WORDINGS)):
        top.pop()
    return top if sum(seen.endings[text] for text in top) >= 0.9 * len(seen) else []


def _may_be(text: str) -> bool:
    long = len(text) >= 12 if text.isascii() else len(text) >= 6
    return long and not _OPTION.fullmatch(text)
