"""Tiny models of five families, built from their configs: no network, no torchvision, well under a second each.

Each helper gives a (model, processor) pair; `save(pair, folder)` writes what `load_base(folder)` reads. Weights are
random but seeded, and drawn wide enough that greedy answers differ from prompt to prompt.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from streamcvit.data.sample import PICTURE, Picture, Sample, Turn
from streamcvit.models.base import Base
from streamcvit.models.processor import image_only

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ IMAGE }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"]
PAD, BOS, EOS, END = 0, 1, 2, 5


def tiny_tokenizer(**named: str) -> Any:
    """A byte-level tokenizer: 6 special tokens, then one for each of `named`, then the 256 bytes.

    Args:
        named: attribute name -> special token text, as in `image_token="<image>"`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = SPECIAL + list(named.values()) + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=named,
    )


def tiny_llava(width: int = 32, layers: int = 2, chat: bool = True) -> tuple[Any, Any]:
    """LLaVA with a CLIP tower: 16 image tokens of a 32x32 picture; `chat=False` leaves the chat template out."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tiny_tokenizer(image_token="<image>")
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8, projection_dim=width,
    )  # fmt: skip
    text = LlamaConfig(**_text(len(tokenizer), width, layers))
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id, vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=16,
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "'<image>'") if chat else None,
    )
    return _model(LlavaForConditionalGeneration, config), processor


def tiny_qwen25vl(width: int = 32, layers: int = 2) -> tuple[Any, Any]:
    """Qwen2.5-VL: as many image tokens as the picture's shape asks for, three-dimensional positions."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = tiny_tokenizer(
        image_token="<|image_pad|>", video_token="<|video_pad|>", vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config={
            **_text(len(tokenizer), width, layers),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 2, "patch_size": 4,
            "spatial_merge_size": 2, "window_size": 16, "out_hidden_size": width, "fullatt_block_indexes": [1],
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
    )  # fmt: skip
    processor = image_only(Qwen2_5_VLProcessor)(
        Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
        ),
        tokenizer,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "'<|vision_start|><|image_pad|><|vision_end|>'"),
    )
    return _model(Qwen2_5_VLForConditionalGeneration, config), processor


def tiny_qwen3vl(width: int = 32, layers: int = 2) -> tuple[Any, Any]:
    """Qwen3-VL: features of several vision layers enter several language layers (deepstack)."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = tiny_tokenizer(
        image_token="<|image_pad|>", video_token="<|video_pad|>", vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )  # fmt: skip
    config = Qwen3VLConfig(
        text_config={
            **_text(len(tokenizer), width, layers),
            "head_dim": width // 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 2, "patch_size": 4,
            "spatial_merge_size": 2, "out_hidden_size": width, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
    )  # fmt: skip
    processor = image_only(Qwen3VLProcessor)(
        Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
        ),
        tokenizer,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "'<|vision_start|><|image_pad|><|vision_end|>'"),
    )
    return _model(Qwen3VLForConditionalGeneration, config), processor


def tiny_gemma3(width: int = 32, layers: int = 2) -> tuple[Any, Any]:
    """Gemma-3: image tokens see each other both ways, so `token_type_ids` matter; one sliding-window layer."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = tiny_tokenizer(image_token="<image_soft>", boi_token="<boi>", eoi_token="<eoi>")
    config = Gemma3Config(
        text_config={
            **_text(len(tokenizer), width, layers), "head_dim": width // 2, "query_pre_attn_scalar": width // 2,
            "sliding_window": 64, "layer_types": ["sliding_attention"] + ["full_attention"] * (layers - 1),
        },
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": width, "intermediate_size": 2 * width,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "'<boi>'"),
    )
    return _model(Gemma3ForConditionalGeneration, config), processor


