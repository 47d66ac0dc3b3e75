"""What the embedded base model is taught: the skills behind the stream's tasks, in other words and other formats.

The base learns to describe pictures, to answer about colours, shapes, counts, positions, bars, land, text and
handwriting, to judge statements and to pick from lists. It never reads an instruction of the stream, and no answer it
is taught has a form that a task of the stream demands: `exchange` draws from templates below that hold neither, and
the tests look at a large sample. What the stream then has to teach is which form an instruction demands.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streamcvit.data.embedded import FORMATS, INSTRUCTIONS
from streamcvit.data.embedded_images import (
    BACKGROUNDS,
    BARS,
    COLOURS,
    LANDS,
    NUMBERS,
    REGIONS,
    SHAPES,
    Picture,
)


class Exchange(NamedTuple):
    """One lesson: which skill it trains, what the base reads and what it has to say."""

    skill: str
    prompt: str
    answer: str


KIND_SHARES: dict[str, float] = {"scene": 0.36, "big": 0.26, "text": 0.11, "chart": 0.08, "land": 0.08, "digit": 0.11}
"""How often each kind of picture occurs in the base's lessons."""

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
_LABELS: tuple[tuple[str, str], ...] = (
    ("ABCD", "{label}: {choice}"),
    ("1234", "{label}: {choice}"),
    ("abcd", "{label}) {choice}"),
)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _styled(rng: np.random.Generator, question: str, word: str) -> tuple[str, str]:
    hints, form = _STYLES[int(rng.integers(len(_STYLES)))]
    return f"{question}\n{_pick(rng, hints)}", form.format(word=word, Word=word.capitalize())


def _number(rng: np.random.Generator, question: str, value: int) -> tuple[str, str]:
    """A number in a word's styles or as a numeral."""
    if rng.random() < 0.25:
        return f"{question}\n{_pick(rng, ('As a numeral.', 'Use a numeral.'))}", f"#{value}"
    return _styled(rng, question, NUMBERS[value])


def _position(column: int, row: int) -> str:
    return f"x{column} y{row}"


def describe(picture: Picture) -> str:
    """Everything a picture shows, in the base's own telegraphic style."""
    facts = picture.facts
    if picture.kind == "scene":
        listed = [f"{colour} {shape} {_position(column, row)}" for colour, shape, row, column in facts["objects"]]
        return "; ".join([*listed, f"total {NUMBERS[len(listed)]}", facts["background"]])
    if picture.kind == "big":
        return f"large {facts['colour']} {facts['shape']}, {facts['background']} backdrop"
    if picture.kind == "text":
        return "printed " + facts["text"]
    if picture.kind == "chart":
        return "bars " + ", ".join(
            f"{bar} {NUMBERS[height]}" for bar, height in zip(BARS, facts["heights"], strict=True)
        )
    if picture.kind == "land":
        return "map " + ", ".join(facts["lands"])
    return f"handwriting of {NUMBERS[facts['digit']]}"


def _choices(rng: np.random.Generator, question: str, right: str, pool: Sequence[str]) -> tuple[str, str]:
    """A list to pick from; the answer names the label, or label and choice, never the bare label."""
    listed, label = _shuffled_options(rng, right, pool)
    if rng.random() < 0.5:
        return f"{question}\n{listed}\n{_pick(rng, ('Pick an option.', 'Point to the option.'))}", f"option {label}"
    return f"{question}\n{listed}\n{_pick(rng, ('Mark and copy it.', 'Repeat the line.'))}", f"{label} means {right}"


def _shuffled_options(rng: np.random.Generator, right: str, pool: Sequence[str]) -> tuple[str, str]:
    """A labelled list of four with the right one among them, and the right one's label."""
    others = [option for option in pool if option != right]
    options = [right, *(others[int(i)] for i in rng.permutation(len(others))[:3])]
    options = [options[int(i)] for i in rng.permutation(len(options))]
    labels, form = _LABELS[int(rng.integers(len(_LABELS)))]
    listed = " ".join(form.format(label=label, choice=option) for label, option in zip(labels, options, strict=True))
    return listed, labels[options.index(right)]


