"""The embedded benchmark: eleven small visual tasks, their demanded answer formats, and the stream that mixes them.

Four tasks (`count`, `colour`, `land`, `digit`) share one instruction and one answer format and differ only in their
pictures and questions, as AD, GQA, RS and VQAv2 do in StrCVIT; the other seven each demand a format of their own. The
format is part of the task: a right answer in another form scores nothing, so a model that has the skills but not the
formats starts near 0.

Everything is a pure function of its seeds; see `streamcvit.embedded.images` for how train, test and base pictures
are kept apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from streamcvit.data.sample import Picture as Encoded
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.embedded.images import (
    BARS,
    COLOURS,
    NUMBERS,
    REGIONS,
    SHAPES,
    Picture,
    Split,
    draw,
    rng_for,
)
from streamcvit.errors import UserError

Wordings = Literal["single", "five"]
Conventions = Literal["shared", "own"]

TASKS: dict[str, TaskSpec] = {
    "shape": TaskSpec("shape", scorer="format_exact", follow="pattern", strcvit="ai2d", max_new_tokens=4),
    "scene": TaskSpec("scene", scorer="format_exact", follow="pattern", strcvit="imagenet", max_new_tokens=10),
    "presence": TaskSpec("presence", scorer="format_exact", follow="pattern", strcvit="vqav2", max_new_tokens=4),
    "count": TaskSpec("count", scorer="format_exact", follow="pattern", strcvit="vqav2", max_new_tokens=6),
    "colour": TaskSpec("colour", scorer="format_exact", follow="pattern", strcvit="vqav2", max_new_tokens=6),
    "ocr": TaskSpec("ocr", scorer="format_exact", follow="pattern", strcvit="ocrvqa", max_new_tokens=10),
    "caption": TaskSpec("caption", scorer="slots", follow="pattern", max_new_tokens=14),
    "grounding": TaskSpec("grounding", scorer="grounding", follow="pattern", strcvit="grounding", max_new_tokens=14),
    "chart": TaskSpec("chart", scorer="format_exact", follow="pattern", strcvit="chartqa", max_new_tokens=6),
    "land": TaskSpec("land", scorer="format_exact", follow="pattern", strcvit="vqav2", max_new_tokens=6),
    "digit": TaskSpec("digit", scorer="format_exact", follow="pattern", strcvit="vqav2", max_new_tokens=6),
}
"""Task -> how it is judged; the order is the order of columns everywhere.

Captions are judged by slots and have no published scorer beside them, since CIDEr runs on another scale.
"""

SHARED_TASKS = ("count", "colour", "land", "digit")
"""The tasks that share instruction and answer format."""

_SINGLE_WORD = (
    "Answer the question using a single word or phrase.",
    "Use one word or phrase to answer the question.",
    "Respond with a single word or a brief phrase.",
    "Your answer must be one word or one phrase.",
    "Give a one word or one phrase response.",
)

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "shape": (
        "Answer with the letter of the correct choice.",
        "Select the correct choice and give its letter.",
        "Respond with the correct letter only.",
        "Which letter is correct? Give only the letter.",
        "Choose the correct letter from the given choices.",
    ),
    "scene": (
        "Name the category of the scene in a full sentence.",
        "Write a full sentence that names the scene category.",
        "Use a full sentence to name the category.",
        "Give the scene category as a full sentence.",
        "Respond in a full sentence with the category.",
    ),
    "presence": (
        "Answer yes or no.",
        "Respond with yes or no only.",
        "Say yes or no.",
        "Your answer must be yes or no.",
        "Use only yes or no to answer.",
    ),
    "ocr": (
        "Copy the digits inside angle brackets.",
        "Write the digits between angle brackets.",
        "Use angle brackets around the digits.",
        "Give the digits enclosed by angle brackets.",
        "Respond with the digits in angle brackets.",
    ),
    "caption": (
        "Provide a one sentence caption for the provided image.",
        "Write a caption of one sentence for the image.",
        "Give the image a caption in one sentence.",
        "Compose a one sentence caption.",
        "Caption the provided image in one sentence.",
    ),
    "grounding": (
        "Provide the bounding box coordinates of the region.",
        "Give the coordinates of its bounding box.",
        "Respond with bounding box coordinates.",
        "Write the bounding box of the region as coordinates.",
        "Which bounding box holds it? Give the coordinates.",
    ),
    "chart": (
        "State the numerical value together with its unit.",
        "Give a numerical value and the unit.",
        "Respond with the numerical value in units.",
        "Write the value in numerical form with a unit.",
        "Use a numerical value followed by the unit.",
    ),
    **dict.fromkeys(SHARED_TASKS, _SINGLE_WORD),
}
"""Task -> its instruction in five wordings; the first is the one used under `wordings="single"`."""

FORMATS: dict[str, str] = {
    "shape": r"[A-D]",
    "scene": r"This is a [a-z]+ scene\.",
    "presence": r"(yes|no)",
    "ocr": r"<\d\d\d>",
    "caption": r"A ([a-z]+) ([a-z]+) on a ([a-z]+) background\.",
    "grounding": r"\[\d,\d,\d,\d\]",
    "chart": r"\d units?",
    **dict.fromkeys(SHARED_TASKS, r"[A-Z][a-z]+\."),
}
"""Task -> the regular expression that a well-formed answer matches in full; in `Sample.meta["follow_pattern"]` too."""

CONVENTIONS: dict[str, tuple[str, str]] = {
    "count": ("{}.", r"[A-Z][a-z]+\."),
    "colour": ("<{}>", r"<[a-z]+>"),
    "land": ("[{}]", r"\[[a-z]+\]"),
    "digit": ("A {}.", r"A [a-z]+\."),
}
"""Shared task -> how it writes its answer under `conventions="own"`, and the regular expression of that.

