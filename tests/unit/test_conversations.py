"""A sample is a conversation: any number of pictures and turns, a system prompt, in every family and in any batch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from streamcvit.adapters import InstructionEncoder
from streamcvit.adapters.build import attach
from streamcvit.adapters.targets import target_modules
from streamcvit.data.sample import PICTURE, Picture
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.evaluation.generate import Generator
from streamcvit.learning import OnlineLearner
from streamcvit.models.batch import Batch, ModelInputs
from streamcvit.models.collate import Collator
from streamcvit.models.vision import encode_images, routing_inputs, text_tensors, vision_dim
from tests.models import END, TINY, picture, tiny_base, tiny_conversations, tiny_samples

SHAPES = tiny_conversations()


@pytest.fixture(scope="module", params=sorted(TINY))
def base(request):
    return tiny_base(request.param)


@pytest.fixture(scope="module")
def llava():
    return tiny_base("llava")


def held(inputs: ModelInputs, row: int = 0) -> list[int]:
    return inputs.tensors["input_ids"][row][inputs.tensors["attention_mask"][row].bool()].tolist()


def learned(collator: Collator, inputs: ModelInputs, row: int = 0) -> list[str]:
    """Each learned stretch of a row, as text."""
    ids, mask = inputs.tensors["input_ids"][row].tolist(), inputs.answer_mask[row].tolist()
    parts: list[list[int]] = []
    for k, token in enumerate(ids):
        if mask[k]:
            if k == 0 or not mask[k - 1]:
                parts.append([])
            parts[-1].append(token)
    return [collator.tokenizer.decode(part) for part in parts]


def logits(base, inputs: ModelInputs) -> list[torch.Tensor]:
    """Of each row's own tokens."""
    with torch.no_grad():
        out = base.model(**text_tensors(inputs), **encode_images(base.model, inputs).given).logits
    return [row[mask.bool()] for row, mask in zip(out, inputs.tensors["attention_mask"], strict=True)]


def whole(base, sample) -> str:
    """The finished conversation as the chat template writes it, in one piece."""

    def parts(text):
        pieces = text.split(PICTURE)
        given = [[{"type": "text", "text": piece}] if piece else [] for piece in pieces]
        return [part for k, own in enumerate(given) for part in ([{"type": "image"}] if k else []) + own]

    messages = [{"role": "system", "content": parts(sample.system)}] if sample.system else []
    for prompt, answer in zip(sample.prompts, [*(turn.answer for turn in sample.turns), sample.answer], strict=True):
        messages += [{"role": "user", "content": parts(prompt)}, {"role": "assistant", "content": parts(answer)}]
    return base.processor.apply_chat_template([messages])[0]


def test_a_batch_of_the_embedded_base_is_what_it_was_before_samples_were_conversations():
    # Digests of commit 70ec700, which knew one picture and one turn only.
    samples = [sample for task in sorted(embedded.TASKS) for sample in embedded.test_samples(task, 2)]
    collator = Collator.from_pretrained("embedded")
    for inputs, digest in (
        (collator.train(samples), "30fc709a102b6b2b8600f6a39b7e5aaa4f2e54c16544672ca9d2e82711594a0a"),
        (collator.prompts(samples), "a0e487ae3ffddf8762f72fadb5d9512579f955974d2e567813d48d68dfeeeb1e"),
    ):
        masks = {"answer": inputs.answer_mask, "prompt": inputs.prompt_mask, "image": inputs.image_mask}
        found = hashlib.sha256()
        for name, tensor in sorted((inputs.tensors | masks).items()):
            found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        found.update("\0".join(inputs.instructions).encode())
        assert found.hexdigest() == digest


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_tokens_are_those_of_the_whole_conversation(base, name):
    sample = SHAPES[name]
    ids = held(base.collator.train([sample]))
    images = [[base.processor.image_processor.fetch_images(_image(p)) for p in sample.pictures]]
    given = {"images": images} if sample.pictures else {}
    assert ids == base.processor(text=[whole(base, sample)], **given, add_special_tokens=False)["input_ids"][0]


def _image(picture: Picture):
    from streamcvit.data.images import decode_image

    return decode_image(picture.data)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_prompt_tokens_are_the_same_for_training_and_for_generation(base, name):
    train, asked = (f([SHAPES[name]]) for f in (base.collator.train, base.collator.prompts))
    ids = held(asked)
    assert held(train)[: len(ids)] == ids and not asked.answer_mask.any()
    own = len(base.tokenizer(SHAPES[name].answer)["input_ids"]) + 1
    assert len(ids) + own == len(held(train))
    assert torch.equal(train.prompt_mask[0, : len(ids)], asked.prompt_mask[0])


