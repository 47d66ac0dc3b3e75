"""From samples to tensors: same tokens everywhere, masks that fit, nothing dropped in silence."""

from __future__ import annotations

import io
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from streamcvit.data.sample import Picture
from streamcvit.errors import UserError
from streamcvit.models import rows
from streamcvit.models.batch import ModelInputs
from streamcvit.models.collate import Collator, UnusableSamples
from streamcvit.models.vision import encode_images
from tests.models import (
    BOS,
    CHAT_TEMPLATE,
    END,
    EOS,
    TINY,
    picture,
    save,
    tiny_base,
    tiny_llava,
    tiny_paligemma,
    tiny_samples,
    tiny_tokenizer,
)

KINDS = sorted(TINY)


@pytest.fixture(scope="module", params=KINDS)
def base(request):
    return tiny_base(request.param)


@pytest.fixture(scope="module")
def llava():
    return tiny_base("llava")


def unpadded(inputs: ModelInputs, row: int) -> dict[str, torch.Tensor]:
    held = inputs.tensors["attention_mask"][row].bool()
    shape = inputs.answer_mask.shape
    return {name: tensor[row][held] for name, tensor in inputs.tensors.items() if tensor.shape == shape}


def test_prompt_tokens_are_the_same_for_training_and_for_generation(base):
    samples = tiny_samples(6)
    train, prompts = base.collator.train(samples), base.collator.prompts(samples)
    for row in range(6):
        learned, asked = unpadded(train, row), unpadded(prompts, row)
        length = len(asked["input_ids"])
        for name, tokens in asked.items():
            assert torch.equal(learned[name][:length], tokens), name
        assert not train.answer_mask[row, :length].any() and not prompts.answer_mask.any()


def test_answer_mask_covers_the_answer_and_the_end_of_turn(base):
    samples = tiny_samples(5)
    train = base.collator.train(samples)
    for row, sample in enumerate(samples):
        answer = train.tensors["input_ids"][row][train.answer_mask[row]].tolist()
        assert answer[-1] == END == base.collator.end_token_id
        assert base.tokenizer.decode(answer[:-1]) == sample.answer


def test_every_row_has_as_many_image_tokens_as_its_image_has_features(base):
    inputs = base.collator.prompts(tiny_samples(5))
    features = encode_images(base.model, inputs).features
    assert [len(f) for f in features] == inputs.image_mask.sum(1).tolist()


def test_masks_split_the_row_into_text_image_answer_and_padding(base):
    inputs = base.collator.train(tiny_samples(5))
    held = inputs.tensors["attention_mask"].bool()
    parts = inputs.prompt_mask.long() + inputs.image_mask.long() + inputs.answer_mask.long()
    assert torch.equal(parts, held.long())


def test_prompts_are_padded_left_and_training_rows_right(base):
    samples = tiny_samples(5)
    prompts, train = (f(samples).tensors["attention_mask"] for f in (base.collator.prompts, base.collator.train))
    assert prompts[:, -1].all() and not prompts[:, 0].all()
    assert train[:, 0].all() and not train[:, -1].all()


def test_a_row_does_not_depend_on_its_batch_mates(base):
    samples = tiny_samples(6)
    together = base.collator.train(samples)
    counts = together.image_mask.sum(1)
    for row, sample in enumerate(samples):
        alone = base.collator.train([sample])
        for name, tokens in unpadded(alone, 0).items():
            assert torch.equal(unpadded(together, row)[name], tokens), name
        assert alone.image_mask.sum() == counts[row]
    pixels = torch.cat([base.collator.train([sample]).tensors["pixel_values"] for sample in samples])
    assert torch.equal(together.tensors["pixel_values"], pixels)


def test_the_same_samples_give_the_same_tensors_from_a_collator_sent_to_another_process(base, tmp_path):
    folder = save((base.model, base.processor), tmp_path)
    collator = Collator.from_pretrained(folder)
    sent = pickle.dumps(collator)
    assert len(sent) < 1000
    samples = tiny_samples(4)
    here, there = base.collator.train(samples), pickle.loads(sent).train(samples)
    assert here.tensors.keys() == there.tensors.keys()
    assert all(torch.equal(here.tensors[name], there.tensors[name]) for name in here.tensors)
    assert torch.equal(here.answer_mask, there.answer_mask) and here.instructions == there.instructions


