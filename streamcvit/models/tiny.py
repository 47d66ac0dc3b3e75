"""Tiny models of the architectures that recipes are for, built from their configurations: what a dry run learns on.

Each is the stock class of transformers with its stock processor, random weights and a few thousand of them a layer.
The tokenizer is the embedded base's (bytes and some hundred words), so any text can be read, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from streamcvit.errors import UserError
from streamcvit.models.processor import EMBEDDED, image_only, load_config, resolve

WIDTH, LAYERS, SIDE, PATCH = 32, 2, 32, 16
"""Hidden size of both halves, layers of towers; pixels of a picture's and a patch's side."""
_HEADS = 2
_SQUARE = {"height": SIDE, "width": SIDE}
_LENGTH = 8192  # positions: published settings of picture and row sizes have to find room
_CHAT = (
    "{{% for message in messages %}}{{{{ '<|' + message['role'] + '|>' }}}}"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{place}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{{{ '<|end|>' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|assistant|>' }}}}{{% endif %}}"
)
_TURNS = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


def save_tiny(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Save a tiny model of an architecture, with its processor, as `load_base` reads it.

    Args:
        architecture: a name in `TINY`, as `model_type` in a model's config.json says it.
        folder: to make.
        seed: of the weights.

    Raises:
        UserError: an architecture that there is no tiny model of.
    """
    if architecture not in TINY:
        raise UserError(
            f"there is no tiny model of the architecture {architecture!r}",
            where="model.architecture",
            fix=f"Choose from {', '.join(TINY)}",
        )
    cls, config, processor = TINY[architecture]()
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:  # wider than stock scales, which leave so small a model without an opinion
                    parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
    text = config.get_text_config()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = text.eos_token_id, text.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def architecture_of(name_or_path: str, revision: str = "") -> str:
    """The `model_type` of a model, of which only the configuration is read."""
    return str(load_config(name_or_path, revision).model_type)


def _tokenizer(**named: str) -> Any:
    """The embedded base's tokenizer with marks of turns, and a special token for each of `named`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(Path(resolve(EMBEDDED)) / "tokenizer.json"))
    backend.add_special_tokens([*_TURNS, *named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<|end|>",
        extra_special_tokens=named, model_max_length=_LENGTH, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 1, "num_attention_heads": _HEADS, "num_key_value_heads": _HEADS,
        "max_position_embeddings": _LENGTH, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, **more,
    }  # fmt: skip


def _tower(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": _HEADS, "image_size": SIDE, "patch_size": PATCH, **more,
    }  # fmt: skip


Parts = tuple[type, Any, Any]
"""Class of the model, its configuration, its processor."""


def _llava() -> Parts:
    """LLaVA-1.5: CLIP's last layer but one, a perceptron of two layers, Llama."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer(image_token="<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_tower(projection_dim=WIDTH)),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=_SQUARE, crop_size=_SQUARE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT.format(place="<image>"),
    )
    return LlavaForConditionalGeneration, config, processor


def _internvl() -> Parts:
    """InternVL3.5: tiles of a picture, pixels unshuffled, Qwen3."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = _tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen3", **_text(tokenizer, head_dim=WIDTH // _HEADS)},
        vision_config=_tower(image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH]),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=(SIDE // PATCH // 2) ** 2,
    )
    processor = image_only(InternVLProcessor)(
        GotOcr2ImageProcessorPil(size=_SQUARE, crop_to_patches=True, max_patches=2),
        tokenizer,
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        chat_template=_CHAT.format(place="<IMG_CONTEXT>"),
    )
    return InternVLForConditionalGeneration, config, processor


def _gemma3() -> Parts:
    """Gemma-3: SigLIP, pooled image tokens that see each other both ways, a sliding window."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = _tokenizer(image_token="<image_soft>", boi_token="<boi>", eoi_token="<eoi>")
    config = Gemma3Config(
        text_config=_text(
            tokenizer, head_dim=WIDTH // _HEADS, query_pre_attn_scalar=WIDTH // _HEADS, sliding_window=64,
            num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config=_tower(model_type="siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size=_SQUARE), tokenizer, image_seq_length=4, chat_template=_CHAT.format(place="<boi>")
    )
    return Gemma3ForConditionalGeneration, config, processor


def _instructblip() -> Parts:
    """InstructBLIP-Vicuna: a Q-Former that reads the prompt through a tokenizer of its own, Llama."""
    from tokenizers import processors
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    queries, tokenizer = 4, _tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(  # as Vicuna's: it puts BOS in front
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    words = word_tokenizer()
    processor = InstructBlipProcessor(  # which adds the image token
        BlipImageProcessorPil(size=_SQUARE), tokenizer, num_query_tokens=queries, qformer_tokenizer=words
    )
    config = InstructBlipConfig(
        vision_config=_tower(),
        qformer_config={
            "vocab_size": len(words), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS, "num_attention_heads": _HEADS, "encoder_hidden_size": WIDTH,
        },
        text_config={"model_type": "llama", **_text(tokenizer)},
        num_query_tokens=queries,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return InstructBlipForConditionalGeneration, config, processor


def word_tokenizer() -> Any:
    """A tokenizer like BERT's, which the Q-Former has: [CLS] and [SEP] around the text, lower case, by letters."""
    import string

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    backend = Tokenizer(models.WordPiece({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=512,
    )  # fmt: skip


def _qwen2_5_vl() -> Parts:
    """Qwen2.5-VL: as many image tokens as the picture's shape asks for, positions of three axes."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = _qwen_tokenizer()
    tower = _qwen_tower(window_size=16, fullatt_block_indexes=[1])
    config = Qwen2_5_VLConfig(text_config=_qwen_text(tokenizer), vision_config=tower, **_qwen_ids(tokenizer))
    return Qwen2_5_VLForConditionalGeneration, config, _qwen_processor(Qwen2_5_VLProcessor, tokenizer)


def _qwen3_vl() -> Parts:
    """Qwen3-VL: features of several layers of the tower enter several layers of the language model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    tokenizer = _qwen_tokenizer()
    tower = _qwen_tower(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    words = _qwen_text(tokenizer, head_dim=WIDTH // _HEADS, num_hidden_layers=LAYERS)
    config = Qwen3VLConfig(text_config=words, vision_config=tower, **_qwen_ids(tokenizer))
    return Qwen3VLForConditionalGeneration, config, _qwen_processor(Qwen3VLProcessor, tokenizer)


def _qwen_tokenizer() -> Any:
    return _tokenizer(
        image_token="<|image_pad|>", video_token="<|video_pad|>", vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )  # fmt: skip


def _qwen_text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return _text(tokenizer, rope_parameters=rope, **more)


def _qwen_tower(**more: Any) -> dict[str, Any]:
    return {
        "depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_heads": _HEADS, "patch_size": 4,
        "spatial_merge_size": 2, "out_hidden_size": WIDTH, **more,
    }  # fmt: skip


def _qwen_ids(tokenizer: Any) -> dict[str, Any]:
    return {
        "image_token_id": tokenizer.image_token_id, "video_token_id": tokenizer.video_token_id,
        "vision_start_token_id": tokenizer.vision_start_token_id, "vision_end_token_id": tokenizer.vision_end_token_id,
    }  # fmt: skip


def _qwen_processor(cls: Any, tokenizer: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pixels = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
    )
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    return image_only(cls)(pixels, tokenizer, chat_template=_CHAT.format(place=place))


TINY: dict[str, Callable[[], Parts]] = {
    "llava": _llava,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "instructblip": _instructblip,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
"""Architecture, as `model_type` names it -> the parts of a tiny model of it."""