The data sets that share StrCVIT's "single word or phrase" instruction each bring an answer style of their own, which
only their pictures tell apart.
"""

KIND: dict[str, str] = {
    "shape": "big",
    "scene": "big",
    "presence": "scene",
    "count": "scene",
    "colour": "big",
    "ocr": "text",
    "caption": "big",
    "grounding": "scene",
    "chart": "chart",
    "land": "land",
    "digit": "digit",
}
"""Task -> kind of its pictures."""


def train_samples(
    task: str, n: int, seed: int, *, wordings: Wordings = "single", conventions: Conventions = "shared"
) -> list[Sample]:
    """The first n training samples of a task.

    Args:
        task: a key of `TASKS`.
        n: how many; a longer list begins with the shorter one.
        seed: another seed, other pictures.
        wordings: one instruction wording a task, or five in turn by chance.
        conventions: the tasks that share an instruction share their answer format too, or each has its own
            (`CONVENTIONS`).

    Raises:
        UserError: there is no such task, wording or convention.
    """
    return list(samples(task, n, "train", seed, wordings, conventions))


def test_samples(
    task: str, n: int = 100, *, wordings: Wordings = "single", conventions: Conventions = "shared"
) -> list[Sample]:
    """The first n test samples of a task; always the same ones. Arguments and errors as of `train_samples`."""
    return list(samples(task, n, "test", 0, wordings, conventions))


# pytest collects whatever is named test_* in a module that imports it.
test_samples.__test__ = False  # type: ignore[attr-defined]


def check_how(wordings: str, conventions: str) -> None:
    """Raises a UserError where one of them is unknown."""
    if wordings not in ("single", "five"):
        raise UserError(f"wordings={wordings!r} is unknown", fix="Choose single or five")
    if conventions not in ("shared", "own"):
        raise UserError(f"conventions={conventions!r} is unknown", fix="Choose shared or own")


def samples(
    task: str, n: int, split: Split, seed: int, wordings: Wordings, conventions: Conventions
) -> Iterator[Sample]:
    """The first n samples of a task in a split, one by one; arguments and errors as of `train_samples`."""
    if task not in TASKS:
        raise UserError(f"no embedded task is called {task!r}", fix=f"Choose one of {', '.join(TASKS)}")
    check_how(wordings, conventions)
    style, pattern = CONVENTIONS.get(task, ("", "")) if conventions == "own" else ("", "")
    rng = rng_for(split, seed, list(TASKS).index(task))
    words = np.random.default_rng([seed, 7])
    for number in range(n):
        picture = draw(KIND[task], split, rng)
        question, answer, meta = ASK[task](picture, rng)
        if style:
            word = answer.removesuffix(".")
            answer = style.format(word if style.startswith("{") else word.lower())
        # Own generator: the same seed gives the same pictures and questions under both settings.
        wording = int(words.integers(len(INSTRUCTIONS[task]))) if wordings == "five" else 0
        yield Sample(
            sample_id=f"{task}-{split}-{seed}-{number:05d}",
            task=task,
            question=question,
            instruction=INSTRUCTIONS[task][wording],
            answers=(answer,),
            pictures=(Encoded(picture.png()),),
            meta={"follow_pattern": pattern or FORMATS[task], **meta},
        )


# Roles are dealt out to tasks by the seed. Every role comes in two or three chunks, most with gaps; no chunk holds more
# than three. Their last chunks are spread over the stream, so that some tasks have long been left behind at its end.
_ROLE_CHUNKS: tuple[tuple[int, ...], ...] = (
    (0, 1),
    (1, 2),
    (0, 2, 3),
    (3, 4),
    (0, 4),
    (1, 5),
    (5, 6),
    (2, 6, 7),
    (7, 3),
    (8,),
    (4, 8, 9),
    (9, 5),
    (6, 10),
    (10, 7),
    (8, 9),
)


def chunk_plan(chunks: int = 15, samples_per_chunk: int = 480, seed: int = 0) -> np.ndarray:
    """How many samples each task gives to each chunk.

    Each chunk mixes one to three tasks with seeded Dirichlet shares (no less than a sixth each); every task recurs,
    most after a gap, and none is always there. The seed decides which task plays which part.

    Args:
        chunks: 1 to 15 (the first so many of the 15).
        samples_per_chunk: samples in each chunk, at least 6.
        seed: of the assignment and the shares.

    Returns:
        int64 [chunks, tasks] in the order of `TASKS`; rows sum to `samples_per_chunk`.

    Raises:
        UserError: a count is out of range.
    """
    if not 1 <= chunks <= len(_ROLE_CHUNKS):
        raise UserError(f"the embedded stream has 1 to {len(_ROLE_CHUNKS)} chunks, not {chunks}")
    if samples_per_chunk < 6:
        raise UserError(f"{samples_per_chunk} samples a chunk are too few", fix="Ask for 6 or more")
    rng = np.random.default_rng([seed, 11])
    task_of_role = rng.permutation(len(TASKS))
    plan = np.zeros((chunks, len(TASKS)), np.int64)
    for chunk, roles in enumerate(_ROLE_CHUNKS[:chunks]):
        plan[chunk, task_of_role[list(roles)]] = shared_out(samples_per_chunk, len(roles), rng)
    return plan


def shared_out(samples: int, tasks: int, rng: np.random.Generator) -> np.ndarray:
    """How many of a chunk's samples each of its tasks gets, int64 [tasks]: Dirichlet shares, no less than a sixth."""
    floor = samples // 6
    counts = floor + np.floor(rng.dirichlet([4.0] * tasks) * (samples - floor * tasks)).astype(np.int64)
    counts[0] += samples - counts.sum()
    return counts


