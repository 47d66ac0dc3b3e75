"""The embedded benchmark: honest splits, honest formats, repeatable bytes, plans that mix."""

import hashlib
import io
import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from streamcvit.embedded import changed
from streamcvit.embedded import tasks as embedded
from streamcvit.embedded.corpus import KIND_SHARES, lexicon
from streamcvit.embedded.images import KINDS, draw, rng_for, split_of
from streamcvit.embedded.lessons import LESSONS
from streamcvit.embedded.tasks import FORMATS, INSTRUCTIONS, SHARED_TASKS, TASKS, chunk_plan, stream, train_samples
from streamcvit.errors import UserError

TESTS = {task: embedded.test_samples(task) for task in TASKS}


def _pixels(sample):
    return np.asarray(Image.open(io.BytesIO(sample.pictures[0].data)))


def _sha(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def lessons():
    """A large sample of what the base is taught."""
    rng = rng_for("base", 17)
    pictures = [draw(kind, "base", rng) for kind in KIND_SHARES for _ in range(25)]
    return [choose(picture, rng) for choose in LESSONS.values() for picture in pictures for _ in range(60)]


def test_base_train_and_test_share_no_image():
    rng = rng_for("base", 5)
    base = {_sha(draw(kind, "base", rng).pixels) for kind in KINDS for _ in range(60)}
    train = {_sha(_pixels(sample)) for task in TASKS for sample in train_samples(task, 40, seed=3)}
    test = {_sha(_pixels(sample)) for samples in TESTS.values() for sample in samples}
    assert len(base) == 60 * len(KINDS)
    assert base.isdisjoint(train)
    assert base.isdisjoint(test)
    assert train.isdisjoint(test)


@pytest.mark.parametrize("split", ["base", "train", "test"])
def test_pixels_alone_decide_the_split(split):
    rng = np.random.default_rng(0)
    assert {split_of(draw(kind, split, rng).pixels) for kind in KINDS for _ in range(5)} == {split}


def test_handwriting_is_split_by_source():
    from streamcvit.embedded.images import _DIGITS_OF_SPLIT, _digits

    indices = [set(range(len(_digits()[0])))] + [set(range(*part.indices(1797))) for part in _DIGITS_OF_SPLIT.values()]
    assert set.union(*indices[1:]) == indices[0]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(indices[1:], 2))


def test_base_never_reads_a_stream_instruction(lessons):
    wordings = {wording.lower() for wordings in INSTRUCTIONS.values() for wording in wordings}
    for lesson in lessons:
        text = f"{lesson.prompt}\n{lesson.answer}".lower()
        assert not any(wording in text for wording in wordings), lesson


def test_base_never_says_an_answer_in_a_stream_format(lessons):
    assert [lesson for lesson in lessons if changed.in_stream_format(lesson.answer)] == []


def test_base_never_reads_a_stream_question(lessons):
    questions = {sample.question for samples in TESTS.values() for sample in samples if sample.question}
    assert questions.isdisjoint({line for lesson in lessons for line in (lesson.prompt, lesson.prompt.split("\n")[0])})


def test_base_knows_every_word_it_will_need():
    words = set(lexicon())
    answers = " ".join(sample.answer for samples in TESTS.values() for sample in samples)
    assert set(re.findall(r"[A-Za-z]{2,}", answers)) <= words


@pytest.mark.parametrize("task", TASKS)
def test_answers_have_the_demanded_format(task):
    for sample in TESTS[task]:
        assert sample.task == task
        assert sample.meta["follow_pattern"] == FORMATS[task]
        assert re.fullmatch(FORMATS[task], sample.answer)
        assert _pixels(sample).shape == (32, 32, 3)
        json.dumps(dict(sample.meta))


def test_at_least_a_hundred_test_items_a_task_with_ids_of_their_own():
    assert all(len(samples) >= 100 for samples in TESTS.values())
    ids = [sample.sample_id for samples in TESTS.values() for sample in samples]
    assert len(set(ids)) == len(ids)


def test_four_tasks_share_instruction_and_format_and_nobody_else_does():
    assert len(SHARED_TASKS) >= 4
    shared = {INSTRUCTIONS[task] for task in SHARED_TASKS}
    assert len(shared) == 1
    assert len({FORMATS[task] for task in SHARED_TASKS}) == 1
    others = [INSTRUCTIONS[task] for task in TASKS if task not in SHARED_TASKS]
    assert len({wording for wordings in [*others, *shared] for wording in wordings}) == 5 * (len(others) + 1)