def test_type_ids_mark_image_tokens_and_never_the_answer():
    for kind, name in (("gemma3", "token_type_ids"), ("qwen25vl", "mm_token_type_ids")):
        inputs = tiny_base(kind).collator.train(tiny_samples(3))
        assert torch.equal(inputs.tensors[name] == 1, inputs.image_mask), kind


def test_control_tokens_in_a_question_are_read_as_text(base):
    image = base.processor.image_token
    plain, spelled = tiny_samples(2)
    spelled = replace(spelled, question=f"Is {image} or <|end|> a word?", answers=("<eos>",))
    inputs = base.collator.train([plain, spelled])
    alone = base.collator.train([spelled])
    assert inputs.image_mask[1].sum() == alone.image_mask[0].sum() > 0
    row = unpadded(alone, 0)["input_ids"].tolist()
    assert row.count(END) == 2 and row.count(EOS) == 0  # the user's turn and the answer's own
    assert "< eos>" in base.tokenizer.decode(row)


def test_a_template_that_writes_bos_gets_no_second_one():
    model, processor = tiny_llava()
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    from tokenizers.processors import TemplateProcessing

    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    ids = Collator(processor).prompts(tiny_samples(1)).tensors["input_ids"][0].tolist()
    assert ids.count(BOS) == 1 and ids[0] == BOS
    processor.chat_template = None
    ids = Collator(processor).prompts(tiny_samples(1)).tensors["input_ids"][0].tolist()
    assert ids.count(BOS) == 1 and ids[0] == BOS


def test_without_chat_template_a_plain_one_is_used_and_eos_ends_the_answer():
    collator = Collator(tiny_llava(chat=False)[1])
    inputs = collator.train(tiny_samples(1))
    text = collator.tokenizer.decode(unpadded(inputs, 0)["input_ids"])
    assert text.startswith("USER: <image>") and text.endswith("ASSISTANT: red<eos>")
    assert collator.end_token_id == EOS


def test_answer_tokens_are_those_of_the_whole_conversation_with_a_space_prefixing_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    _, processor = tiny_llava(chat=False)
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>", "▁", "▁yes", "▁ASSISTANT:"]
    letters = sorted(set("USERASTN:probeyesTwo3acrd▁") - set(words))
    backend = Tokenizer(models.Unigram([(w, -1.0) for w in words] + [(x, -9.0) for x in letters], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"}
    )
    processor.image_token_id = processor.tokenizer.image_token_id
    collator = Collator(processor)
    sample = replace(tiny_samples(1)[0], answers=("yes",))
    inputs = collator.train([sample])
    assert collator.tokenizer.convert_ids_to_tokens(inputs.tensors["input_ids"][0][inputs.answer_mask[0]]) == [
        "▁yes",
        "<eos>",
    ]


TEMPLATES = {
    # As on the hub, shortened to what a single question and answer go through.
    "llava-1.5": (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% if message['role'] != 'assistant' %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
        "{% endfor %}{% else %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "qwen": (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
        "<|user|>You are a helpful assistant.<|end|>\n{% endif %}<|{{ message['role'] }}|>\n"
        "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>"
        "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "gemma-3": (
        "{{ bos_token }}{%- for message in messages -%}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles') }}{%- endif -%}"
        "{{ '<|' + message['role'] + '|>\n' }}{%- for item in message['content'] -%}"
        "{%- if item['type'] == 'image' -%}{{ '<image>' }}{%- else -%}{{ item['text'] | trim }}{%- endif -%}"
        "{%- endfor -%}{{ '<|end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
    ),
}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_training_row_reads_as_the_chat_template_writes_the_finished_conversation(name):
    _, processor = tiny_llava()
    processor.chat_template = TEMPLATES[name]
    collator = Collator(processor)
    sample = replace(tiny_samples(1)[0], answers=("two words",))
    inputs = collator.train([sample])
    row = collator.tokenizer.decode(unpadded(inputs, 0)["input_ids"])
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two words"}]},
    ]
    whole = processor.apply_chat_template([turns])[0].replace("<image>", "<image>" * 16)
    end = "<eos>" if name == "llava-1.5" else "<|end|>"
    assert row.removesuffix(end) == whole.rstrip().removesuffix(end) and row.endswith(end)
    assert collator.decode([unpadded(inputs, 0)["input_ids"][inputs.answer_mask[0]].tolist()]) == ["two words"]


