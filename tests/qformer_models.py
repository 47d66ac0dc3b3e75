"""Tiny BLIP-2 and InstructBLIP models, built from their configs: language models of both kinds, and T5's form.

Each helper gives a stock (model, processor) pair as transformers makes them; `Base` or `load_base` fits them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models import _model, _text, tiny_tokenizer

from streamcvit.models.tiny import word_tokenizer

QUERIES = 4


def with_bos(tokenizer: Any) -> Any:
    """The same tokenizer, which puts BOS in front of a text as Vicuna's and OPT's do."""
    from tokenizers import processors

    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def tiny_blip2(language: str = "opt", width: int = 32) -> tuple[Any, Any]:
    """BLIP-2: 4 queries of a 32x32 picture; the language model is OPT, Llama or T5."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

    return _pair(Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, language, width)


def tiny_instructblip(language: str = "llama", width: int = 32) -> tuple[Any, Any]:
    """InstructBLIP: as BLIP-2, and the Q-Former reads the prompt through a tokenizer of its own."""
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor

    return _pair(
        InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor, language, width,
        qformer_tokenizer=word_tokenizer(),
    )  # fmt: skip


def _pair(config_of: Any, model_of: Any, processor_of: Any, language: str, width: int, **more: Any) -> tuple[Any, Any]:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = with_bos(tiny_tokenizer())
    pixels = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = processor_of(pixels, tokenizer, num_query_tokens=QUERIES, **more)  # which adds the image token
    config = config_of(
        vision_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        qformer_config={
            "vocab_size": 256, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
            "num_attention_heads": 2, "encoder_hidden_size": width,
        },
        text_config=_language(language, len(tokenizer), width),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return _model(model_of, config), processor


def _language(name: str, vocabulary: int, width: int) -> dict[str, Any]:
    words = _text(vocabulary, width, 2)
    if name == "opt":
        return {
            "model_type": "opt", "ffn_dim": 2 * width, "word_embed_proj_dim": width,
            **{key: value for key, value in words.items() if key not in ("intermediate_size", "num_key_value_heads")},
        }  # fmt: skip
    if name == "t5":
        return {
            "model_type": "t5", "vocab_size": vocabulary, "d_model": width, "d_ff": 2 * width, "d_kv": width // 2,
            "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
        }  # fmt: skip
    return {"model_type": name, **words}


QFORMERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "blip2-opt": tiny_blip2,
    "instructblip-llama": tiny_instructblip,
}
