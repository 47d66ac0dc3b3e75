"""Tasks that leave and come back changed: the embedded tasks, each a second time under other rules.

A task that comes back is a variant of its own (`shape-2`), with test samples of its own, scored by its own rules. Seven
come back under another instruction that demands another answer format. The four that share one instruction come back
under the same instruction, in another answer style, and only a white frame around their pictures tells: instruction
and picture together always say which answer is right, each alone does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from streamcvit.data.sample import Picture as Encoded
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.embedded import tasks as embedded
from streamcvit.embedded.images import Split, draw, rng_for
from streamcvit.embedded.tasks import ASK, CONVENTIONS, FORMATS, INSTRUCTIONS, KIND, SHARED_TASKS, TASKS
from streamcvit.errors import UserError

Returns = Literal["same", "changed"]
ENDING = "-2"
"""What the name of a variant that came back ends in."""
CHUNKS = 20
"""Of the stream; a shorter one is its beginning."""
PER_CHUNK = 600
"""Samples of a chunk, where nobody names a number."""


@dataclass(frozen=True)
class Change:
    """How a task comes back.

    Attributes:
        form: what the groups of the task's own format are put into.
        pattern: the regular expression that a well-formed answer matches in full.
        instructions: its five wordings; empty: those that it had.
        look: of its pictures, a key of `streamcvit.embedded.images.LOOKS`.
        tokens: at which an answer ends at the latest.
        scorer: in the place of the task's own, where that takes any form for the right one; empty: its own.
    """

    form: str
    pattern: str
    instructions: tuple[str, ...] = ()
    look: str = "plain"
    tokens: int = 14
    scorer: str = ""


_READ = FORMATS | {
    "shape": r"([A-D])",
    "scene": r"This is a ([a-z]+) scene\.",
    "ocr": r"<(\d)(\d)(\d)>",
    "grounding": r"\[(\d),(\d),(\d),(\d)\]",
    "chart": r"(\d) units?",
    **dict.fromkeys(SHARED_TASKS, r"([A-Z][a-z]+)\."),
}

CHANGES: dict[str, Change] = {
    "shape": Change(
        "({0})",
        r"\([A-D]\)",
        (
            "Answer with the letter of the correct choice in parentheses.",
            "Select the correct choice and give its letter in parentheses.",
            "Respond with the correct letter in parentheses only.",
            "Which letter is correct? Give only the letter in parentheses.",
            "Choose the correct letter and put it in parentheses.",
        ),
    ),
    "scene": Change(
        "Scene: {0}",
        r"Scene: [a-z]+",
        (
            "Name the category of the scene after a colon.",
            "Write a colon and then the scene category.",
            "Use a colon before the category.",
            "Give the scene category behind a colon.",
            "Respond with a colon and the category.",
        ),
    ),
    "presence": Change(
        "{0[0]}",
        r"[yn]",
        (
            "Answer y or n.",
            "Respond with y or n only.",
            "Say y or n.",
            "Your answer must be y or n.",
            "Use only y or n to answer.",
        ),
    ),
    "ocr": Change(
        "{0}-{1}-{2}",
        r"\d-\d-\d",
        (
            "Copy the digits with dashes between them.",
            "Write the digits and dashes between them.",
            "Use dashes between the digits.",
            "Give the digits parted by dashes.",
            "Respond with the digits and dashes.",
        ),
    ),
    "caption": Change(
        "{0} / {1} / {2}",
        r"([a-z]+) / ([a-z]+) / ([a-z]+)",
        (
            "Provide three words with slashes for the provided image.",
            "Write a caption of three words and slashes for the image.",
            "Give the image a caption in three words with slashes.",
            "Compose three words parted by slashes.",
            "Caption the provided image in three words with slashes.",
        ),
    ),
    "grounding": Change(
        "({0},{1})({2},{3})",
        r"\(\d,\d\)\(\d,\d\)",
        (
            "Provide the coordinates of the two corners of the region.",
            "Give the coordinates of its two corners.",
            "Respond with the coordinates of both corners.",
            "Write the two corners of the region as coordinates.",
            "Which two corners hold it? Give the coordinates.",
        ),
        scorer="format_exact",
    ),
    "chart": Change(
        "{0} of 4",
        r"\d of 4",
        (
            "State the numerical value out of the highest possible.",
            "Give a numerical value and the highest possible.",
            "Respond with the numerical value out of the highest.",
            "Write the value in numerical form, out of the highest.",
            "Use a numerical value followed by the highest possible.",
        ),
    ),
    "count": Change("({0})", r"\([a-z]+\)", look="framed"),
    "colour": Change("*{0}*", r"\*[a-z]+\*", look="framed"),
    "land": Change("~{0}", r"~[a-z]+", look="framed"),
    "digit": Change("_{0}_", r"_[a-z]+_", look="framed"),
}
"""Task -> how it comes back."""

VARIANTS: dict[str, TaskSpec] = TASKS | {
    f"{task}{ENDING}": TaskSpec(
        f"{task}{ENDING}",
        scorer=change.scorer or TASKS[task].scorer,
        follow="pattern",
        max_new_tokens=change.tokens,
    )
    for task, change in CHANGES.items()
}
"""All variants, those that came back last; the order is the order of columns everywhere."""


def tasks_of(returns: Returns) -> dict[str, TaskSpec]:
    """The tasks of a stream, in the order of its columns: with variants where they come back changed."""
    return VARIANTS if returns == "changed" else TASKS


def instructions_of(variant: str) -> tuple[str, ...]:
    """The wordings of a variant's instruction."""
    task = variant.removesuffix(ENDING)
    return (CHANGES[task].instructions if task != variant else ()) or INSTRUCTIONS[task]