def test_metadata_for_scorers_agrees_with_the_answer():
    for sample in TESTS["shape"]:
        assert len(sample.meta["choices"]) == 4
        assert f"{sample.answer}. {sample.meta['choices']['ABCD'.index(sample.answer)]}" in sample.question
    for sample in TESTS["caption"]:
        assert list(re.fullmatch(FORMATS["caption"], sample.answer).groups()) == list(sample.meta["slots"])
    for sample in TESTS["grounding"]:
        assert json.loads(sample.answer) == list(sample.meta["answer_bbox"])


def test_answers_of_a_task_are_balanced_enough_to_need_the_picture():
    for samples in TESTS.values():
        commonest = max(np.unique([sample.answer for sample in samples], return_counts=True)[1])
        assert commonest <= 65


def test_the_same_seed_gives_the_same_bytes_in_another_process():
    code = (
        "import hashlib; from streamcvit.embedded.tasks import TASKS, train_samples;"
        "parts = [s.text_bytes() + s.pictures[0].data for t in TASKS for s in train_samples(t, 3, 9)];"
        "print(hashlib.sha256(b''.join(parts)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = hashlib.sha256(
        b"".join(s.text_bytes() + s.pictures[0].data for t in TASKS for s in train_samples(t, 3, 9))
    ).hexdigest()
    assert there == here


def test_a_longer_list_begins_with_the_shorter_and_seeds_differ():
    assert train_samples("ocr", 6, 1)[:3] == train_samples("ocr", 3, 1)
    assert train_samples("ocr", 3, 1)[0].pictures[0].data != train_samples("ocr", 3, 2)[0].pictures[0].data


def test_five_wordings_change_the_instruction_only():
    single, five = train_samples("land", 30, 1), train_samples("land", 30, 1, wordings="five")
    assert {sample.instruction for sample in single} == {INSTRUCTIONS["land"][0]}
    assert {sample.instruction for sample in five} == set(INSTRUCTIONS["land"])
    assert [(s.pictures[0].data, s.question, s.answer) for s in single] == [
        (s.pictures[0].data, s.question, s.answer) for s in five
    ]


@pytest.mark.parametrize("seed", range(5))
def test_plan_mixes_tasks_that_leave_and_return(seed):
    plan = chunk_plan(seed=seed)
    assert plan.shape == (15, len(TASKS))
    assert set(plan.sum(axis=1)) == {480}
    present = plan > 0
    assert present.any(axis=0).all()
    assert set(present.sum(axis=1)) <= {1, 2, 3}
    assert not present.all(axis=0).any()
    returns = [bool(re.search("10+1", "".join(map(str, column.astype(int))))) for column in present.T]
    assert sum(returns) >= 4


def test_plans_repeat_and_differ_by_seed():
    assert (chunk_plan(seed=1) == chunk_plan(seed=1)).all()
    assert (chunk_plan(seed=1) != chunk_plan(seed=2)).any()


def test_stream_follows_its_plan_and_never_repeats_a_sample():
    plan = chunk_plan(3, 20, seed=4)
    chunks, samples = zip(*stream(plan, seed=4), strict=True)
    assert list(chunks) == sorted(chunks)
    counted = np.zeros_like(plan)
    for chunk, sample in zip(chunks, samples, strict=True):
        counted[chunk, list(TASKS).index(sample.task)] += 1
    assert (counted == plan).all()
    assert len({sample.sample_id for sample in samples}) == len(samples)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: train_samples("juggling", 1, 0),
        lambda: train_samples("ocr", 1, 0, wordings="ten"),
        lambda: chunk_plan(16),
        lambda: chunk_plan(15, 2),
    ],
)
def test_mistakes_are_told_to_the_user(mistake):
    with pytest.raises(UserError):
        mistake()


def test_tasks_under_one_instruction_can_each_have_an_answer_style_of_their_own():
    for task in TASKS:
        plain, own = (train_samples(task, 8, 3, conventions=name) for name in ("shared", "own"))
        assert [s.pictures[0].data for s in plain] == [s.pictures[0].data for s in own]
        assert [s.question for s in plain] == [s.question for s in own]
        assert [s.instruction for s in plain] == [s.instruction for s in own]
        if task not in SHARED_TASKS:
            assert [s.answers for s in plain] == [s.answers for s in own]
    patterns = {task: pattern for task, (_, pattern) in embedded.CONVENTIONS.items()}
    assert set(patterns) == set(SHARED_TASKS)
    for task in SHARED_TASKS:
        for sample in embedded.test_samples(task, 20, conventions="own"):
            assert [t for t, p in patterns.items() if re.fullmatch(p, sample.answer)] == [task]
            assert sample.meta["follow_pattern"] == patterns[task]
    with pytest.raises(UserError, match="conventions"):
        train_samples("count", 1, 0, conventions="none")
