"""BLIP-2 and InstructBLIP learn and answer as the stock models do, and features under one prompt serve no other."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import picture, save, tiny_conversations, tiny_samples
from PIL import Image
from qformer_models import QFORMERS, QUERIES, tiny_blip2, tiny_instructblip

from streamcvit.adapters import InstructionEncoder
from streamcvit.adapters.build import attach
from streamcvit.data.sample import Picture, Sample, TaskSpec
from streamcvit.errors import UserError
from streamcvit.evaluation import Evaluator
from streamcvit.evaluation import generate as generate_module
from streamcvit.evaluation.generate import Generator
from streamcvit.learning import OnlineLearner
from streamcvit.models.base import Base, load_base, skeleton
from streamcvit.models.batch import TOWER_TEXT, Batch
from streamcvit.models.collate import UnusableSamples
from streamcvit.models.sight import check_sight
from streamcvit.models.vision import encode_images, pool, routing_inputs, text_tensors, vision_dim

NEW = 8
WHOLE = {"modules_to_save": ["qformer", "language_projection"]}
MODES = [
    *((name, adapter, None) for name in ("blip2-opt", "instructblip-llama") for adapter in ("smolora", "strlora")),
    *((name, adapter, WHOLE) for name in ("blip2-opt", "instructblip-llama") for adapter in ("lora", "smolora")),
]


@pytest.fixture(params=["blip2-opt", "instructblip-llama"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def instructblip() -> Base:
    return Base(*tiny_instructblip())


def learner_for(base: Base, adapter: str = "lora", options: dict[str, Any] | None = None) -> OnlineLearner:
    encoder = InstructionEncoder.from_model(base.model, base.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, adapter, seed=3, options=options, sizes=sizes)
    return OnlineLearner(base, model, encoder=encoder, lr=1e-2)


def batch_of(base: Base, number: int = 0, size: int = 4, seed: int = 0) -> Batch:
    samples, start = tiny_samples(size, seed=seed), number * size
    places = tuple(range(start, start + size))
    return Batch(start, start + size, 0, places, tuple(samples), base.collator.train(samples))


def answers(base: Base, samples: Sequence[Sample], model: Any = None, size: int = 6) -> list[str]:
    generator = Generator(base, batch_size=size)
    return generator.answer(model or base.model, generator.prepare(samples), NEW)


def stock_answer(base: Base, stock: tuple[Any, Any], sample: Sample) -> str:
    """What transformers' own processor and `generate` make of a prompt, alone."""
    model, processor = stock
    text = base.collator.template.write([sample])[0].text.replace("<image>", "")  # type: ignore[union-attr]
    image = Image.open(io.BytesIO(sample.pictures[0].data)).convert("RGB")
    given = processor(images=image, text=text, return_tensors="pt")
    assert int((given["input_ids"] == base.collator.image_token_id).sum()) == QUERIES
    stops = list(base.collator.stop_ids)
    whole = model.generate(**given, do_sample=False, num_beams=1, max_new_tokens=NEW, eos_token_id=stops)
    return base.collator.decode(whole[:, given["input_ids"].shape[1] :])[0]


def test_answers_of_a_batch_are_those_of_the_stock_model_and_processor_for_each_prompt_alone(
    kind: str, tmp_path: Path
) -> None:
    base = load_base(save(QFORMERS[kind](), tmp_path), device="cpu")
    samples = tiny_samples(6)
    found = answers(base, samples)
    assert found == [stock_answer(base, QFORMERS[kind](), sample) for sample in samples]
    assert len(set(found)) > 2
    assert answers(base, samples, size=1) == found


def test_logits_and_features_are_the_stock_models(kind: str) -> None:
    base, (stock, processor) = Base(*QFORMERS[kind]()), QFORMERS[kind]()
    sample = tiny_samples(1)[0]
    inputs = base.collator.prompts([sample])
    text = base.collator.template.write([sample])[0].text.replace("<image>", "")  # type: ignore[union-attr]
    image = Image.open(io.BytesIO(sample.pictures[0].data)).convert("RGB")
    given = processor(images=image, text=text, return_tensors="pt")
    assert torch.equal(given["input_ids"], inputs.tensors["input_ids"])
    assert torch.equal(given["pixel_values"], inputs.tensors["pixel_values"])
    vision = encode_images(base.model, inputs)
    theirs = {name: given[name] for name in given if name.startswith(("pixel", "qformer"))}
    torch.testing.assert_close(vision.outputs.pooler_output, stock.get_image_features(**theirs).pooler_output)
    ours = base.model(**text_tensors(inputs), **vision.given).logits
    torch.testing.assert_close(ours, stock(**given).logits, atol=1e-4, rtol=1e-4)


