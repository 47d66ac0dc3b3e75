"""What the embedded base model is taught: the skills behind the stream's tasks, in other words and other formats.

The base learns to describe pictures, to answer about colours, shapes, counts, positions, bars, land, text and
handwriting, to judge statements and to pick from lists. It never reads an instruction of the stream, and no answer it
is taught has a form that a task of the stream demands: `exchange` draws from templates below that hold neither, and
the tests look at a large sample. What the stream then has to teach is which form an instruction demands.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from streamcvit.embedded.images import BACKGROUNDS, BARS, COLOURS, LANDS, NUMBERS, REGIONS, SHAPES, Picture
from streamcvit.embedded.phrases import Exchange, choose, judged, number, pick, position, styled
from streamcvit.embedded.tasks import FORMATS, INSTRUCTIONS

KIND_SHARES: dict[str, float] = {"scene": 0.36, "big": 0.26, "text": 0.11, "chart": 0.08, "land": 0.08, "digit": 0.11}
"""How often each kind of picture occurs in the base's lessons."""


def describe(picture: Picture) -> str:
    """Everything a picture shows, in the base's own telegraphic style."""
    facts = picture.facts
    if picture.kind == "scene":
        listed = [f"{colour} {shape} {position(column, row)}" for colour, shape, row, column in facts["objects"]]
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


def _about_scene(picture: Picture, rng: np.random.Generator) -> Exchange:
    objects = picture.facts["objects"]
    colour, shape, row, column = objects[int(rng.integers(len(objects)))]
    chance = rng.random()
    if chance < 0.25:
        target = pick(rng, (f"{colour} {shape}", f"{colour} object", f"{colour} thing"))
        question = pick(rng, (f"Find the {target}.", f"Position of the {target}?", f"On which cell is the {target}?"))
        hint, form = (("As x and y.", "{0}"), ("With corners.", "from {0} to {1}"))[int(rng.integers(2))]
        return Exchange(
            "position",
            f"{question}\n{hint}",
            form.format(position(column, row), position(column + 1, row + 1)),
        )
    if chance < 0.35:
        question = pick(rng, (f"Object at {position(column, row)}?", f"What is at {position(column, row)}?"))
        return Exchange("lookup", question, f"{colour} {shape}")
    if chance < 0.45:
        question = pick(rng, (f"Shape of the {colour} object?", f"What shape is the {colour} thing?"))
        return Exchange("shape of", *styled(rng, question, shape))
    if chance < 0.65:
        question = pick(
            rng, ("Count the objects.", "Number of objects?", "How many are in the image?", "Total of things?")
        )
        return Exchange("count", *number(rng, question, len(objects)))
    if chance < 0.90:
        present = [name for name, *_ in objects]
        wanted = bool(rng.integers(2))
        named = pick(rng, [name for name in COLOURS if (name in present) == wanted])
        statement = pick(
            rng, (f"It shows a {named} object.", f"Some {named} thing is here.", f"Anything {named} here?")
        )
        return Exchange("presence", *judged(rng, statement, wanted))
    return Exchange("describe scene", _describe_prompt(rng), describe(picture))


def _about_big(picture: Picture, rng: np.random.Generator) -> Exchange:
    facts = picture.facts
    chance = rng.random()
    if chance < 0.40:
        attribute = pick(rng, ("shape", "shape", "shape", "colour", "background"))
        pool = {"shape": SHAPES, "colour": tuple(COLOURS), "background": BACKGROUNDS}[attribute]
        question = {
            "shape": pick(rng, ("Shape of the object?", "What shape is it?", "Which is the shape?")),
            "colour": pick(rng, ("Color of the object?", "What color is it?")),
            "background": pick(rng, ("Kind of backdrop?", "What scene is behind it?")),
        }[attribute]
        return Exchange("choices", *choose(rng, question, facts[attribute], pool))
    if chance < 0.50:
        question = pick(rng, ("Shape of the object?", "What shape is it?", "Which is the shape?"))
        return Exchange("shape", *styled(rng, question, facts["shape"]))
    if chance < 0.65:
        named = pick(rng, (facts["shape"], "object"))
        question = pick(
            rng, (f"Color of the {named}?", f"What color has the {named}?", f"The {named} is of which color?")
        )
        return Exchange("colour", *styled(rng, question, facts["colour"]))
    if chance < 0.78:
        question = pick(rng, ("Kind of backdrop?", "What scene is behind it?", "Scene type?"))
        return Exchange("background", *styled(rng, question, facts["background"]))
    return Exchange("describe big", _describe_prompt(rng), describe(picture))


def _about_text(picture: Picture, rng: np.random.Generator) -> Exchange:
    text = picture.facts["text"]
    question = pick(rng, ("Read it.", "Which digits are printed?", "The printed number?"))
    chance = rng.random()
    if chance < 0.3:
        return Exchange(
            "read", f"{question}\n{pick(rng, ('Spell it.', 'In words.'))}", " ".join(NUMBERS[int(d)] for d in text)
        )
    if chance < 0.7:
        return Exchange("read", *styled(rng, question, text))
    return Exchange("read", _describe_prompt(rng), describe(picture))


def _about_chart(picture: Picture, rng: np.random.Generator) -> Exchange:
    bar = int(rng.integers(len(BARS)))
    name, height = BARS[bar], picture.facts["heights"][bar]
    if rng.random() < 0.75:
        question = pick(rng, (f"Height of the {name} bar?", f"The {name} bar reaches what level?", f"Level of {name}?"))
        return Exchange("bar", *number(rng, question, height))
    return Exchange("describe chart", _describe_prompt(rng), describe(picture))


def _about_land(picture: Picture, rng: np.random.Generator) -> Exchange:
    region = int(rng.integers(len(REGIONS)))
    name, land = REGIONS[region], picture.facts["lands"][region]
    question = pick(rng, (f"Land in the {name}?", f"The {name} is covered by what?", f"Ground of the {name} part?"))
    chance = rng.random()
    if chance < 0.15:
        return Exchange("choices", *choose(rng, question, land, LANDS))
    if chance < 0.8:
        return Exchange("land", *styled(rng, question, land))
    return Exchange("describe land", _describe_prompt(rng), describe(picture))


def _about_digit(picture: Picture, rng: np.random.Generator) -> Exchange:
    if rng.random() < 0.85:
        question = pick(rng, ("The digit by hand?", "Someone wrote what digit?", "Handwriting shows which digit?"))
        return Exchange("handwriting", *number(rng, question, picture.facts["digit"]))
    return Exchange("handwriting", _describe_prompt(rng), describe(picture))


def _describe_prompt(rng: np.random.Generator) -> str:
    return pick(rng, ("Describe it.", "Tell all you see.", "List everything."))


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
    words = " ".join(pick(rng, lexicon()) for _ in range(int(rng.integers(2, 6))))
    mark = pick(rng, ("<", "[", ">", "]", ",", ".", "?", ":"))
    if rng.random() < 0.5:
        words = f"{words}{mark} {pick(rng, NUMBERS)}"
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


def exchange(picture: Picture, rng: np.random.Generator) -> Exchange:
    """One lesson about a picture; all chance comes from `rng`."""
    if rng.random() < COPYING_SHARE:
        return _copying(rng)
    return _ABOUT[picture.kind](picture, rng)