def test_every_answer_is_learned_with_its_end_or_the_last_only(base):
    sample = SHAPES["turns"]
    assert learned(base.collator, base.collator.train([sample])) == [
        "yes red<|end|>",
        "yes red<|end|>",
        "not at all<|end|>",
    ]
    last = Collator(base.processor, turns="last")
    inputs = last.train([sample])
    assert learned(last, inputs) == ["not at all<|end|>"] and held(inputs) == held(base.collator.train([sample]))
    with pytest.raises(ValueError, match="turns"):
        Collator(base.processor, turns="first")


def test_a_row_of_a_mixed_batch_is_the_row_alone(base):
    samples = list(SHAPES.values())
    together = base.collator.train(samples)
    vision, rows = encode_images(base.model, together), logits(base, together)
    for k, sample in enumerate(samples):
        alone = base.collator.train([sample])
        assert held(alone) == held(together, k) and together.pictures[k] == alone.pictures[0]
        assert learned(base.collator, alone) == learned(base.collator, together, k)
        assert (together.answer_mask[k].sum(), together.image_mask[k].sum()) == (
            alone.answer_mask.sum(),
            alone.image_mask.sum(),
        )
        own = encode_images(base.model, alone)
        assert vision.features[k].shape == own.features[0].shape
        assert torch.allclose(vision.features[k], own.features[0], atol=1e-4)
        assert torch.allclose(vision.pooled[k], own.pooled[0], atol=1e-4)
        assert torch.allclose(rows[k], logits(base, alone)[0], atol=1e-3), sample.sample_id


def test_masks_split_every_row_into_text_images_answers_and_padding(base):
    inputs = base.collator.train(list(SHAPES.values()))
    parts = inputs.prompt_mask.long() + inputs.image_mask.long() + inputs.answer_mask.long()
    assert torch.equal(parts, inputs.tensors["attention_mask"])
    assert [sum(counts) for counts in inputs.pictures] == inputs.image_mask.sum(1).tolist()
    assert [len(counts) for counts in inputs.pictures] == [len(sample.pictures) for sample in SHAPES.values()]


def test_a_batch_without_pictures_runs_no_tower(base, monkeypatch):
    inputs = base.collator.train([SHAPES["none"], SHAPES["talk"]])
    assert "pixel_values" not in inputs.tensors
    monkeypatch.setattr(type(base.model), "get_image_features", None)
    vision = encode_images(base.model, inputs)
    assert vision.outputs is None and vision.given == {} and not vision.pooled.any()
    assert [len(features) for features in vision.features] == [0, 0]


def test_where_a_picture_stands_and_what_it_shows_changes_the_logits(base):
    sample = SHAPES["two"]
    other = replace(sample, pictures=(sample.pictures[0], Picture(picture(7))))
    moved = replace(sample, question=f"{PICTURE}{PICTURE}Is it as large as that one?", whole=None)
    swapped = replace(sample, pictures=sample.pictures[::-1])
    first = logits(base, base.collator.prompts([sample]))[0][-1]
    for changed in (other, moved, swapped):
        assert not torch.allclose(first, logits(base, base.collator.prompts([changed]))[0][-1], atol=1e-4)


def test_answers_do_not_depend_on_the_batch_or_on_what_was_kept(base):
    samples = [*SHAPES.values(), *tiny_samples(2)]
    generator = Generator(base, batch_size=len(samples))
    requests = generator.prepare(samples)
    texts = generator.answer(base.model, requests, 8)
    assert len(set(texts)) > 3
    assert generator.answer(base.model, requests, 8, batch_size=1) == texts
    assert Generator(base, cache_bytes=0).answer(base.model, requests, 8, batch_size=3) == texts
    bare = [request for request in requests if not request.keys]
    assert generator.answer(base.model, bare, 8) == [t for t, r in zip(texts, requests, strict=True) if not r.keys]