def pattern_of(variant: str, conventions: embedded.Conventions = "own") -> str:
    """The regular expression that a well-formed answer to a variant matches in full."""
    task = variant.removesuffix(ENDING)
    if task != variant:
        return CHANGES[task].pattern
    return CONVENTIONS[task][1] if conventions == "own" and task in CONVENTIONS else FORMATS[task]


def train_samples(
    variant: str,
    n: int,
    seed: int,
    *,
    wordings: embedded.Wordings = "single",
    conventions: embedded.Conventions = "shared",
) -> list[Sample]:
    """The first n training samples of a variant, as `streamcvit.embedded.tasks.train_samples` has them of a task.

    Raises:
        UserError: there is no such variant, wording or convention.
    """
    return list(_samples(variant, n, "train", seed, wordings, conventions))


def test_samples(
    variant: str, n: int = 100, *, wordings: embedded.Wordings = "single", conventions: embedded.Conventions = "shared"
) -> list[Sample]:
    """The first n test samples of a variant; always the same ones. Arguments and errors as of `train_samples`."""
    return list(_samples(variant, n, "test", 0, wordings, conventions))


# pytest collects whatever is named test_* in a module that imports it.
test_samples.__test__ = False  # type: ignore[attr-defined]


def _samples(
    variant: str, n: int, split: Split, seed: int, wordings: embedded.Wordings, conventions: embedded.Conventions
) -> Iterator[Sample]:
    if variant in TASKS:
        yield from embedded.samples(variant, n, split, seed, wordings, conventions)
        return
    if variant not in VARIANTS:
        raise UserError(f"no embedded variant is called {variant!r}", fix=f"Choose one of {', '.join(VARIANTS)}")
    embedded.check_how(wordings, conventions)
    task = variant.removesuffix(ENDING)
    change, texts = CHANGES[task], instructions_of(variant)
    rng = rng_for(split, seed, list(VARIANTS).index(variant))  # other pictures than the task had
    words = np.random.default_rng([seed, 7])
    for number in range(n):
        picture = draw(KIND[task], split, rng, change.look)
        question, answer, meta = ASK[task](picture, rng)
        found = re.fullmatch(_READ[task], answer)
        assert found is not None  # `ASK` keeps to `FORMATS`
        parts = [part.lower() for part in found.groups()] if change.look != "plain" else list(found.groups())
        wording = int(words.integers(len(texts))) if wordings == "five" else 0
        yield Sample(
            sample_id=f"{variant}-{split}-{seed}-{number:05d}",
            task=variant,
            question=question,
            instruction=texts[wording],
            answers=(change.form.format(*parts),),
            pictures=(Encoded(picture.png()),),
            meta={**meta, "follow_pattern": change.pattern},
        )