def _judged(rng: np.random.Generator, statement: str, holds: bool) -> tuple[str, str]:
    if rng.random() < 0.5:
        return (
            f"{statement}\n{_pick(rng, ('True or false?', 'Judge it: true or false.'))}",
            "true" if holds else "false",
        )
    return f"{statement}\n{_pick(rng, ('Right or wrong?', 'Judge it: right or wrong.'))}", "right" if holds else "wrong"


def _about_scene(picture: Picture, rng: np.random.Generator) -> Exchange:
    objects = picture.facts["objects"]
    colour, shape, row, column = objects[int(rng.integers(len(objects)))]
    chance = rng.random()
    if chance < 0.25:
        target = _pick(rng, (f"{colour} {shape}", f"{colour} object", f"{colour} thing"))
        question = _pick(rng, (f"Find the {target}.", f"Position of the {target}?", f"On which cell is the {target}?"))
        hint, form = (("As x and y.", "{0}"), ("With corners.", "from {0} to {1}"))[int(rng.integers(2))]
        return Exchange(
            "position",
            f"{question}\n{hint}",
            form.format(_position(column, row), _position(column + 1, row + 1)),
        )
    if chance < 0.35:
        question = _pick(rng, (f"Object at {_position(column, row)}?", f"What is at {_position(column, row)}?"))
        return Exchange("lookup", question, f"{colour} {shape}")
    if chance < 0.45:
        question = _pick(rng, (f"Shape of the {colour} object?", f"What shape is the {colour} thing?"))
        return Exchange("shape of", *_styled(rng, question, shape))
    if chance < 0.65:
        question = _pick(
            rng, ("Count the objects.", "Number of objects?", "How many are in the image?", "Total of things?")
        )
        return Exchange("count", *_number(rng, question, len(objects)))
    if chance < 0.90:
        present = [name for name, *_ in objects]
        wanted = bool(rng.integers(2))
        named = _pick(rng, [name for name in COLOURS if (name in present) == wanted])
        statement = _pick(
            rng, (f"It shows a {named} object.", f"Some {named} thing is here.", f"Anything {named} here?")
        )
        return Exchange("presence", *_judged(rng, statement, wanted))
    return Exchange("describe scene", _describe_prompt(rng), describe(picture))


def _about_big(picture: Picture, rng: np.random.Generator) -> Exchange:
    facts = picture.facts
    chance = rng.random()
    if chance < 0.40:
        attribute = _pick(rng, ("shape", "shape", "shape", "colour", "background"))
        pool = {"shape": SHAPES, "colour": tuple(COLOURS), "background": BACKGROUNDS}[attribute]
        question = {
            "shape": _pick(rng, ("Shape of the object?", "What shape is it?", "Which is the shape?")),
            "colour": _pick(rng, ("Color of the object?", "What color is it?")),
            "background": _pick(rng, ("Kind of backdrop?", "What scene is behind it?")),
        }[attribute]
        return Exchange("choices", *_choices(rng, question, facts[attribute], pool))
    if chance < 0.50:
        question = _pick(rng, ("Shape of the object?", "What shape is it?", "Which is the shape?"))
        return Exchange("shape", *_styled(rng, question, facts["shape"]))
    if chance < 0.65:
        named = _pick(rng, (facts["shape"], "object"))
        question = _pick(
            rng, (f"Color of the {named}?", f"What color has the {named}?", f"The {named} is of which color?")
        )
        return Exchange("colour", *_styled(rng, question, facts["colour"]))
    if chance < 0.78:
        question = _pick(rng, ("Kind of backdrop?", "What scene is behind it?", "Scene type?"))
        return Exchange("background", *_styled(rng, question, facts["background"]))
    return Exchange("describe big", _describe_prompt(rng), describe(picture))


