"""Model families of transformers' image-text-to-text mapping, each built tiny from its config with its own processor.

`FAMILIES` names a builder of a (model, processor) pair for each; those of `NEEDS` cannot be built without the named
packages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from models import (
    CHAT_TEMPLATE,
    _model,
    _text,
    tiny_aria,
    tiny_gemma3,
    tiny_internvl,
    tiny_llava,
    tiny_paligemma,
    tiny_qwen3vl,
    tiny_qwen25vl,
    tiny_tokenizer,
)
from qformer_models import tiny_blip2, tiny_instructblip

from streamcvit.models.processor import image_only

WIDTH = 32
Pair = tuple[Any, Any]
SQUARE = {"height": 32, "width": 32}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
FEW_PIXELS = {"shortest_edge": 256, "longest_edge": 1024}
QWEN = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}  # fmt: skip
QWEN_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


def _of(name: str) -> Any:
    """What transformers calls so."""
    import transformers

    return getattr(transformers, name)


def _part(model: str, name: str, kind: str = "processing") -> Any:
    """A class out of its own file: transformers' front hides some behind packages that they do not need."""
    return getattr(importlib.import_module(f"transformers.models.{model}.{kind}_{model}"), name)


def _pixels(model: str, name: str, **options: Any) -> Any:
    return _part(model, f"{name}ImageProcessorPil", "image_processing_pil")(**options)


def _chat(place: str) -> str:
    return CHAT_TEMPLATE.replace("IMAGE", f"'{place}'")


def _clip(model_type: str = "clip_vision_model", **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, **more,
    }  # fmt: skip


def _siglip(**more: Any) -> dict[str, Any]:
    return _clip("siglip_vision_model", vision_use_head=False, **more)


def _qwen_tower(**more: Any) -> dict[str, Any]:
    return {
        "depth": 2, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "out_hidden_size": WIDTH, **more,
    }  # fmt: skip


def _words(tokenizer: Any, model_type: str | None = None, **more: Any) -> dict[str, Any]:
    own = {} if model_type is None else {"model_type": model_type}
    return {**own, **_text(len(tokenizer), WIDTH, 2), **more}


def _built(name: str, config: Any) -> Any:
    return _model(_of(f"{name}ForConditionalGeneration"), config)


def llava_next() -> Pair:
    tokenizer = tiny_tokenizer(image_token="<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    config = _of("LlavaNextConfig")(
        vision_config=_clip(projection_dim=WIDTH), text_config=_words(tokenizer, "llama"),
        image_token_index=tokenizer.image_token_id, image_grid_pinpoints=grid, image_seq_length=16,
        vision_feature_layer=-1,
    )  # fmt: skip
    pixels = _pixels("llava_next", "LlavaNext", size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=grid)
    processor = _of("LlavaNextProcessor")(
        pixels, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_chat("<image>"),
    )  # fmt: skip
    return _built("LlavaNext", config), processor


def llava_onevision() -> Pair:
    tokenizer = tiny_tokenizer(image_token="<image>", video_token="<video>")
    grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = _of("LlavaOnevisionConfig")(
        vision_config=_siglip(), text_config=_words(tokenizer, "qwen2"), image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id, image_grid_pinpoints=grid, vision_aspect_ratio="anyres_max_4",
    )  # fmt: skip
    processor = image_only(_of("LlavaOnevisionProcessor"))(
        _pixels("llava_onevision", "LlavaOnevision", size=SQUARE, image_grid_pinpoints=grid), tokenizer,
        num_image_tokens=16, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_4",
        chat_template=_chat("<image>"),
    )  # fmt: skip
    return _built("LlavaOnevision", config), processor


def vipllava() -> Pair:
    model, processor = tiny_llava()
    config = _of("VipLlavaConfig")(
        vision_config=model.config.vision_config, text_config=model.config.text_config,
        image_token_index=model.config.image_token_id, vision_feature_layers=[-1, -2], vision_feature_layer=[-1, -2],
        image_seq_length=16,
    )  # fmt: skip
    return _built("VipLlava", config), processor


