"""How the embedded base is spoken to and speaks: the forms that its lessons are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streamcvit.embedded.images import NUMBERS


class Exchange(NamedTuple):
    """One lesson: which skill it trains, what the base reads and what it has to say."""

    skill: str
    prompt: str
    answer: str


# How the base says one word, with what the prompt says to get it that way. None of them is a format of the stream.
_STYLES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Short.", "Keep it short.", "Be brief."), "{word}"),
    (("As a title.", "Start with a capital."), "{Word}"),
    (("As a statement.", "Make it a statement."), "it is {word}"),
    (("With a hash sign.", "Put a hash first."), "#{word}"),
    (("With an equals sign.", "Use an equals sign."), "result={word}"),
    (("Shout it.", "Make it loud."), "{Word}!"),
    (("Quote it.", "Put it in quotes."), '"{word}"'),
)
LABELS: tuple[tuple[str, str], ...] = (
    ("ABCD", "{label}: {choice}"),
    ("1234", "{label}: {choice}"),
    ("abcd", "{label}) {choice}"),
)


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def styled(rng: np.random.Generator, question: str, word: str) -> tuple[str, str]:
    hints, form = _STYLES[int(rng.integers(len(_STYLES)))]
    return f"{question}\n{pick(rng, hints)}", form.format(word=word, Word=word.capitalize())


def number(rng: np.random.Generator, question: str, value: int) -> tuple[str, str]:
    """A number in a word's styles or as a numeral."""
    if rng.random() < 0.25:
        return f"{question}\n{pick(rng, ('As a numeral.', 'Use a numeral.'))}", f"#{value}"
    return styled(rng, question, NUMBERS[value])


def position(column: int, row: int) -> str:
    return f"x{column} y{row}"


def choose(rng: np.random.Generator, question: str, right: str, pool: Sequence[str]) -> tuple[str, str]:
    """A list to pick from; the answer names the label, or label and choice, never the bare label."""
    listed, label = shuffled_options(rng, right, pool)
    if rng.random() < 0.5:
        return f"{question}\n{listed}\n{pick(rng, ('Pick an option.', 'Point to the option.'))}", f"option {label}"
    return f"{question}\n{listed}\n{pick(rng, ('Mark and copy it.', 'Repeat the line.'))}", f"{label} means {right}"


def shuffled_options(rng: np.random.Generator, right: str, pool: Sequence[str]) -> tuple[str, str]:
    """A labelled list of four with the right one among them, and the right one's label."""
    others = [option for option in pool if option != right]
    options = [right, *(others[int(i)] for i in rng.permutation(len(others))[:3])]
    options = [options[int(i)] for i in rng.permutation(len(options))]
    labels, form = LABELS[int(rng.integers(len(LABELS)))]
    listed = " ".join(form.format(label=label, choice=option) for label, option in zip(labels, options, strict=True))
    return listed, labels[options.index(right)]


def judged(rng: np.random.Generator, statement: str, holds: bool) -> tuple[str, str]:
    if rng.random() < 0.5:
        return (
            f"{statement}\n{pick(rng, ('True or false?', 'Judge it: true or false.'))}",
            "true" if holds else "false",
        )
    return f"{statement}\n{pick(rng, ('Right or wrong?', 'Judge it: right or wrong.'))}", "right" if holds else "wrong"
