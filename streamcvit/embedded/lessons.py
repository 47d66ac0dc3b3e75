"""The order in which the embedded base is taught: everything, then mostly what is hard, then that step by step."""

from __future__ import annotations

import numpy as np

from streamcvit.embedded.corpus import exchange
from streamcvit.embedded.images import BACKGROUNDS, COLOURS, SHAPES, Picture
from streamcvit.embedded.phrases import (
    Exchange,
    judged,
    pick,
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


LESSONS = {"all": exchange, "focused": focused_exchange, "stepwise": stepwise_exchange}
"""The ways to choose lessons, in the order in which the base goes through them."""
