"""The order in which the base is taught: everything, then what is hard, step by step, and in more wordings."""

from __future__ import annotations

import numpy as np

from streamcvit.data.embedded_corpus import exchange
from streamcvit.data.embedded_images import BACKGROUNDS, BARS, COLOURS, REGIONS, SHAPES, Picture
from streamcvit.data.embedded_phrases import (
    LABELS,
    Exchange,
    judged,
    number,
    pick,
    position,
    shuffled_options,
    styled,
)

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


def _steps_to_presence(picture: Picture, rng: np.random.Generator) -> Exchange:
    """Searching for what is not there, and judging the one large object's colour: the way to judging scenes."""
    if picture.kind == "big":
        wanted = bool(rng.integers(2))
        named = pick(rng, [name for name in COLOURS if (name == picture.facts["colour"]) == wanted])
        statement = pick(
            rng, (f"It shows a {named} object.", f"Some {named} thing is here.", f"Anything {named} here?")
        )
        return Exchange("presence big", *judged(rng, statement, wanted))
    named = pick(rng, [name for name in COLOURS if name not in {colour for colour, *_ in picture.facts["objects"]}])
    if rng.random() < 0.5:
        question = pick(rng, (f"Find the {named} object.", f"Position of the {named} thing?"))
        return Exchange("absent", f"{question}\nAs x and y.", "nowhere")
    question = pick(rng, (f"Shape of the {named} object?", f"What shape is the {named} thing?"))
    return Exchange("absent", *styled(rng, question, "none"))


def _steps_to_choices(picture: Picture, rng: np.random.Generator) -> Exchange:
    """Finding a given word's label, and naming the choice before its label: the way to naming the label at once."""
    attribute = pick(rng, ("shape", "shape", "colour", "background"))
    pool = {"shape": SHAPES, "colour": tuple(COLOURS), "background": BACKGROUNDS}[attribute]
    if rng.random() < 0.5:
        word = pick(rng, pool)
        listed, label = shuffled_options(rng, word, pool)
        question = pick(rng, (f"Label of {word}?", f"Where does the list say {word}?"))
        return Exchange(
            "label",
            f"{question}\n{listed}\n{pick(rng, ('Pick an option.', 'Point to the option.'))}",
            f"option {label}",
        )
    right = picture.facts[attribute]
    listed, label = shuffled_options(rng, right, pool)
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


def _reworded_scene(picture: Picture, rng: np.random.Generator) -> Exchange:
    objects = picture.facts["objects"]
    colour, shape, row, column = objects[int(rng.integers(len(objects)))]
    chance = rng.random()
    if chance < 0.4:
        target = pick(rng, (f"{colour} {shape}", f"{colour} {shape}", f"{colour} object"))
        question = pick(
            rng, (f"Where can you find the {target}?", f"Tell where the {target} is.", f"Where in it is the {target}?")
        )
        here, corner = (column, row), (column + 1, row + 1)
        hint, answer = (
            ("As x and y.", position(*here)),
            ("With corners.", f"from {position(*here)} to {position(*corner)}"),
            ("As pairs.", f"({here[0]},{here[1]}) ({corner[0]},{corner[1]})"),
            ("Four numbers.", f"{here[0]},{here[1]} to {corner[0]},{corner[1]}"),
        )[int(rng.integers(4))]
        return Exchange("position", f"{question}\n{hint}", answer)
    if chance < 0.85:
        wanted = bool(rng.integers(2))
        present = [name for name, *_ in objects]
        named = pick(rng, [name for name in COLOURS if (name in present) == wanted])
        statement = pick(
            rng,
            (
                f"Is any {named} object here?",
                f"Is there something {named}?",
                f"Can a {named} thing be seen?",
                f"Do you see a {named} object?",
                f"There is a {named} object.",
            ),
        )
        if rng.random() < 0.3:
            return Exchange("presence", f"{statement}\nSome or none?", "some" if wanted else "none")
        return Exchange("presence", *judged(rng, statement, wanted))
    question = pick(
        rng, ("How many objects do you see?", "How many things does it show?", "What is the number of objects?")
    )
    return Exchange("count", *number(rng, question, len(objects)))


def _reworded_big(picture: Picture, rng: np.random.Generator) -> Exchange:
    shape, colour, background = (picture.facts[key] for key in ("shape", "colour", "background"))
    chance = rng.random()
    if chance < 0.5:
        labels, form = LABELS[int(rng.integers(len(LABELS)))]
        listed = " ".join(form.format(label=label, choice=choice) for label, choice in zip(labels, SHAPES, strict=True))
        label = labels[SHAPES.index(shape)]
        question = pick(rng, ("Which shape does it show?", "What shape is it?", "Tell the shape of the object."))
        hint, answer = (
            ("Pick an option.", f"option {label}"),
            ("Mark and copy it.", f"{label} means {shape}"),
            ("Name it, then its label.", f"{shape} is option {label}"),
            ("Short.", shape),
        )[int(rng.integers(4))]
        return Exchange("listed", f"{question}\n{listed}\n{hint}", answer)
    if chance < 0.75:
        question = pick(
            rng,
            (f"What is the color of the {shape}?", f"Which color has the {shape}?", f"Tell the color of the {shape}."),
        )
        return Exchange("colour", *styled(rng, question, colour))
    question = pick(rng, ("What kind of backdrop is it?", "Which scene does it show?", "What type of scene is there?"))
    return Exchange("background", *styled(rng, question, background))


def _reworded_rest(picture: Picture, rng: np.random.Generator) -> Exchange:
    facts = picture.facts
    if picture.kind == "text":
        question = pick(
            rng, ("What number does it show?", "Which number is printed in it?", "What number can be read?")
        )
        return Exchange("read", *styled(rng, question, facts["text"]))
    if picture.kind == "chart":
        bar = int(rng.integers(len(BARS)))
        name = BARS[bar]
        question = pick(
            rng, (f"How tall is {name}?", f"What is the value of the {name} bar?", f"What height has the {name} bar?")
        )
        return Exchange("bar", *number(rng, question, facts["heights"][bar]))
    if picture.kind == "land":
        region = int(rng.integers(len(REGIONS)))
        name = REGIONS[region]
        question = pick(
            rng, (f"What covers the {name}?", f"Which land is in the {name} area?", f"What use has the {name} land?")
        )
        return Exchange("land", *styled(rng, question, facts["lands"][region]))
    question = pick(
        rng, ("What digit is handwritten here?", "Which digit was written by hand?", "What digit did they write?")
    )
    return Exchange("handwriting", *number(rng, question, facts["digit"]))


_REWORDED = {"scene": _reworded_scene, "big": _reworded_big}


def reworded_exchange(picture: Picture, rng: np.random.Generator) -> Exchange:
    """The skills in more wordings, with lists in one order; now and then a lesson as before, but no shuffled list."""
    if rng.random() < 0.6:
        return _REWORDED.get(picture.kind, _reworded_rest)(picture, rng)
    while True:
        lesson = focused_exchange(picture, rng)
        if lesson.skill != "choices":
            return lesson


LESSONS = {
    "all": exchange,
    "focused": focused_exchange,
    "stepwise": stepwise_exchange,
    "reworded": reworded_exchange,
}
"""The ways to choose lessons, in the order in which the base goes through them."""
