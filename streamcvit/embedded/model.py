"""The embedded base before training: tokenizer, processor, stock LLaVA model, and the pictures that it learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from streamcvit.embedded import tasks as embedded
from streamcvit.embedded.corpus import KIND_SHARES, exchange, lexicon
from streamcvit.embedded.images import CELL, SIZE, Picture, draw, rng_for

PATCHES = (SIZE // CELL) ** 2
VOCABULARY = 1000
MAX_TEXT = 2048
VISION_WIDTH = 96
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
# Stock initial scales (0.02) are meant for widths of thousands; at a hundred they leave the residual stream almost
# empty.
INIT_GAIN = 3.0

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% else %}<answer>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
"""`<bos><image>{text}<answer>{answer}<eos>`: every border is a token of its own, so nothing merges across it and
prompts stay short."""

IMAGE_PREFIX = "<bos>" + "<image>" * PATCHES


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the full byte alphabet: any text round-trips, the benchmark's words are one
    token each."""
    rng = rng_for("base", seed, 90)
    lessons = [exchange(draw(kind, "base", rng), rng) for kind in KIND_SHARES for _ in range(150)]
    texts = [part for lesson in lessons for part in (lesson.prompt, lesson.answer)]
    texts += [text for task in embedded.TASKS for text in embedded.INSTRUCTIONS[task]]
    # Whole words with and without a leading space; digits stay single because no longer number is ever shown.
    texts = ["".join("#" if char.isdigit() else char for char in text) for text in texts]
    texts += [f"{word}\n {word}" for word in lexicon()] * 40
    texts += [f"{digit} {digit} x{digit} y{digit}\n" for digit in range(10)] * 40
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>", "<image>", "<answer>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>", "answer_token": "<answer>"},
        model_max_length=MAX_TEXT,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The stock processor; it resizes any image to 32 x 32 and needs no torchvision."""
    image_processor = CLIPImageProcessor(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """The untrained model, float32."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.get_vocab()
    special = {name: vocabulary[f"<{name}>"] for name in ("pad", "bos", "eos", "image")}
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=CELL,
        projection_dim=VISION_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_TEXT,
        tie_word_embeddings=True,
        pad_token_id=special["pad"],
        bos_token_id=special["bos"],
        eos_token_id=special["eos"],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=special["image"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(INIT_GAIN)
    model.generation_config = GenerationConfig(
        pad_token_id=special["pad"], bos_token_id=special["bos"], eos_token_id=special["eos"], do_sample=False
    )
    return model


def normalise(pictures: Sequence[Picture]) -> Tensor:
    """Pictures as the tower reads them: float32 [N, 3, 32, 32]."""
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


def draw_pool(count: int, seed: int) -> list[Picture]:
    """Base pictures of all kinds in the shares of `KIND_SHARES`, shuffled."""
    rng = rng_for("base", seed, 91)
    kinds = rng.choice(list(KIND_SHARES), size=count, p=list(KIND_SHARES.values()))
    return [draw(str(kind), "base", rng) for kind in kinds]