def idefics2() -> Pair:
    tokenizer = tiny_tokenizer(
        image_token="<image>", image_boundary_token="<fake_token_around_image>", end_token="<end_of_utterance>"
    )
    config = _of("Idefics2Config")(
        vision_config=_clip("idefics2_vision"), text_config=_words(tokenizer, "mistral"),
        perceiver_config={
            "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16,
            "num_key_value_heads": 1, "hidden_size": WIDTH,
        },
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    pixels = _pixels("idefics2", "Idefics2", size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False)
    processor = _of("Idefics2Processor")(pixels, tokenizer, image_seq_len=4, chat_template=_chat("<image>"))
    return _built("Idefics2", config), processor


def _tiles() -> dict[str, str]:
    """Words for the rows and columns of Idefics-3's tiles."""
    return {f"row_{r}_col_{c}_token": f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)}


def _idefics3(name: str, folder: str, tower: str, processor_of: Callable[..., Any]) -> Pair:
    tokenizer = tiny_tokenizer(
        image_token="<image>", fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>", **_tiles(),
    )  # fmt: skip
    config = _of(f"{name}Config")(
        vision_config=_clip(tower), text_config=_words(tokenizer, "llama"), scale_factor=2,
        image_token_id=tokenizer.image_token_id, pad_token_id=0,
    )  # fmt: skip
    pixels = _pixels(folder, name, size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = processor_of(pixels, tokenizer, image_seq_len=4, chat_template=_chat("<image>"))
    return _built(name, config), processor


def idefics3() -> Pair:
    return _idefics3("Idefics3", "idefics3", "idefics3_vision", _of("Idefics3Processor"))


def smolvlm() -> Pair:
    processor_of = partial(image_only(_of("SmolVLMProcessor")), video_processor=None)
    return _idefics3("SmolVLM", "smolvlm", "smolvlm_vision", processor_of)


def qwen2_vl() -> Pair:
    tokenizer = tiny_tokenizer(**QWEN)
    config = _of("Qwen2VLConfig")(
        text_config=_words(tokenizer, rope_parameters=MROPE),
        vision_config={
            "depth": 2, "embed_dim": WIDTH, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
            "hidden_size": WIDTH, "mlp_ratio": 2,
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _built("Qwen2VL", config), _qwen_processor("Qwen2VL", tokenizer)


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "image_token_id": tokenizer.image_token_id, "video_token_id": tokenizer.video_token_id,
        "vision_start_token_id": tokenizer.vision_start_token_id, "vision_end_token_id": tokenizer.vision_end_token_id,
    }  # fmt: skip


def _qwen_processor(name: str, tokenizer: Any) -> Any:
    pixels = _pixels("qwen2_vl", "Qwen2VL", patch_size=4, merge_size=2, temporal_patch_size=2, size=FEW_PIXELS)
    return image_only(_of(f"{name}Processor"))(pixels, tokenizer, chat_template=_chat(QWEN_PLACE))


def qwen3_vl_moe() -> Pair:
    tokenizer = tiny_tokenizer(**QWEN)
    config = _of("Qwen3VLMoeConfig")(
        text_config=_words(
            tokenizer, head_dim=16, rope_parameters=MROPE, moe_intermediate_size=16, num_experts=4,
            num_experts_per_tok=2,
        ),
        vision_config=_qwen_tower(num_position_embeddings=64, deepstack_visual_indexes=[0, 1]),
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _built("Qwen3VLMoe", config), _qwen_processor("Qwen3VL", tokenizer)


def _qwen35(name: str, **more: Any) -> Pair:
    tokenizer = tiny_tokenizer(**QWEN)
    config = _of(f"{name}Config")(
        text_config=_words(
            tokenizer, head_dim=16, rope_parameters={**MROPE, "partial_rotary_factor": 1.0},
            layer_types=["linear_attention", "full_attention"], linear_key_head_dim=8, linear_value_head_dim=8,
            linear_num_key_heads=2, linear_num_value_heads=4, **more,
        ),
        vision_config=_qwen_tower(num_position_embeddings=64),
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _built(name, config), _qwen_processor("Qwen3VL", tokenizer)


def qwen3_5() -> Pair:
    return _qwen35("Qwen3_5")


def qwen3_5_moe() -> Pair:
    return _qwen35(
        "Qwen3_5Moe", moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    )


def gemma3n() -> Pair:
    tokenizer = tiny_tokenizer(
        image_token="<image_soft>", boi_token="<boi>", eoi_token="<eoi>", audio_token="<audio>", boa_token="<boa>",
        eoa_token="<eoa>",
    )  # fmt: skip
    size = len(tokenizer)
    config = _of("Gemma3nConfig")(
        text_config=_words(
            tokenizer, head_dim=16, layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0,
            vocab_size_per_layer_input=size, hidden_size_per_layer_input=8, laurel_rank=4, sliding_window=64,
            altup_num_inputs=2, activation_sparsity_pattern=[0.0, 0.0], intermediate_size=[2 * WIDTH] * 2,
        ),
        vision_config={
            "architecture": "test_convnext", "hidden_size": 64, "vocab_size": 8, "vocab_offset": size,
            "do_pooling": False, "model_args": {},
        },
        audio_config={
            "hidden_size": WIDTH, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2, "vocab_size": 8,
            "vocab_offset": size + 8, "input_feat_size": 32, "sscp_conv_channel_size": (8, 4),
        },
        vision_soft_tokens_per_image=4, image_token_id=tokenizer.image_token_id, boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id, audio_token_id=tokenizer.audio_token_id,
        boa_token_id=tokenizer.boa_token_id, eoa_token_id=tokenizer.eoa_token_id,
    )  # fmt: skip
    processor = _of("Gemma3nProcessor")(
        _of("Gemma3nAudioFeatureExtractor")(), _pixels("siglip", "Siglip", size={"height": 64, "width": 64}), tokenizer,
        image_seq_length=4, chat_template=_chat("<image_soft>"),
    )  # fmt: skip
    return _built("Gemma3n", config), processor


def gemma4() -> Pair:
    tokenizer = tiny_tokenizer(
        image_token="<|image|>", boi_token="<boi>", eoi_token="<eoi>", audio_token="<audio>", boa_token="<boa>",
        eoa_token="<eoa>", video_token="<|video|>",
    )  # fmt: skip
    config = _of("Gemma4Config")(
        text_config=_words(
            tokenizer, head_dim=16, global_head_dim=16, layer_types=["sliding_attention", "full_attention"],
            sliding_window=64, vocab_size_per_layer_input=len(tokenizer), hidden_size_per_layer_input=8,
        ),
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config=None, image_token_id=tokenizer.image_token_id, boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id, video_token_id=tokenizer.video_token_id,
    )  # fmt: skip
    pixels = _pixels("gemma4", "Gemma4", patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    extractor = _of("Gemma4AudioFeatureExtractor")()
    processor = image_only(_of("Gemma4Processor"))(
        feature_extractor=extractor, image_processor=pixels, tokenizer=tokenizer, video_processor=None,
        image_seq_length=70, chat_template=_chat("<|image|>"),
    )  # fmt: skip
    return _built("Gemma4", config), processor


def _mistral3(text: str, name: str = "Mistral3") -> Pair:
    tokenizer = tiny_tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    config = _of(f"{name}Config")(
        vision_config=_clip("pixtral", image_size=64), text_config=_words(tokenizer, text, head_dim=16),
        image_token_index=tokenizer.image_token_id, spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    pixels = _pixels("pixtral", "Pixtral", size={"longest_edge": 48}, patch_size={"height": 8, "width": 8})
    processor = _part("pixtral", "PixtralProcessor")(
        pixels, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=_chat("[IMG]")
    )
    return _built(name, config), processor


def mistral3() -> Pair:
    return _mistral3("mistral")


def pixtral() -> Pair:
    """The form of the Pixtral checkpoints: a LLaVA with Pixtral's tower and processor."""
    tokenizer = tiny_tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    config = _of("LlavaConfig")(
        vision_config=_clip("pixtral", image_size=64), text_config=_words(tokenizer, "mistral", head_dim=16),
        image_token_index=tokenizer.image_token_id, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    pixels = _pixels("pixtral", "Pixtral", size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})
    processor = _part("pixtral", "PixtralProcessor")(pixels, tokenizer, patch_size=8, chat_template=_chat("[IMG]"))
    return _built("Llava", config), processor


def aya_vision() -> Pair:
    tokenizer = tiny_tokenizer(
        image_token="<image>", start="<|START_OF_IMG|>", end="<|END_OF_IMG|>", patch="<|IMG_PATCH|>",
        line="<|IMG_LINE_BREAK|>",
    )  # fmt: skip
    config = _of("AyaVisionConfig")(
        vision_config=_siglip(), text_config=_words(tokenizer, "cohere2", head_dim=16, sliding_window=64),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"), downsample_factor=2,
    )  # fmt: skip
    pixels = _pixels("got_ocr2", "GotOcr2", size=SQUARE, crop_to_patches=True, max_patches=3)
    processor = _of("AyaVisionProcessor")(
        pixels, tokenizer, patch_size=8, img_size=32, downsample_factor=2, chat_template=_chat("<image>")
    )
    return _built("AyaVision", config), processor


def cohere2_vision() -> Pair:
    tokenizer = tiny_tokenizer(
        image_token="<|IMG_PATCH|>", boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )  # fmt: skip
    config = _of("Cohere2VisionConfig")(
        vision_config=_siglip(), text_config=_words(tokenizer, "cohere2", head_dim=16, sliding_window=64),
        downsample_factor=2, alignment_intermediate_size=64, image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    pixels = _of("Cohere2VisionImageProcessor")(size=SQUARE, max_patches=3, patch_size=2)
    processor = _of("Cohere2VisionProcessor")(pixels, tokenizer, chat_template=_chat("<|IMG_PATCH|>"))
    return _built("Cohere2Vision", config), processor


def _glm(name: str, folder: str, config_name: str, **more: Any) -> Pair:
    tokenizer = tiny_tokenizer(
        image_token="<|image|>", video_token="<|video|>", image_start_token="<|begin_of_image|>",
        image_end_token="<|end_of_image|>", video_start_token="<|begin_of_video|>", video_end_token="<|end_of_video|>",
    )  # fmt: skip
    halved = {**MROPE, "partial_rotary_factor": 1.0}
    text = _words(tokenizer, rope_parameters=halved if more else MROPE, **more)
    if config_name == "Glm46V":
        text["model_type"] = "glm4v_text"
    tower = _qwen_tower(image_size=32, intermediate_size=2 * WIDTH)
    if config_name == "Glm46V":
        tower["model_type"] = "glm4v_vision"
    config = _of(f"{config_name}Config")(
        text_config=text, vision_config=tower,
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
        image_start_token_id=tokenizer.image_start_token_id, image_end_token_id=tokenizer.image_end_token_id,
        video_start_token_id=tokenizer.video_start_token_id, video_end_token_id=tokenizer.video_end_token_id,
    )  # fmt: skip
    pixels = _pixels(
        folder, name, patch_size=4, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 512, "longest_edge": 2048},
    )  # fmt: skip
    processor = image_only(_of(f"{name}Processor"))(
        pixels, tokenizer, chat_template=_chat("<|begin_of_image|><|image|><|end_of_image|>")
    )
    return _built(config_name, config), processor


def glm4v() -> Pair:
    return _glm("Glm4v", "glm4v", "Glm4v")


def glm46v() -> Pair:
    return _glm("Glm46V", "glm46v", "Glm46V")


def glm4v_moe() -> Pair:
    return _glm(
        "Glm4v", "glm4v", "Glm4vMoe", moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2,
        n_shared_experts=1, first_k_dense_replace=1,
    )  # fmt: skip


def lfm2_vl() -> Pair:
    tokenizer = tiny_tokenizer(
        image_token="<image>", image_start_token="<|image_start|>", image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
    )  # fmt: skip
    config = _of("Lfm2VlConfig")(
        vision_config={**_clip("siglip2_vision_model", num_patches=64, vision_use_head=False)},
        text_config=_words(
            tokenizer, "lfm2", layer_types=["full_attention", "conv"], block_ff_dim=64,
            block_auto_adjust_ff_dim=False,
        ),
        downsample_factor=2, projector_hidden_size=64, image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    pixels = _of("Lfm2VlImageProcessor")(
        encoder_patch_size=8, downsample_factor=2, tile_size=32, max_num_patches=64, min_image_tokens=4,
        max_image_tokens=16, do_image_splitting=False,
    )  # fmt: skip
    processor = _of("Lfm2VlProcessor")(pixels, tokenizer, chat_template=_chat("<image>"))
    return _built("Lfm2Vl", config), processor


def fast_vlm() -> Pair:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tiny_tokenizer(image_token="<image>")
    config = _of("FastVlmConfig")(
        vision_config={
            "model_type": "timm_wrapper", "architecture": "test_convnext", "hidden_size": 64, "do_pooling": False,
            "model_args": {},
        },
        text_config=_words(tokenizer, "qwen2"), image_token_index=tokenizer.image_token_id, image_seq_length=4,
    )  # fmt: skip
    processor = _of("LlavaProcessor")(
        CLIPImageProcessorPil(size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64}), tokenizer,
        patch_size=32, vision_feature_select_strategy="full", chat_template=_chat("<image>"),
    )  # fmt: skip
    return _built("FastVlm", config), processor


def deepseek_vl() -> Pair:
    tokenizer = tiny_tokenizer(image_token="<image_placeholder>")
    config = _of("DeepseekVLConfig")(
        vision_config=_siglip(), text_config=_words(tokenizer, "llama"), image_token_id=tokenizer.image_token_id
    )
    processor = _of("DeepseekVLProcessor")(
        _pixels("deepseek_vl", "DeepseekVL", size=SQUARE), tokenizer, num_image_tokens=16,
        chat_template=_chat("<image_placeholder>"),
    )  # fmt: skip
    return _built("DeepseekVL", config), processor


def janus() -> Pair:
    tokenizer = tiny_tokenizer(image_token="<image_placeholder>", boi_token="<begin>", eoi_token="<end>")
    config = _of("JanusConfig")(
        text_config=_words(tokenizer, "llama"),
        vision_config={
            "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
            "projection_dim": WIDTH, "num_image_tokens": 16, "mlp_ratio": 2.0,
        },
        vq_config={
            "embed_dim": 8, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32,
            "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4, "projection_dim": WIDTH,
            "image_token_embed_dim": WIDTH,
        },
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    processor = _of("JanusProcessor")(
        _pixels("janus", "Janus", size=SQUARE), tokenizer, num_image_tokens=16,
        chat_template=_chat("<image_placeholder>"),
    )  # fmt: skip
    return _built("Janus", config), processor


def molmo2() -> Pair:
    words = ("im_patch", "im_col", "im_start", "low_res_im_start", "frame_start", "im_end", "frame_end", "im_low")
    tokenizer = tiny_tokenizer(
        image_token="<|image|>", video_token="<|video|>", **{f"{word}_token": f"<{word}>" for word in words}
    )
    ids = tokenizer.convert_tokens_to_ids
    config = _of("Molmo2Config")(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "image_size": [32, 32], "patch_size": 8,
        },
        adapter_config={
            "vision_feature_layer": [-1, -2], "hidden_size": WIDTH, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 2 * WIDTH, "text_hidden_size": WIDTH,
        },
        text_config=_words(tokenizer, head_dim=16, additional_vocab_size=4),
        image_start_token_id=ids("<im_start>"), low_res_image_start_token_id=ids("<low_res_im_start>"),
        image_end_token_id=ids("<im_end>"), image_patch_id=ids("<im_patch>"),
        frame_start_token_id=ids("<frame_start>"), frame_end_token_id=ids("<frame_end>"),
    )  # fmt: skip
    pixels = _of("Molmo2ImageProcessor")(size=SQUARE, patch_size=8, max_crops=2, overlap_margins=[1, 1])
    processor = image_only(_of("Molmo2Processor"))(
        image_processor=pixels, video_processor=None, tokenizer=tokenizer, chat_template=_chat("<|image|>")
    )
    return _built("Molmo2", config), processor


FAMILIES: dict[str, Callable[[], Pair]] = {
    "llava": tiny_llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "vipllava": vipllava,
    "idefics2": idefics2,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": tiny_qwen25vl,
    "qwen3_vl": tiny_qwen3vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "internvl": tiny_internvl,
    "gemma3": tiny_gemma3,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "paligemma": tiny_paligemma,
    "mistral3": mistral3,
    "pixtral": pixtral,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "glm4v": glm4v,
    "glm46v": glm46v,
    "glm4v_moe": glm4v_moe,
    "lfm2_vl": lfm2_vl,
    "fast_vlm": fast_vlm,
    "deepseek_vl": deepseek_vl,
    "janus": janus,
    "molmo2": molmo2,
    "aria": tiny_aria,
    "blip2": tiny_blip2,
    "instructblip": tiny_instructblip,
}
NEEDS = {
    "cohere2_vision": ("torchvision",), "lfm2_vl": ("torchvision",), "molmo2": ("torchvision",),
    "fast_vlm": ("timm", "torchvision"), "gemma3n": ("timm", "torchvision"), "mistral3": ("torchvision",),
    "pixtral": ("torchvision",), "smolvlm": ("num2words",),
}  # fmt: skip
"""Packages without which a family's processor or tower cannot be had from transformers."""