def test_features_and_losses_of_a_sample_do_not_depend_on_its_batch(kind: str) -> None:
    base = Base(*QFORMERS[kind]())
    learner = learner_for(base)
    samples = tiny_samples(5)
    whole = encode_images(base.model, base.collator.prompts(samples))
    losses, correct = learner.losses(base.collator.train(samples))
    for k, sample in enumerate(samples):
        own = encode_images(base.model, base.collator.prompts([sample]))
        torch.testing.assert_close(whole.features[k], own.features[0], atol=1e-5, rtol=1e-4)
        loss, right = learner.losses(base.collator.train([sample]))
        torch.testing.assert_close(losses[k], loss[0], atol=1e-4, rtol=1e-4)
        assert correct[k] == right[0]


def test_the_loss_is_that_of_the_stock_model_on_the_answers_tokens(kind: str) -> None:
    base, (stock, _) = Base(*QFORMERS[kind]()), QFORMERS[kind]()
    inputs = base.collator.train(tiny_samples(1))
    tensors = dict(inputs.tensors)
    read = tensors.pop(TOWER_TEXT, None)
    if read is not None:
        tensors |= {"qformer_input_ids": read[:, 0], "qformer_attention_mask": read[:, 1]}
    labels = tensors["input_ids"].masked_fill(~inputs.answer_mask, -100)
    loss = stock(**tensors, labels=labels).loss
    torch.testing.assert_close(learner_for(base).losses(inputs)[0][0], loss, atol=1e-5, rtol=1e-4)


def test_the_output_head_runs_on_the_wanted_places_alone(kind: str) -> None:
    base = Base(*QFORMERS[kind]())
    learner = learner_for(base)
    seen: list[torch.Size] = []
    base.model.get_output_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    inputs = base.collator.train(tiny_samples(3))
    learner.losses(inputs)
    assert [shape[:-1].numel() for shape in seen] == [int(inputs.answer_mask.sum())]


@pytest.mark.parametrize(("name", "adapter", "options"), MODES)
def test_a_learner_lowers_the_loss_and_goes_on_from_a_commit_to_the_bit(
    name: str, adapter: str, options: dict[str, Any] | None, tmp_path: Path
) -> None:
    base = Base(*QFORMERS[name]())
    learner, losses = learner_for(base, adapter, options), []
    for step in range(6):
        report = learner.learn(batch_of(base, step))
        assert report is not None and not report.skipped
        losses.append(float(report.loss.mean()))
        if step == 2:
            commit = learner.commit(tmp_path)
    assert losses[-1] < losses[0]
    digest = learner.snapshot().digest
    learner.model.unload()
    assert base.restore()
    again = learner_for(base, adapter, options)
    torch.manual_seed(99)
    again.resume(commit)
    for step in range(3, 6):
        again.learn(batch_of(base, step))
    assert again.snapshot().digest == digest


@pytest.mark.parametrize("name", ["blip2-opt", "instructblip-llama"])
def test_qformer_and_projection_trained_whole_get_the_gradient_that_the_stock_model_gives(name: str) -> None:
    base, (stock, _) = Base(*QFORMERS[name]()), QFORMERS[name]()
    learner = learner_for(base, options=WHOLE)
    learner.model.eval()  # their dropout is drawn otherwise
    inputs = base.collator.train(tiny_samples(1))
    learner.losses(inputs)[0].sum().backward()
    tensors = dict(inputs.tensors)
    read = tensors.pop(TOWER_TEXT, None)
    if read is not None:
        tensors |= {"qformer_input_ids": read[:, 0], "qformer_attention_mask": read[:, 1]}
    trained = {n: p for n, p in stock.named_parameters() if n.startswith(("qformer.", "language_projection."))}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    stock(**tensors, labels=tensors["input_ids"].masked_fill(~inputs.answer_mask, -100)).loss.backward()
    ours = {
        n.removeprefix("base_model.model.").replace("modules_to_save.default.", ""): p.grad
        for n, p in learner.model.named_parameters()
        if "modules_to_save" in n
    }
    assert ours.keys() == trained.keys()
    for n, parameter in trained.items():
        if parameter.grad is None:
            assert ours[n] is None or not ours[n].any()
            continue
        torch.testing.assert_close(ours[n], parameter.grad, atol=1e-4, rtol=1e-3)
    assert (
        ours["language_projection.weight"].any()
        and ours["qformer.encoder.layer.0.crossattention.attention.query.weight"].any()
    )