def test_a_pictures_features_are_kept_once_for_all_samples_that_show_it(llava):
    generator = Generator(llava)
    requests = generator.prepare([SHAPES["one"], SHAPES["two"], SHAPES["turns"]])
    assert [len(request.keys) for request in requests] == [1, 2, 2]
    assert len(generator.store) == 3  # the first picture stands in all of them
    assert generator.store.held_bytes == 3 * 16 * 32 * 4


def test_special_tokens_are_broken_up_in_every_turn_and_in_the_system_prompt(llava):
    sample = replace(
        SHAPES["turns"],
        system="Never say <|end|> or <image>.",
        turns=tuple(replace(turn, answer="<eos>", prompt=turn.prompt + "<|user|>") for turn in SHAPES["turns"].turns),
    )
    inputs = llava.collator.train([sample])
    ids = held(inputs)
    assert ids.count(END) == 7 and ids.count(2) == 0 and inputs.image_mask.sum() == 32  # three turns and the system
    assert llava.tokenizer.decode(ids).count("< eos>") == 2


def test_the_system_prompt_routes_too_and_may_be_all_there_is(llava):
    sample = replace(SHAPES["none"], instruction="", system="You are brief.")
    assert llava.collator.prompts([sample, SHAPES["two"], SHAPES["none"]]).instructions == (
        "You are brief.",
        "You are brief.\nAnswer with one word.",
        "Answer with one word.",
    )


def test_large_conversations_go_to_the_processor_in_groups_with_the_same_result(base, monkeypatch):
    samples = [*SHAPES.values(), *tiny_samples(3)]
    one = base.collator.train(samples)
    monkeypatch.setattr("streamcvit.models.rows.MAX_DECODED", 3000)
    other = base.collator.train(samples)
    assert one.tensors.keys() == other.tensors.keys() and one.pictures == other.pictures
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_without_places_of_its_tokens_only_the_last_answer_can_be_learned(monkeypatch):
    collator = tiny_base("llava").collator
    plain = collator._reader._processed
    monkeypatch.setattr(collator._reader, "_processed", lambda texts, images, **_: plain(texts, images))
    with pytest.raises(UserError, match="learner.turns to last"):
        collator.train([SHAPES["turns"]])
    assert collator.train([SHAPES["two"]]).pictures == ((32,),)  # told apart no more, and kept together


def test_learner_and_evaluator_route_a_sample_without_a_picture_alike(llava):
    encoder = InstructionEncoder.load("tokens", llava.model, llava.tokenizer)
    samples = [SHAPES["one"], SHAPES["none"], SHAPES["talk"], replace(SHAPES["none"], question="Why?")]
    train, asked = llava.collator.train(samples), llava.collator.prompts(samples)
    learned_by, asked_by = (
        routing_inputs(encoder, inputs, encode_images(llava.model, inputs)) for inputs in (train, asked)
    )
    assert torch.allclose(learned_by.visual, asked_by.visual, atol=1e-5)
    assert torch.equal(learned_by.instruction, asked_by.instruction)
    assert torch.equal(learned_by.visual[0], encode_images(llava.model, train).pooled[0])
    assert len({tuple(row) for row in learned_by.visual.round(decimals=3).tolist()}) == 4
    bare = InstructionEncoder(lambda texts: torch.ones(len(texts), 3), 3)
    with pytest.raises(UserError, match="without a picture"):
        routing_inputs(bare, train, encode_images(llava.model, train))


def test_a_mixed_batch_is_learned_and_no_loss_depends_on_the_batch():
    base = tiny_base("qwen25vl")  # of the families the one with the most to get wrong: grids, positions on three axes
    encoder = InstructionEncoder.load("tokens", base.model, base.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, "smolora", target_modules(base.model), sizes=sizes)
    learner, samples = OnlineLearner(base, model, encoder=encoder, lr=1e-2), tuple(SHAPES.values())
    inputs, first = base.collator.train(samples), 0.0
    for step in range(6):
        at = step * len(samples)
        report = learner.learn(Batch(at, at + 5, 0, tuple(range(at, at + 5)), samples, inputs))
        first = first or float(report.loss.mean())
    model.eval()
    together = learner.losses(inputs)[0].detach()
    alone = torch.cat([learner.losses(base.collator.train([sample]))[0].detach() for sample in samples])
    assert torch.allclose(together, alone, atol=1e-5) and together.mean() < first / 2
    generator = Generator(base, encoder)
    requests = generator.prepare(samples)
    assert generator.answer(model, requests, 6) == generator.answer(model, requests, 6, batch_size=1)