def test_a_sample_longer_than_max_length_is_named_and_nothing_is_cut(llava):
    samples = tiny_samples(3)
    samples[1] = replace(samples[1], question="word " * 100)
    collator = Collator(llava.processor, max_length=200)
    with pytest.raises(UnusableSamples, match="max_length=200") as caught:
        collator.train(samples)
    assert {k: reason for k, (reason, _) in caught.value.reasons.items()} == {samples[1].sample_id: "length"}
    assert collator.train([samples[0], samples[2]]).answer_mask.shape[0] == 2


def test_images_that_cannot_be_decoded_are_named_all_of_them(llava):
    samples = tiny_samples(4)
    samples[0] = replace(samples[0], pictures=(Picture(samples[0].pictures[0].data[:200]),))
    samples[2] = replace(samples[2], pictures=(Picture(b"no picture"),))
    with pytest.raises(UnusableSamples) as caught:
        llava.collator.train(samples)
    assert {k: reason for k, (reason, _) in caught.value.reasons.items()} == {"s0-0": "image", "s0-2": "image"}
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.reasons == caught.value.reasons


def test_faults_of_different_kinds_are_named_in_one_go(llava):
    samples = tiny_samples(4)
    samples[1] = replace(samples[1], question="word " * 100)
    samples[3] = replace(samples[3], pictures=(Picture(b"no picture"),))
    collator = Collator(llava.processor, max_length=200)
    with pytest.raises(UnusableSamples) as caught:
        collator.train(samples)
    assert {k: reason for k, (reason, _) in caught.value.reasons.items()} == {"s0-1": "length", "s0-3": "image"}
    with pytest.raises(UnusableSamples):
        collator.train(samples[3:])


def test_an_image_that_the_processor_refuses_is_named(monkeypatch):
    monkeypatch.setattr("streamcvit.data.images.MAX_ASPECT", 300)  # Qwen's own limit is ours, 200
    collator = tiny_base("qwen25vl").collator
    samples = tiny_samples(3)
    samples[2] = replace(samples[2], pictures=(Picture(picture(1, (900, 4))),))
    with pytest.raises(UnusableSamples, match="aspect ratio") as caught:
        collator.prompts(samples)
    assert list(caught.value.reasons) == ["s0-2"]