def test_dropout_of_the_qformer_acts_where_it_is_trained_alone(instructblip: Base) -> None:
    inputs = instructblip.collator.train(tiny_samples(3))
    frozen = learner_for(instructblip)
    frozen.learn(batch_of(instructblip))
    assert torch.equal(frozen.losses(inputs)[0], frozen.losses(inputs)[0])
    frozen.model.unload()
    trained = learner_for(instructblip, options=WHOLE)
    trained.learn(batch_of(instructblip))
    assert not torch.equal(trained.losses(inputs)[0], trained.losses(inputs)[0])
    assert not instructblip.model.vision_model.training


def test_one_picture_under_two_questions_is_answered_by_its_own_features_and_encoded_once_for_each(
    instructblip: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def counting(model: Any, inputs: Any, **more: Any) -> Any:
        encoded.append(len(inputs.image_mask))
        return encode_images(model, inputs, **more)

    monkeypatch.setattr(generate_module, "encode_images", counting)
    shown = (Picture(picture(7)),)
    samples = [replace(sample, pictures=shown) for sample in tiny_samples(4)]
    alone = [answers(instructblip, [sample])[0] for sample in samples]
    generator = Generator(instructblip, batch_size=2)
    encoded.clear()
    requests = generator.prepare(samples)
    assert len({key for request in requests for key in request.keys}) == 4
    assert generator.answer(instructblip.model, requests, NEW) == alone
    assert sum(encoded) == 4
    # Asked again among longer prompts, from what is kept: Q-Former padding is no part of the key.
    again = generator.prepare([samples[0], replace(samples[1], question="What " + "on earth " * 9 + "is it?")])
    assert again[0].keys == requests[0].keys and sum(encoded) == 6
    one, other = (encode_images(instructblip.model, instructblip.collator.prompts([s])) for s in samples[:2])
    assert not torch.allclose(one.features[0], other.features[0], atol=1e-3)


def test_blip2_encodes_a_picture_once_whatever_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Base(*tiny_blip2())
    shown = (Picture(picture(7)),)
    requests = Generator(base).prepare([replace(sample, pictures=shown) for sample in tiny_samples(4)])
    assert len({key for request in requests for key in request.keys}) == 1


def test_routers_read_the_mean_of_the_projected_queries(kind: str) -> None:
    base = Base(*QFORMERS[kind]())
    vision = encode_images(base.model, base.collator.prompts(tiny_samples(2)))
    assert vision.outputs.pooler_output.shape == (2, QUERIES, vision_dim(base.model))
    assert torch.equal(vision.pooled, pool(vision.features))
    torch.testing.assert_close(vision.pooled, vision.outputs.pooler_output.mean(1))


@pytest.mark.parametrize("adapter", ["smolora", "strlora"])
def test_answers_under_an_adapter_pass_the_audit_at_batch_one(kind: str, adapter: str) -> None:
    base = Base(*QFORMERS[kind]())
    learner = learner_for(base, adapter)
    for step in range(2):
        learner.learn(batch_of(base, step, seed=step))
    learner.model.eval()
    spec = TaskSpec("tiny", "exact", "single_word", max_new_tokens=NEW)
    evaluator = Evaluator(base, {"tiny": spec}, {"tiny": tiny_samples(6, seed=9)})
    evaluator.evaluate(learner.model, "tiny")
    assert evaluator.audit(learner.model, "tiny", n=6) == []


def test_samples_without_a_picture_are_learned_and_answered_among_others(kind: str) -> None:
    base = Base(*QFORMERS[kind]())
    seeing = tiny_samples(3)
    samples = [seeing[0], replace(seeing[1], pictures=()), seeing[2]]
    learner = learner_for(base, "smolora")
    losses, _ = learner.losses(base.collator.train(samples))
    for k, sample in enumerate(samples):
        torch.testing.assert_close(losses[k], learner.losses(base.collator.train([sample]))[0][0], atol=1e-4, rtol=1e-4)
    blind = [replace(sample, pictures=()) for sample in seeing]
    assert len(answers(base, blind, learner.model.eval())) == 3
    found = answers(base, samples, learner.model)
    assert found == [answers(base, [sample], learner.model)[0] for sample in samples]


def test_blip2_learns_the_answers_of_every_turn() -> None:
    base = Base(*tiny_blip2())
    shown = replace(tiny_conversations()["talk"], pictures=(Picture(picture(1)),))
    whole = replace(shown, turns=(replace(shown.turns[0], prompt="\ue000Who is <image> there?"),))
    for sample in (shown, whole):
        inputs = base.collator.train([sample])
        said = base.tokenizer.decode(inputs.tensors["input_ids"][0][inputs.answer_mask[0]])
        assert said == "me<eos>so<eos>"


def test_answers_of_earlier_turns_that_the_qformer_would_read_are_refused_in_one_line() -> None:
    pair = tiny_instructblip()
    talk = replace(tiny_conversations()["talk"], pictures=(Picture(picture(1)),))
    with pytest.raises(UserError, match="answers of earlier turns.*Set learner.turns to last"):
        Base(*pair).collator.train([talk])
    inputs = Base(*pair, turns="last").collator.train([talk])
    assert int(inputs.answer_mask.sum()) == len("so") + 1


def test_several_pictures_or_a_prompt_longer_than_the_qformer_reads_are_named_by_sample(instructblip: Base) -> None:
    good, many, long = tiny_samples(3)
    many = replace(many, pictures=(many.pictures[0], good.pictures[0]))
    long = replace(long, question="a b c d " * 200)
    with pytest.raises(UnusableSamples) as fault:
        instructblip.collator.train([good, many, long])
    assert set(fault.value.reasons) == {many.sample_id, long.sample_id}
    assert "one picture a question, and here are 2" in fault.value.reasons[many.sample_id][1]
    assert "the Q-Former reads 512" in fault.value.reasons[long.sample_id][1]


@pytest.mark.parametrize("build", [tiny_blip2, tiny_instructblip])
def test_the_encoder_decoder_form_is_refused_in_one_line_before_its_weights_are_read(
    build: Any, tmp_path: Path
) -> None:
    folder = save(build("t5"), tmp_path)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"")
    for load in (skeleton, lambda folder: load_base(folder, device="cpu")):
        with pytest.raises(UserError, match=r"its language model \(t5\) is an encoder-decoder.*OPT, Vicuna"):
            load(folder)