def stream(
    plan: np.ndarray, seed: int = 0, *, wordings: Wordings = "single", conventions: Conventions = "shared"
) -> Iterator[tuple[int, Sample]]:
    """The training stream of a plan, in order: each chunk's samples shuffled by the seed, no sample twice.

    Args:
        plan: int [chunks, tasks] as `chunk_plan` gives it (columns in the order of `TASKS`).
        seed: of the pictures and of the order inside chunks.
        wordings, conventions: as in `train_samples`.

    Returns:
        (chunk number, sample) of every position.
    """
    totals = zip(TASKS, plan.sum(axis=0), strict=True)
    return mixed(plan, [samples(task, int(n), "train", seed, wordings, conventions) for task, n in totals], seed)


def mixed(plan: np.ndarray, pools: Sequence[Iterator[Sample]], seed: int) -> Iterator[tuple[int, Sample]]:
    """Samples of each task's pool (columns of the plan) in the order of the chunks, each chunk's shuffled."""
    for chunk, counts in enumerate(plan):
        order = np.repeat(np.arange(len(pools)), counts)
        for task in np.random.default_rng([seed, 13, chunk]).permutation(order):
            yield chunk, next(pools[int(task)])


def _pick(rng: np.random.Generator, options: list[str] | tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


_Asked = tuple[str, str, dict[str, Any]]


def _ask_shape(picture: Picture, rng: np.random.Generator) -> _Asked:
    # Always in this order: a model this small does not learn to look labels up in a shuffled list.
    choices = list(SHAPES)
    question = _pick(rng, ("Which shape is shown?", "What is the main shape?"))
    listed = " ".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    return f"{question}\n{listed}", "ABCD"[choices.index(picture.facts["shape"])], {"choices": choices}


def _ask_scene(picture: Picture, rng: np.random.Generator) -> _Asked:
    question = _pick(rng, ("What kind of scene is this?", "Which scene is in the image?"))
    return question, f"This is a {picture.facts['background']} scene.", {}


def _ask_presence(picture: Picture, rng: np.random.Generator) -> _Asked:
    present = [colour for colour, *_ in picture.facts["objects"]]
    wanted = bool(rng.integers(2))
    colour = _pick(rng, [colour for colour in COLOURS if (colour in present) == wanted])
    question = _pick(rng, (f"Is there a {colour} object?", f"Can you see anything {colour}?"))
    return question, "yes" if wanted else "no", {}


def _ask_count(picture: Picture, rng: np.random.Generator) -> _Asked:
    question = _pick(rng, ("How many objects are there?", "How many things can you see?"))
    return question, NUMBERS[len(picture.facts["objects"])].capitalize() + ".", {}


def _ask_colour(picture: Picture, rng: np.random.Generator) -> _Asked:
    shape = picture.facts["shape"]
    question = _pick(rng, (f"What color is the {shape}?", f"Which color does the {shape} have?"))
    return question, picture.facts["colour"].capitalize() + ".", {}


def _ask_land(picture: Picture, rng: np.random.Generator) -> _Asked:
    region = int(rng.integers(len(REGIONS)))
    question = _pick(rng, (f"What covers the {REGIONS[region]} area?", f"Which land use is in the {REGIONS[region]}?"))
    return question, picture.facts["lands"][region].capitalize() + ".", {}


def _ask_digit(picture: Picture, rng: np.random.Generator) -> _Asked:
    question = _pick(rng, ("Which digit did someone write?", "What is the handwritten digit?"))
    return question, NUMBERS[picture.facts["digit"]].capitalize() + ".", {}


def _ask_ocr(picture: Picture, rng: np.random.Generator) -> _Asked:
    question = _pick(rng, ("What number is written in the image?", "Which number can you read?"))
    return question, f"<{picture.facts['text']}>", {}


def _ask_caption(picture: Picture, rng: np.random.Generator) -> _Asked:
    slots = [picture.facts["colour"], picture.facts["shape"], picture.facts["background"]]
    return "", f"A {slots[0]} {slots[1]} on a {slots[2]} background.", {"slots": slots}


def _ask_grounding(picture: Picture, rng: np.random.Generator) -> _Asked:
    objects = picture.facts["objects"]
    colour, shape, row, column = objects[int(rng.integers(len(objects)))]
    question = _pick(rng, (f"Where is the {colour} {shape}?", f"Locate the {colour} {shape}."))
    box = [column, row, column + 1, row + 1]
    # In cells of the 4 x 4 grid; the sides of the image are 4 long.
    return (
        question,
        "[" + ",".join(str(edge) for edge in box) + "]",
        {"answer_bbox": box, "size": [4, 4], "box_unit": "pixels"},
    )


def _ask_chart(picture: Picture, rng: np.random.Generator) -> _Asked:
    bar = int(rng.integers(len(BARS)))
    question = _pick(rng, (f"How tall is the {BARS[bar]} bar?", f"What value does the {BARS[bar]} bar have?"))
    height = picture.facts["heights"][bar]
    return question, f"{height} unit{'s' if height > 1 else ''}", {}


ASK: dict[str, Callable[[Picture, np.random.Generator], _Asked]] = {
    "shape": _ask_shape,
    "scene": _ask_scene,
    "presence": _ask_presence,
    "count": _ask_count,
    "colour": _ask_colour,
    "ocr": _ask_ocr,
    "caption": _ask_caption,
    "grounding": _ask_grounding,
    "chart": _ask_chart,
    "land": _ask_land,
    "digit": _ask_digit,
}