# A role a task: chunks of the task as it was, and as it comes back. At least one chunk lies between; a few come once
# more as they were after that. Up to three variants meet in a chunk, and most are left behind long before the end.
_ROLES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((0, 1, 17), (6, 9)),
    ((0, 2), (7, 8)),
    ((0, 4), (9, 13)),
    ((1, 3, 18), (8, 12)),
    ((1, 5), (10, 11)),
    ((2, 3), (12, 14)),
    ((2, 6), (11, 15)),
    ((4, 7), (13, 16)),
    ((3, 5, 19), (14, 17)),
    ((4, 8), (15, 18)),
    ((5, 6, 10), (16, 19)),
)


def chunk_plan(chunks: int = CHUNKS, samples_per_chunk: int = PER_CHUNK, seed: int = 0) -> np.ndarray:
    """How many samples each variant gives to each chunk.

    As `streamcvit.embedded.tasks.chunk_plan`, of `VARIANTS`: every task is there, leaves, and comes back changed. The
    seed decides which task plays which part, and the shares in a chunk.

    Args:
        chunks: 1 to 20 (the first so many of the 20).
        samples_per_chunk: samples in each chunk, at least 6.
        seed: of the assignment and the shares.

    Returns:
        int64 [chunks, variants] in the order of `VARIANTS`; rows sum to `samples_per_chunk`.

    Raises:
        UserError: a count is out of range.
    """
    if not 1 <= chunks <= CHUNKS:
        raise UserError(f"the stream of tasks that come back changed has 1 to {CHUNKS} chunks, not {chunks}")
    if samples_per_chunk < 6:
        raise UserError(f"{samples_per_chunk} samples a chunk are too few", fix="Ask for 6 or more")
    rng = np.random.default_rng([seed, 17])
    task_of_role = rng.permutation(len(TASKS))
    plan = np.zeros((chunks, len(VARIANTS)), np.int64)
    for chunk in range(chunks):
        columns = [
            int(task) + len(TASKS) * back
            for role, task in zip(_ROLES, task_of_role, strict=True)
            for back, places in enumerate(role)
            if chunk in places
        ]
        plan[chunk, columns] = embedded.shared_out(samples_per_chunk, len(columns), rng)
    return plan


def stream(
    plan: np.ndarray,
    seed: int = 0,
    *,
    wordings: embedded.Wordings = "single",
    conventions: embedded.Conventions = "shared",
) -> Iterator[tuple[int, Sample]]:
    """The training stream of a plan, as `streamcvit.embedded.tasks.stream` has it of tasks.

    Args:
        plan: int [chunks, variants], columns in the order of `VARIANTS`.
        seed: of the pictures and of the order inside chunks.
        wordings, conventions: as in `train_samples`.

    Returns:
        (chunk number, sample) of every position.
    """
    totals = zip(VARIANTS, plan.sum(axis=0), strict=True)
    pools = [_samples(variant, int(n), "train", seed, wordings, conventions) for variant, n in totals]
    return embedded.mixed(plan, pools, seed)


def in_stream_format(answer: str) -> list[str]:
    """The variants whose demanded format, under either convention, this answer has."""
    return [
        variant
        for variant in VARIANTS
        if any(re.fullmatch(pattern_of(variant, how), answer.strip()) for how in ("shared", "own"))
    ]
