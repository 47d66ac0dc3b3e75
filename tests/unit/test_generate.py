"""Greedy answers: those of `generate`, whatever the batch, the adapter and the model family."""

from __future__ import annotations

import errno
import os
import types
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from streamcvit.adapters import SMoLoraConfig
from streamcvit.adapters.targets import target_modules
from streamcvit.evaluation import generate as generate_module
from streamcvit.evaluation.decode import greedy
from streamcvit.evaluation.features import FeatureStore
from streamcvit.evaluation.generate import Generator
from streamcvit.models.vision import encode_images, text_tensors
from tests.models import TINY, tiny_base, tiny_samples

NEW = 10


@pytest.fixture(params=sorted(TINY))
def base(request):
    return tiny_base(request.param)


@pytest.fixture
def llava():
    return tiny_base("llava")


def lora(base):
    config = LoraConfig(r=4, target_modules=target_modules(base.model), init_lora_weights=False)
    return get_peft_model(base.model, config).eval()


def smolora(base, router: str):
    width = base.model.get_input_embeddings().embedding_dim
    config = SMoLoraConfig(
        r=4,
        target_modules=target_modules(base.model),
        router=router,
        instruction_dim=width,
        visual_dim=width,
        init_weights=False,
    )
    return get_peft_model(base.model, config).eval()


@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_gives_the_tokens_that_generate_gives(base, adapted):
    collator, model = base.collator, lora(base) if adapted else base.model
    for seed in range(3):
        inputs = collator.prompts(tiny_samples(7, seed))
        vision = encode_images(model, inputs)
        ours = greedy(model, text_tensors(inputs), vision.given, NEW, collator.stop_ids, collator.pad_token_id)
        whole = model.generate(
            **inputs.tensors,
            do_sample=False,
            num_beams=1,
            max_new_tokens=NEW,
            eos_token_id=list(collator.stop_ids),
            pad_token_id=collator.pad_token_id,
        )
        assert torch.equal(ours, whole[:, inputs.tensors["input_ids"].shape[1] :])
        assert len({tuple(row) for row in ours.tolist()}) > 1


def test_decoding_ends_when_every_row_has_ended(llava):
    inputs = llava.collator.prompts(tiny_samples(3))
    vision = encode_images(llava.model, inputs).given
    free = greedy(llava.model, text_tensors(inputs), vision, NEW, (), 0)
    stops = free[:, 2].tolist()
    ended = greedy(llava.model, text_tensors(inputs), vision, NEW, stops, 0)
    assert ended.shape[1] <= 3
    for row in ended.tolist():
        first = next(k for k, token in enumerate(row) if token in stops)
        assert set(row[first + 1 :]) <= {0}


@pytest.mark.parametrize("router", ["none", "lora", "frozen", "straight_through"])
def test_an_answer_does_not_depend_on_its_batch(base, router):
    model = {"none": lambda: base.model, "lora": lambda: lora(base)}.get(router, lambda: smolora(base, router))()
    samples = tiny_samples(6)
    together, alone = Generator(base, batch_size=6), Generator(base, batch_size=1)
    answers = together.answer(model, together.prepare(samples), 6)
    assert answers == alone.answer(model, alone.prepare(samples), 6)
    backwards = Generator(base, batch_size=4)
    assert answers[::-1] == backwards.answer(model, backwards.prepare(samples[::-1]), 6)


def test_a_routed_adapter_answers_by_each_samples_own_instruction(llava, monkeypatch):
    model = smolora(llava, "frozen")
    generator = Generator(llava)
    sample = replace(tiny_samples(1)[0], instruction="Answer with one word.")
    other = replace(sample, instruction="Describe it in a sentence.")
    requests = generator.prepare([sample, other])
    given: list[torch.Tensor] = []
    monkeypatch.setattr(model.base_model.routing, "_begin", lambda call: given.append(call.inputs.instruction))
    generator.answer(model, requests, 2)
    assert len(given) == 1
    expected = generator.encoder.encode([sample.instruction, other.instruction])
    assert {tuple(row.tolist()) for row in given[0]} == {tuple(row.tolist()) for row in expected}
    assert not torch.equal(expected[0], expected[1])


def test_each_image_is_encoded_once_and_repeats_share_it(llava, monkeypatch):
    encoded: list[int] = []

    def counting(model, inputs):
        encoded.append(len(inputs.image_mask))
        return encode_images(model, inputs)

    monkeypatch.setattr(generate_module, "encode_images", counting)
    samples = tiny_samples(6)
    samples[3:] = [replace(a, pictures=b.pictures) for a, b in zip(samples[3:], samples[:3], strict=True)]
    generator = Generator(llava, batch_size=3)
    requests = generator.prepare(samples)
    for _ in range(2):
        generator.answer(llava.model, requests, 2)
    assert encoded == [3]


