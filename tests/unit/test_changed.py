"""The hard embedded stream: tasks that leave and come back changed, and are never contradictory for who sees all."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamcvit.embedded import changed
from streamcvit.embedded import tasks as embedded
from streamcvit.embedded.changed import CHANGES, ENDING, VARIANTS, chunk_plan, instructions_of, pattern_of, stream
from streamcvit.embedded.images import KINDS, draw, rng_for, split_of
from streamcvit.embedded.tasks import SHARED_TASKS, TASKS
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, SCORERS
from streamcvit.pipeline import load_config
from streamcvit.run.stream import plan_of, prepare_stream
from streamcvit.run.told import known_tasks

HOW = {"wordings": "five", "conventions": "own"}
PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "embedded-hard.yaml"


@pytest.fixture(scope="module")
def tests() -> dict:
    return {variant: changed.test_samples(variant, 40, **HOW) for variant in VARIANTS}


def pixels(sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.pictures[0].data)))


def framed(sample) -> bool:
    shown = pixels(sample)
    return all((edge == 255).all() for edge in (shown[0], shown[-1], shown[:, 0], shown[:, -1]))


def test_there_are_more_variants_than_either_bank_of_the_pipeline_has_experts() -> None:
    options = load_config(PIPELINE).methods["smolora"].options
    assert len(VARIANTS) >= 20
    assert len(VARIANTS) > max(options["num_experts_visual"], options["num_experts_instruction"])


def test_instruction_and_frame_and_kind_of_picture_decide_the_format_of_an_answer(tests) -> None:
    """An oracle that sees instruction and picture is never told two things: what it sees decides the variant, or
    variants that write alike."""
    told: dict[tuple, set[str]] = {}
    for variant in VARIANTS:
        kind = embedded.KIND[variant.removesuffix(ENDING)]
        look = variant.endswith(ENDING) and CHANGES[variant.removesuffix(ENDING)].look == "framed"
        for sample in tests[variant]:
            assert framed(sample) == look
        for instruction in instructions_of(variant):
            told.setdefault((instruction, kind, look), set()).add(pattern_of(variant))
    assert set(map(len, told.values())) == {1}


def test_neither_instruction_nor_look_alone_says_which_style_the_shared_tasks_want() -> None:
    instructions = {instructions_of(f"{task}{ending}") for task in SHARED_TASKS for ending in ("", ENDING)}
    assert len(instructions) == 1
    patterns = {pattern_of(f"{task}{ending}") for task in SHARED_TASKS for ending in ("", ENDING)}
    assert len(patterns) == 8


def test_every_variant_has_wordings_of_its_own_or_shares_them_with_the_shared_tasks() -> None:
    own = [instructions_of(v) for v in VARIANTS if v.removesuffix(ENDING) not in SHARED_TASKS]
    shared = instructions_of(SHARED_TASKS[0])
    assert len({text for texts in [*own, shared] for text in texts}) == 5 * (len(own) + 1)


def test_answers_are_well_formed_full_marks_and_worth_nothing_under_the_other_rules(tests) -> None:
    for variant, spec in VARIANTS.items():
        samples = tests[variant]
        said = [sample.answer for sample in samples]
        assert all(re.fullmatch(pattern_of(variant), answer) for answer in said), variant
        assert {sample.meta["follow_pattern"] for sample in samples} == {pattern_of(variant)}
        assert FOLLOW_RULES[spec.follow](said, samples).all()
        assert (SCORERS[spec.scorer](said, samples) == 100).all()
        assert {sample.task for sample in samples} == {variant}
        json.dumps([dict(sample.meta) for sample in samples])
    for task in TASKS:
        assert not any(re.fullmatch(pattern_of(task), sample.answer) for sample in tests[f"{task}{ENDING}"]), task
        assert not any(re.fullmatch(pattern_of(f"{task}{ENDING}"), sample.answer) for sample in tests[task]), task


def test_right_answers_under_the_rules_that_were_score_nothing_under_those_that_are(tests) -> None:
    before = {"grounding": "[{},{},{},{}]", "caption": "A {} {} on a {} background.", "ocr": "<{}{}{}>"}
    for task, form in before.items():
        samples = tests[f"{task}{ENDING}"]
        old = [form.format(*re.findall(r"[a-z]+|\d", sample.answer)) for sample in samples]
        assert all(re.fullmatch(pattern_of(task), answer) for answer in old)
        assert not SCORERS[VARIANTS[f"{task}{ENDING}"].scorer](old, samples).any()


def test_a_changed_task_says_the_same_facts(tests) -> None:
    for sample in tests[f"shape{ENDING}"]:
        assert f"{sample.answer[1]}. {sample.meta['choices']['ABCD'.index(sample.answer[1])]}" in sample.question
    for sample in tests[f"caption{ENDING}"]:
        assert sample.answer.split(" / ") == list(sample.meta["slots"])
    for sample in tests[f"grounding{ENDING}"]:
        assert [int(digit) for digit in re.findall(r"\d", sample.answer)] == list(sample.meta["answer_bbox"])
    for task in SHARED_TASKS:
        words = {re.sub(r"[^a-z]", "", sample.answer) for sample in tests[f"{task}{ENDING}"]}
        before = {re.sub(r"^A |[^a-z]", "", s.answer.lower().removeprefix("a ")) for s in tests[task]}
        assert words & before


def test_an_answer_fits_into_the_tokens_that_it_may_have(tests) -> None:
    from streamcvit.models.collate import Collator

    tokenizer = Collator.from_pretrained("embedded").processor.tokenizer
    for variant, spec in VARIANTS.items():
        for sample in tests[variant]:
            assert len(tokenizer(sample.answer, add_special_tokens=False)["input_ids"]) < spec.max_new_tokens, variant


def test_variants_share_no_picture_and_splits_stay_apart(tests) -> None:
    seen = [hashlib.sha256(pixels(s).tobytes()).hexdigest() for samples in tests.values() for s in samples]
    train = [pixels(s) for v in VARIANTS for s in changed.train_samples(v, 5, 3, **HOW)]
    assert len(set(seen)) == len(seen)
    assert {split_of(shown) for shown in train} == {"train"}
    assert {split_of(pixels(s)) for samples in tests.values() for s in samples} == {"test"}


def test_a_frame_lies_around_the_picture_and_nothing_else_changes() -> None:
    for kind in KINDS:
        picture = draw(kind, "train", rng_for("train", 1), "framed")
        assert (picture.pixels[0] == 255).all() and not (picture.pixels[1:-1, 1:-1] == 255).all()
        assert split_of(picture.pixels) == "train"


@pytest.mark.parametrize("seed", range(3))
def test_every_task_leaves_and_comes_back_changed(seed: int) -> None:
    plan = chunk_plan(seed=seed)
    assert plan.shape == (changed.CHUNKS, len(VARIANTS))
    assert set(plan.sum(axis=1)) == {changed.PER_CHUNK}
    there = plan > 0
    assert set(there.sum(axis=1)) <= {1, 2, 3}
    late = 0
    for place in range(len(TASKS)):
        before, after = (np.flatnonzero(there[:, place + k * len(TASKS)]) for k in (0, 1))
        early = before[before < after[0]]
        assert len(early) >= 2 and after[0] - early[-1] >= 2, "it is away for a chunk at least"
        assert len(after) == 2 and not set(before) & set(after)
        late += (before > after[-1]).any()
    assert late == 3, "some come once more as they were, too"
    assert (chunk_plan(seed=seed) == plan).all() and (chunk_plan(seed=seed + 7) != plan).any()


def test_the_stream_follows_its_plan_to_the_bit_by_seed() -> None:
    plan = chunk_plan(8, 12, seed=4)

    def made(seed: int) -> list:
        return [(chunk, s.task, s.text_bytes(), s.pictures[0].data) for chunk, s in stream(plan, seed, **HOW)]

    first = made(4)
    assert first == made(4) and first != made(5)
    counted = np.zeros_like(plan)
    for chunk, task, *_ in first:
        counted[chunk, list(VARIANTS).index(task)] += 1
    assert (counted == plan).all()


def test_the_pipeline_writes_this_stream_with_test_sets_of_every_variant(tmp_path: Path) -> None:
    config = load_config(PIPELINE, ["stream.scenario.chunks=7", "stream.scenario.samples_per_chunk=8"], seed=3)
    small = config.model_copy(update={"stream": config.stream.model_copy(update={"test_samples": 2})})
    index = prepare_stream(small, tmp_path / "stream")
    assert (plan_of(small).counts == chunk_plan(7, 8, seed=3)).all()
    assert known_tasks(small) == list(VARIANTS)  # what is told the task counts a LoRA for each
    assert list(index.tasks) == list(VARIANTS) and set(index.eval_index().task_of) == set(VARIANTS)
    assert load_config(PIPELINE).stream.returns == "changed"


def test_tasks_that_come_back_as_they_were_are_those_of_the_old_stream(tests) -> None:
    for task in TASKS:
        assert tests[task][:3] == embedded.test_samples(task, 3, **HOW)


def test_the_base_was_taught_no_format_and_no_instruction_of_a_changed_task() -> None:
    from streamcvit.embedded.lessons import LESSONS

    rng = rng_for("base", 23)
    pictures = [draw(kind, "base", rng) for kind in KINDS for _ in range(10)]
    lessons = [choose(picture, rng) for choose, picture in itertools.product(LESSONS.values(), pictures * 15)]
    texts = {text.lower() for change in CHANGES.values() for text in change.instructions}
    assert [lesson for lesson in lessons if changed.in_stream_format(lesson.answer)] == []
    assert not [lesson for lesson in lessons if any(text in lesson.prompt.lower() for text in texts)]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: changed.train_samples("juggling-2", 1, 0),
        lambda: changed.train_samples("shape-2", 1, 0, wordings="ten"),
        lambda: chunk_plan(21),
        lambda: chunk_plan(20, 2),
    ],
)
def test_what_there_is_not_is_told_to_the_user(mistake) -> None:
    with pytest.raises(UserError):
        mistake()