def tiny_idefics3_processor():
    """Gives every picture of a batch as many tiles as the one with the most."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    tokenizer = tiny_tokenizer(image_token="<image>", fake="<fake_token_around_image>", whole="<global-img>")
    template = CHAT_TEMPLATE.replace("IMAGE", "'<image>'")
    return Idefics3Processor(pixels, tokenizer, image_seq_len=4, chat_template=template)


@pytest.mark.parametrize("kind", [*KINDS, "idefics3"])
def test_a_batch_of_large_pictures_gives_the_same_bits_group_by_group(kind, monkeypatch):
    collator = Collator(tiny_idefics3_processor() if kind == "idefics3" else TINY[kind]()[1])
    samples = tiny_samples(7, sizes=((40, 90), (64, 8), (64, 64), (20, 20)))
    calls = []
    plain = collator._reader.call
    monkeypatch.setattr(
        collator._reader, "call", lambda texts, images: calls.append(len(texts)) or plain(texts, images)
    )
    whole = [collator.train(samples), collator.prompts(samples)]
    assert calls == [7, 7]
    monkeypatch.setattr(rows, "MAX_DECODED", 4100)  # 3600 and 512; 4096; 400 and 3600; 512 ...
    parts = [collator.train(samples), collator.prompts(samples)]
    assert calls[2:] == [1, 1, 1, 2, 1, 1] * 2
    for one, other in zip(whole, parts, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in one.tensors.items():
            assert tensor.dtype == other.tensors[name].dtype and torch.equal(tensor, other.tensors[name]), name
        for mask in ("answer_mask", "prompt_mask", "image_mask"):
            assert torch.equal(getattr(one, mask), getattr(other, mask))


def test_indices_into_a_batch_are_never_put_beside_those_of_another(monkeypatch):
    collator = tiny_base("llava").collator
    plain = type(collator.processor).__call__

    def pooling(self, images=None, text=None, **kwargs):
        output = plain(self, images=images, text=text, **kwargs)
        if refuse and len(text) > 1:
            raise ValueError("one at a time")
        output["image_token_pooling"] = np.arange(16 * len(text))  # places among the batch's patches
        return output

    monkeypatch.setattr(type(collator.processor), "__call__", pooling)
    monkeypatch.setattr(rows, "MAX_DECODED", 1)
    refuse = False
    assert collator.train(tiny_samples(3)).tensors["image_token_pooling"].tolist() == list(range(48))
    refuse = True
    with pytest.raises(UserError, match="one at a time"):
        collator.train(tiny_samples(3))


def test_a_processor_that_refuses_batches_is_called_for_one_sample_after_the_other(monkeypatch):
    collator = tiny_base("llava").collator
    samples = tiny_samples(4)
    whole = collator.train(samples)
    plain = type(collator.processor).__call__

    def one(self, images=None, text=None, **kwargs):
        if len(text) > 1:
            raise ValueError("unable to create tensor")
        return plain(self, images=images, text=text, **kwargs).convert_to_tensors("pt")

    monkeypatch.setattr(type(collator.processor), "__call__", one)
    apart = collator.train(samples)
    assert apart.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, apart.tensors[name]) for name, tensor in whole.tensors.items())


def test_prompts_without_a_picture_that_a_processor_refuses_are_named():
    collator = Collator(tiny_paligemma()[1])
    samples = tiny_samples(3)
    samples[1] = replace(samples[1], pictures=())
    with pytest.raises(UnusableSamples, match="images") as caught:
        collator.train(samples)
    assert {name: kind for name, (kind, _) in caught.value.reasons.items()} == {samples[1].sample_id: "text"}


def test_a_processor_without_an_image_token_is_refused_in_one_line(monkeypatch):
    processor = tiny_llava()[1]
    monkeypatch.setattr(type(processor), "image_token_ids", [None])
    assert Collator(processor).image_token_id == processor.tokenizer.image_token_id  # Janus' names the word only
    monkeypatch.setattr(processor, "image_token", "<no token>")
    with pytest.raises(UserError, match="names no image token"):
        Collator(processor)
    monkeypatch.undo()
    processor.image_token = None
    with pytest.raises(UserError, match="names no image token"):
        Collator(processor)


def test_few_pixels_are_held_decoded_at_once_and_the_faults_of_all_groups_are_named(monkeypatch):
    alive, most = [0], [0]
    plain = rows.decode_image

    def counted(data):
        picture = plain(data)
        pixels = picture.width * picture.height
        alive[0] += pixels
        most[0] = max(most[0], alive[0])
        weakref.finalize(picture, lambda: alive.__setitem__(0, alive[0] - pixels))
        return picture

    monkeypatch.setattr(rows, "decode_image", counted)
    monkeypatch.setattr(rows, "MAX_DECODED", 250_000)
    collator = Collator(tiny_base("llava").processor)
    samples = tiny_samples(20, sizes=((300, 400), (300, 400), (600, 500)))
    inputs = collator.prompts(samples)
    assert len(inputs.tensors["pixel_values"]) == 20
    assert most[0] == 300_000 and alive[0] == 0
    samples[1] = replace(samples[1], question="word " * 100)
    samples[19] = replace(samples[19], pictures=(Picture(b"no picture"),))
    short = Collator(collator.processor, max_length=200)
    with pytest.raises(UnusableSamples) as caught:
        short.prompts(samples)
    assert {k: reason for k, (reason, _) in caught.value.reasons.items()} == {"s0-1": "length", "s0-19": "image"}
    assert most[0] == 300_000


def test_decode_stops_at_the_first_stop_token_and_strips(llava):
    ids = [*llava.tokenizer(" two words ")["input_ids"], END, *llava.tokenizer("more")["input_ids"]]
    assert llava.collator.decode([ids, [EOS, 40], [END]]) == ["two words", "", ""]
    assert llava.collator.decode(torch.tensor([ids])) == ["two words"]


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def test_pictures_of_every_mode_become_the_same_rgb_everywhere():
    from streamcvit.data.images import decode_image

    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    assert np.array_equal(
        np.asarray(decode_image(encoded(Image.fromarray(ramp))))[..., 0], (ramp >> 8).astype(np.uint8)
    )
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (4, 4), (0, 128))
    assert decode_image(encoded(half)).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode_image(encoded(palette)).getpixel((0, 0)) == (10, 20, 30)
    assert decode_image(encoded(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    cmyk = decode_image(encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"))
    assert cmyk.mode == "RGB" and min(cmyk.getpixel((3, 3))) > 250


def test_exif_orientation_is_applied():
    from streamcvit.data.images import decode_image

    picture = Image.new("RGB", (16, 8), "black")
    picture.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright = decode_image(encoded(picture, "JPEG", exif=exif, quality=95))
    assert upright.size == (8, 16) and upright.getpixel((4, 2))[0] > 200 > 50 > upright.getpixel((4, 13))[0]