def test_features_beyond_the_memory_bound_are_encoded_again_with_the_same_answers(base):
    samples = tiny_samples(6)
    kept, tight = Generator(base, batch_size=4), Generator(base, batch_size=4, cache_bytes=3000)
    assert kept.answer(base.model, kept.prepare(samples), NEW) == tight.answer(base.model, tight.prepare(samples), NEW)
    assert tight.store.held_bytes <= 3000 < kept.store.held_bytes


def test_features_beyond_the_memory_bound_go_to_a_file_bit_by_bit(base, tmp_path, monkeypatch):
    if base.model.config.model_type == "llava":
        base.model.to(torch.bfloat16)
    samples = tiny_samples(6)
    kept = Generator(base, batch_size=4)
    spilled = Generator(base, batch_size=4, cache_bytes=3000, disk_bytes=1 << 20, scratch=tmp_path)
    requests = [generator.prepare(samples) for generator in (kept, spilled)][1]
    assert spilled.store.held_bytes <= 3000 and spilled.store.disk_bytes > 0 and not spilled.store.full
    assert spilled.store.held_bytes + spilled.store.disk_bytes == kept.store.held_bytes
    for key in (key for request in requests for key in request.keys):
        for one, other in zip(kept.store.get(key, "cpu"), spilled.store.get(key, "cpu"), strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype
    monkeypatch.setattr(generate_module, "encode_images", None)  # nothing is encoded again
    assert kept.answer(base.model, requests, NEW) == spilled.answer(base.model, requests, NEW)
    assert not list(tmp_path.iterdir())  # the file has no name: nothing can be left behind


def test_a_full_disk_ends_the_file_with_one_line_and_the_answers_stay_the_same(llava, tmp_path, monkeypatch):
    samples, wrote = tiny_samples(6), os.pwrite
    kept = Generator(llava)
    expected = kept.answer(llava.model, kept.prepare(samples), NEW)
    room = [2]

    def pwrite(*args):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        return wrote(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    spilled = Generator(llava, cache_bytes=0, disk_bytes=1 << 20, scratch=tmp_path)
    requests = spilled.prepare(samples)
    assert spilled.store.full and sum(key in spilled.store for request in requests for key in request.keys) == 2
    assert "No space left on device" in spilled.store.fault and "\n" not in spilled.store.fault
    assert spilled.answer(llava.model, requests, NEW) == expected
    nowhere = Generator(llava, cache_bytes=0, disk_bytes=1 << 20, scratch=tmp_path / "gone")
    assert nowhere.answer(llava.model, nowhere.prepare(samples), NEW) == expected
    assert "No such file" in nowhere.store.fault


def test_the_file_takes_no_more_than_half_of_the_free_disk(tmp_path, monkeypatch):
    store = FeatureStore(0, 1 << 30, tmp_path)
    size = types.SimpleNamespace(f_bavail=350, f_frsize=1)
    monkeypatch.setattr(os, "fstatvfs", lambda _: size)
    for key in "abc":
        store.put(key, (torch.ones(100, dtype=torch.uint8),))
        size.f_bavail -= 100
    assert "a" in store and "b" not in store and "half of the free disk" in store.fault


def test_the_answers_come_in_the_order_of_the_requests(llava):
    generator = Generator(llava, batch_size=2)
    samples = tiny_samples(5)
    requests = generator.prepare(samples)
    assert [r.sample.sample_id for r in requests] == [s.sample_id for s in samples]
    answers = generator.answer(llava.model, requests, NEW)
    for request, answer in zip(requests, answers, strict=True):
        assert generator.answer(llava.model, [request], NEW) == [answer]


def test_a_batch_too_large_for_the_memory_is_answered_in_halves(llava, monkeypatch):
    generator = Generator(llava, batch_size=7)
    requests = generator.prepare(tiny_samples(7))
    answers = generator.answer(llava.model, requests, 4)
    tried: list[int] = []

    def small_memory(model, text, *args, **kwargs):
        tried.append(len(text["input_ids"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("no")
        return greedy(model, text, *args, **kwargs)

    monkeypatch.setattr(generate_module, "greedy", small_memory)
    assert generator.answer(llava.model, requests, 4) == answers
    assert max(tried) == 7 and sum(size for size in tried if size <= 2) == 7


def test_a_bfloat16_model_encodes_and_answers(base):
    model = base.model.to(torch.bfloat16)
    generator = Generator(base, batch_size=3)
    requests = generator.prepare(tiny_samples(5))
    answers = generator.answer(model, requests, 4)
    assert len(answers) == 5 and len(set(answers)) > 1
    inputs = base.collator.train(tiny_samples(2))
    vision = encode_images(model, inputs)
    assert vision.pooled.dtype == torch.float32
    out = model(**text_tensors(inputs), mm_encoder_outputs={"image": vision.outputs}, logits_to_keep=inputs.answer_mask)
    assert out.logits.dtype == torch.bfloat16 and out.logits.isfinite().all()