def _about_text(picture: Picture, rng: np.random.Generator) -> Exchange:
    text = picture.facts["text"]
    question = _pick(rng, ("Read it.", "Which digits are printed?", "The printed number?"))
    chance = rng.random()
    if chance < 0.3:
        return Exchange(
            "read", f"{question}\n{_pick(rng, ('Spell it.', 'In words.'))}", " ".join(NUMBERS[int(d)] for d in text)
        )
    if chance < 0.7:
        return Exchange("read", *_styled(rng, question, text))
    return Exchange("read", _describe_prompt(rng), describe(picture))


def _about_chart(picture: Picture, rng: np.random.Generator) -> Exchange:
    bar = int(rng.integers(len(BARS)))
    name, height = BARS[bar], picture.facts["heights"][bar]
    if rng.random() < 0.75:
        question = _pick(
            rng, (f"Height of the {name} bar?", f"The {name} bar reaches what level?", f"Level of {name}?")
        )
        return Exchange("bar", *_number(rng, question, height))
    return Exchange("describe chart", _describe_prompt(rng), describe(picture))


def _about_land(picture: Picture, rng: np.random.Generator) -> Exchange:
    region = int(rng.integers(len(REGIONS)))
    name, land = REGIONS[region], picture.facts["lands"][region]
    question = _pick(rng, (f"Land in the {name}?", f"The {name} is covered by what?", f"Ground of the {name} part?"))
    chance = rng.random()
    if chance < 0.15:
        return Exchange("choices", *_choices(rng, question, land, LANDS))
    if chance < 0.8:
        return Exchange("land", *_styled(rng, question, land))
    return Exchange("describe land", _describe_prompt(rng), describe(picture))


def _about_digit(picture: Picture, rng: np.random.Generator) -> Exchange:
    if rng.random() < 0.85:
        question = _pick(rng, ("The digit by hand?", "Someone wrote what digit?", "Handwriting shows which digit?"))
        return Exchange("handwriting", *_number(rng, question, picture.facts["digit"]))
    return Exchange("handwriting", _describe_prompt(rng), describe(picture))


def _describe_prompt(rng: np.random.Generator) -> str:
    return _pick(rng, ("Describe it.", "Tell all you see.", "List everything."))


@functools.cache
def lexicon() -> tuple[str, ...]:
    """Every word of the benchmark, the stream's instructions included: the words that copying lessons shuffle."""
    text = " ".join(wording for wordings in INSTRUCTIONS.values() for wording in wordings)
    text += " ".join(FORMATS.values()) + " yes no units unit This is a scene on background A"
    words = set(re.findall(r"[A-Za-z]{2,}", text)) | {"A", "a"}
    words |= {*COLOURS, *SHAPES, *BACKGROUNDS, *LANDS, *NUMBERS} | {
        name.capitalize() for name in (*COLOURS, *LANDS, *NUMBERS)
    }
    words |= {
        "Is",
        "Can",
        "Where",
        "Locate",
        "What",
        "Which",
        "How",
        "many",
        "tall",
        "objects",
        "things",
        "anything",
        "see",
    }
    words |= {
        "there",
        "does",
        "have",
        "value",
        "covers",
        "area",
        "use",
        "land",
        "someone",
        "write",
        "written",
        "handwritten",
    }
    words |= {"main", "kind", "read", "can", "you", "did", "number", "digit", "shown", "color", "bar"}
    return tuple(sorted(words - {"az", "yes|no"}))


def _copying(rng: np.random.Generator) -> Exchange:
    """Repeat shuffled words: it gives every token a meaning without showing any instruction or demanded answer."""
    words = " ".join(_pick(rng, lexicon()) for _ in range(int(rng.integers(2, 6))))
    mark = _pick(rng, ("<", "[", ">", "]", ",", ".", "?", ":"))
    if rng.random() < 0.5:
        words = f"{words}{mark} {_pick(rng, NUMBERS)}"
    return Exchange("copy", f"Repeat: {words}", f"say {words}")


