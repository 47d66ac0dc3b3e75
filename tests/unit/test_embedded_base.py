"""The committed base: stock classes load it, it is small, any text round-trips, it starts untrained for the stream."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from streamcvit.embedded import base as embedded_base
from streamcvit.embedded import model as embedded_model
from streamcvit.embedded import tasks as embedded
from streamcvit.embedded import tower as embedded_tower
from streamcvit.embedded.lessons import LESSONS
from streamcvit.embedded.phrases import Exchange

FOLDER = embedded_base.FOLDER


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER).eval()


def _inputs(processor, samples):
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]}],
            add_generation_prompt=True,
        )
        for sample in samples
    ]
    images = [[Image.open(io.BytesIO(sample.pictures[0].data))] for sample in samples]
    return processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="left")


def _answers(model, processor, samples):
    inputs = _inputs(processor, samples)
    tokens = model.generate(**inputs, max_new_tokens=14)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def test_folder_is_small_and_stock(model):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 5_000_000
    assert type(model) is LlavaForConditionalGeneration
    assert model.dtype == torch.float32


def test_processor_gives_pixels_for_an_image_of_any_size(processor):
    image = Image.new("RGB", (301, 77), (10, 200, 30))
    inputs = processor(images=image, text="<image>What is it?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == embedded_model.PATCHES


def test_chat_template_is_what_the_base_was_trained_on(processor):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?\nSay it."}]}]
    asked = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert asked == "<bos><image>What?\nSay it.<answer>"
    answered = processor.apply_chat_template([*messages, {"role": "assistant", "content": "Two."}])
    assert answered == asked + "Two.<eos>"


@pytest.mark.parametrize(
    "text",
    ["Two.", "  two  spaces\tand\ttabs\n\n", "snowman ☃ and 日本語 and عربى", "🙂👩‍👩‍👧", "\x00\x7f�", "e\u0301 é"],
)
def test_any_text_round_trips(processor, text):
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(ids) == text


def test_answers_are_a_few_tokens(processor):
    for task, spec in embedded.TASKS.items():
        lengths = [len(processor.tokenizer(sample.answer)["input_ids"]) for sample in embedded.test_samples(task, 20)]
        assert max(lengths) + 1 <= spec.max_new_tokens


def test_zero_shot_scores_next_to_nothing(model, processor):
    right = [
        np.mean(
            [
                answer == sample.answer
                for answer, sample in zip(_answers(model, processor, samples), samples, strict=True)
            ]
        )
        for samples in (embedded.test_samples(task, 24) for task in embedded.TASKS)
    ]
    assert 100 * np.mean(right) < 10


def test_packed_lessons_give_the_logits_of_the_stock_forward(model, processor):
    samples = embedded.test_samples("count", 2)
    lessons = [[Exchange("x", "Count the objects.\nShort.", "three"), Exchange("y", "Read it.", "printed 12")]] * 2
    pixels = _inputs(processor, samples)["pixel_values"]
    with torch.no_grad():
        features = embedded_tower.tower_features(model, pixels)
        packed = embedded_base.PackedLessons(processor.tokenizer, lessons)
        ours = embedded_base.answer_logits(model, features, packed)
        row = packed.lesson_of[packed.asked]
        for number, lesson in enumerate(lessons[0]):
            text = f"{embedded_model.IMAGE_PREFIX}{lesson.prompt}<answer>{lesson.answer}<eos>"
            ids = processor.tokenizer([text] * 2, return_tensors="pt", add_special_tokens=False)["input_ids"]
            stock = model(input_ids=ids, pixel_values=pixels).logits
            answer = len(processor.tokenizer(f"{lesson.answer}<eos>")["input_ids"])
            expected = stock[:, -answer - 1 : -1].flatten(0, 1)
            torch.testing.assert_close(ours[row == number], expected, rtol=1e-4, atol=1e-4)


def test_training_program_repeats_itself_and_saves_a_loadable_folder(tmp_path):
    phases = [embedded_base.Phase(2, 4, lessons) for lessons in LESSONS]
    for name in ("one", "two"):
        embedded_base.train(tmp_path / name, pictures=64, held_out=64, tower_steps=2, phases=phases, seed=1)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    AutoProcessor.from_pretrained(tmp_path / "one")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "one")