@pytest.mark.parametrize("build", [tiny_blip2, tiny_instructblip])
def test_a_config_or_processor_that_leaves_out_what_is_needed_is_refused_in_one_line(build: Any) -> None:
    model, processor = build()
    model.config.image_token_index = None
    with pytest.raises(UserError, match="names no image token.*Set image_token_index"):
        Base(model, processor)
    model, processor = build()
    processor.num_query_tokens = None
    with pytest.raises(UserError, match="how many tokens a picture takes.*Set num_query_tokens"):
        Base(model, processor)


def test_model_and_processor_are_saved_as_stock_ones_and_a_collator_travels(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    base = Base(*QFORMERS[kind]())
    folder = save((base.model, base.processor), tmp_path)
    stock: Any = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(stock).__module__.startswith("transformers.")
    again = load_base(folder, device="cpu")
    samples = tiny_samples(2)
    assert answers(again, samples) == answers(base, samples)
    ours, theirs = base.collator.train(samples), pickle.loads(pickle.dumps(base.collator)).train(samples)
    assert all(torch.equal(theirs.tensors[name], tensor) for name, tensor in ours.tensors.items())


def test_a_bfloat16_model_sees_learns_and_answers(kind: str) -> None:
    model, processor = QFORMERS[kind]()
    model.to(torch.bfloat16)
    if kind.startswith("blip2"):
        model.qformer.float()  # as from_pretrained keeps it
    base = Base(model, processor)
    check_sight(base.model, base.collator)
    for options in (None, WHOLE):
        learner = learner_for(base, options=options)
        report = learner.learn(batch_of(base))
        assert report is not None and report.loss.isfinite().all()
        assert len(answers(base, tiny_samples(2), learner.model.eval())) == 2
        learner.model.unload()
        assert base.restore()


@pytest.mark.parametrize("adapter", ["smolora", "strlora"])
def test_a_layer_that_is_given_all_tokens_flattened_gives_what_it_gives_per_sample(adapter: str) -> None:
    base = Base(*tiny_blip2())
    learner = learner_for(base, adapter)
    learner.learn(batch_of(base))
    encoder: Any = learner.encoder
    tuner: Any = learner.model.base_model
    layer = tuner.model.language_model.model.decoder.layers[0].fc1
    batch = base.collator.train(tiny_samples(3))
    routing = routing_inputs(encoder, batch, encode_images(base.model, batch))
    x = torch.randn(3, batch.tensors["input_ids"].shape[1], layer.in_features)
    with torch.no_grad(), tuner.routing.using(routing):
        whole = layer(x)
        torch.testing.assert_close(layer(x.flatten(0, 1)), whole.flatten(0, 1))
        assert not torch.equal(whole, layer.base_layer(x))
        with pytest.raises(UserError, match=r"needs \[batch, positions, features\]"):
            layer(x.flatten(0, 1)[:-1])