_ABOUT = {
    "scene": _about_scene,
    "big": _about_big,
    "text": _about_text,
    "chart": _about_chart,
    "land": _about_land,
    "digit": _about_digit,
}

COPYING_SHARE = 0.04

HARD_SKILLS: dict[str, float] = {
    "choices": 1.0,
    "position": 1.0,
    "presence": 1.0,
    "shape of": 1.0,
    "describe scene": 0.5,
    "lookup": 0.5,
    "read": 0.5,
    "copy": 0.5,
    "bar": 0.5,
    "handwriting": 0.4,
}
"""Share of these lessons that a focused choice keeps; of every other skill it keeps `EASY_SHARE`."""

EASY_SHARE = 0.2


def exchange(picture: Picture, rng: np.random.Generator) -> Exchange:
    """One lesson about a picture; all chance comes from `rng`."""
    if rng.random() < COPYING_SHARE:
        return _copying(rng)
    return _ABOUT[picture.kind](picture, rng)


def _steps_to_presence(picture: Picture, rng: np.random.Generator) -> Exchange:
    """Searching for what is not there, and judging the one large object's colour: the way to judging scenes."""
    if picture.kind == "big":
        wanted = bool(rng.integers(2))
        named = _pick(rng, [name for name in COLOURS if (name == picture.facts["colour"]) == wanted])
        statement = _pick(
            rng, (f"It shows a {named} object.", f"Some {named} thing is here.", f"Anything {named} here?")
        )
        return Exchange("presence big", *_judged(rng, statement, wanted))
    named = _pick(rng, [name for name in COLOURS if name not in {colour for colour, *_ in picture.facts["objects"]}])
    if rng.random() < 0.5:
        question = _pick(rng, (f"Find the {named} object.", f"Position of the {named} thing?"))
        return Exchange("absent", f"{question}\nAs x and y.", "nowhere")
    question = _pick(rng, (f"Shape of the {named} object?", f"What shape is the {named} thing?"))
    return Exchange("absent", *_styled(rng, question, "none"))


def _steps_to_choices(picture: Picture, rng: np.random.Generator) -> Exchange:
    """Finding a given word's label, and naming the choice before its label: the way to naming the label at once."""
    attribute = _pick(rng, ("shape", "shape", "colour", "background"))
    pool = {"shape": SHAPES, "colour": tuple(COLOURS), "background": BACKGROUNDS}[attribute]
    if rng.random() < 0.5:
        word = _pick(rng, pool)
        listed, label = _shuffled_options(rng, word, pool)
        question = _pick(rng, (f"Label of {word}?", f"Where does the list say {word}?"))
        return Exchange(
            "label",
            f"{question}\n{listed}\n{_pick(rng, ('Pick an option.', 'Point to the option.'))}",
            f"option {label}",
        )
    right = picture.facts[attribute]
    listed, label = _shuffled_options(rng, right, pool)
    question = {"shape": "What shape is it?", "colour": "What color is it?", "background": "Kind of backdrop?"}[
        attribute
    ]
    return Exchange("name and label", f"{question}\n{listed}\nName it, then its label.", f"{right} is option {label}")


def stepwise_exchange(picture: Picture, rng: np.random.Generator) -> Exchange:
    """As `focused_exchange`, with lessons that lead to judging presence and to picking from lists."""
    chance = rng.random()
    if picture.kind in ("scene", "big") and chance < 0.25:
        return _steps_to_presence(picture, rng)
    if picture.kind == "big" and chance < 0.55:
        return _steps_to_choices(picture, rng)
    return focused_exchange(picture, rng)


def focused_exchange(picture: Picture, rng: np.random.Generator) -> Exchange:
    """As `exchange`, but mostly about what is learned last."""
    while True:
        lesson = exchange(picture, rng)
        if rng.random() < HARD_SKILLS.get(lesson.skill, EASY_SHARE):
            return lesson


LESSONS = {"all": exchange, "focused": focused_exchange, "stepwise": stepwise_exchange}
"""The ways to choose lessons, in the order in which the base goes through them."""