def tiny_internvl(width: int = 32, layers: int = 2) -> tuple[Any, Any]:
    """InternVL: wide pictures are cut into tiles, 4 image tokens a tile."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = tiny_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **_text(len(tokenizer), width, layers)},
        vision_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": [32, 32], "patch_size": [8, 8],
        },
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )  # fmt: skip
    processor = image_only(InternVLProcessor)(
        GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=3),
        tokenizer,
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "'<IMG_CONTEXT>'"),
    )
    return _model(InternVLForConditionalGeneration, config), processor


def tiny_aria(width: int = 32, layers: int = 2) -> tuple[Any, Any]:
    """ARIA: pictures are padded to squares, so that the tower must be told of the padding (`pixel_mask`)."""
    from transformers import AriaConfig, AriaForConditionalGeneration, AriaProcessor
    from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

    tokenizer = tiny_tokenizer(image_token="<|img|>")
    config = AriaConfig(
        text_config={
            **_text(len(tokenizer), width, layers), "moe_num_experts": 2, "moe_topk": 1, "moe_num_shared_experts": 1,
        },
        vision_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 980, "patch_size": 70,
        },
        projector_patch_to_query_dict={196: 4},
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    processor = AriaProcessor(
        AriaImageProcessorPil(),
        tokenizer,
        size_conversion={980: 4},
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "'<|img|>'"),
    )
    return _model(AriaForConditionalGeneration, config), processor


def tiny_paligemma(width: int = 32, layers: int = 2) -> tuple[Any, Any]:
    """PaliGemma: the prompt's tokens see each other both ways, an answer's only what stands before them."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = tiny_tokenizer(image_token="<image>")
    pixels = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pixels.image_seq_length = 16
    processor = PaliGemmaProcessor(pixels, tokenizer)
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **_text(len(tokenizer), width, layers), "head_dim": width // 2},
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": width, "intermediate_size": 2 * width,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
            "vision_use_head": False,
        },
        projection_dim=width,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    return _model(PaliGemmaForConditionalGeneration, config), processor


def tiny_llama(width: int = 32, layers: int = 2) -> Any:
    """A text-only Llama of 97 tokens, without a processor; its answers end at the length asked for only."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _model(LlamaForCausalLM, LlamaConfig(**{**_text(97, width, layers), "eos_token_id": None}))


TINY: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": tiny_llava,
    "qwen25vl": tiny_qwen25vl,
    "qwen3vl": tiny_qwen3vl,
    "gemma3": tiny_gemma3,
    "internvl": tiny_internvl,
}


def tiny_base(kind: str) -> Base:
    """A freshly built base of that family; wrap and change it as you like."""
    return Base(*TINY[kind]())


def save(pair: tuple[Any, Any], folder: Path | str) -> Path:
    """Writes model and processor into `folder` as `load_base` reads them."""
    model, processor = pair
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def picture(seed: int = 0, size: tuple[int, int] = (32, 32), image_format: str = "PNG") -> bytes:
    """Encoded noise with a bright block, another one for each seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    x, y = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
    pixels[y : y + size[1] // 2, x : x + size[0] // 2] = rng.integers(0, 255, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format)
    return stream.getvalue()


def tiny_samples(
    n: int, seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((32, 32), (70, 33), (40, 90))
) -> list[Sample]:
    """n samples with ragged questions, two instructions, and pictures of several shapes."""
    words = ("red", "blue", "seven", "a cat on a mat", "no")
    return [
        Sample(
            sample_id=f"s{seed}-{i}",
            task="tiny",
            question="What is " + "very " * (i * 7 % 5) + f"visible in picture {i}?",
            instruction=("Answer with one word.", "Describe it in a sentence.")[i % 2],
            answers=(words[i % len(words)],),
            pictures=(Picture(picture(seed * 1000 + i, sizes[i % len(sizes)])),),
        )
        for i in range(n)
    ]


def tiny_conversations() -> dict[str, Sample]:
    """Samples of every shape a conversation may have, by what is special about them."""
    first, second, third = (Picture(picture(90 + k, size)) for k, size in enumerate(((32, 32), (70, 33), (40, 90))))

    def sample(name: str, question: str, answer: str, **more: Any) -> Sample:
        return Sample(name, "tiny", question, "Answer with one word.", (answer,), **more)

    return {
        "one": sample("one", "What is it?", "red", pictures=(first,)),
        "none": sample("none", "What is two and two?", "four"),
        "two": sample(
            "two", f"Is {PICTURE} as large as {PICTURE}?", "no", pictures=(second, first), system="You are brief."
        ),
        "turns": sample(
            "turns", f"And now {PICTURE}, is it the same?", "not at all", pictures=(first, third),
            turns=(Turn(f"{PICTURE}Which colour?", "yes red"), Turn("Say yes red.", "yes red")),
        ),
        "talk": sample("talk", "Why?", "so", turns=(Turn("Who?", "me"),)),
    }  # fmt: skip


def _text(vocabulary: int, width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": PAD,
        "bos_token_id": BOS, "eos_token_id": EOS,
    }  # fmt: skip


def _model(cls: Any, config: Any) -> Any:
    """A seeded model whose matrices are wider than the stock init, so that logits are not nearly equal."""
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
    model.generation_config.eos_token_id = config.get_text_config().eos_token_id
    model.generation_config.pad_token_id = PAD
    return model.requires_grad_(False)
