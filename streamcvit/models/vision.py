"""The frozen half of a vision-language model: image features, computed apart from the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from streamcvit.models.batch import ModelInputs

# What the processors give that only the vision tower reads.
_PIXELS = frozenset({"pixel_values", "pixel_attention_mask", "image_sizes"})
_TOWER = _PIXELS | {"image_grid_thw"}


@dataclass(frozen=True)
class Vision:
    """Image features of B samples, one image each.

    Attributes:
        outputs: what `get_image_features` gave, for `mm_encoder_outputs={"image": outputs}`; `pooler_output` holds
            the projected features, in the layout that the model's forward expects.
        features: per sample, its projected features [image tokens, D], views into `outputs`.
        pooled: [B, D] float32, the mean over each sample's image tokens: what routers read.
    """

    outputs: Any
    features: tuple[torch.Tensor, ...]
    pooled: torch.Tensor


@torch.no_grad()
def encode_images(model: Any, inputs: ModelInputs) -> Vision:
    """Runs the vision tower and the projector, without gradient.

    Args:
        model: a Hugging Face image-text-to-text model, or a PEFT model around one.
        inputs: with `pixel_values` and whatever else the tower reads; on the model's device.
    """
    tower = {name: tensor for name, tensor in inputs.tensors.items() if name in _TOWER}
    outputs = unwrap(model).get_image_features(**tower, return_dict=True)
    # Only the projected features are read from here on; the tower's hidden states would be kept alive for nothing.
    for name in ("last_hidden_state", "hidden_states", "attentions"):
        if getattr(outputs, name, None) is not None:
            setattr(outputs, name, None)
    features = _split(outputs.pooler_output, inputs.image_mask)
    return Vision(outputs, features, torch.stack([feature.float().mean(0) for feature in features]))


def join_features(features: Sequence[torch.Tensor], like: Any) -> Any:
    """Encoder outputs of a new batch, from per-sample features that `encode_images` gave in other batches.

    Args:
        features: per sample, [image tokens, D].
        like: the encoder outputs of any earlier batch of the same model; sets type and layout.

    Raises:
        ValueError: the outputs are not `joinable`.
    """
    if not joinable(like):
        raise ValueError("these encoder outputs hold more than the projected features, which joining would lose")
    held = like.pooler_output
    if isinstance(held, torch.Tensor):
        joined: Any = torch.cat(list(features))
        if held.ndim == 3:
            joined = joined.unflatten(0, (-1, held.shape[1]))
    else:
        joined = type(held)(features)
    return type(like)(pooler_output=joined)


def joinable(outputs: Any) -> bool:
    """Whether the projected features are all there is to encoder outputs (not so in Qwen3-VL, with deepstack)."""
    return all(value is None for name, value in vars(outputs).items() if name != "pooler_output")


def text_tensors(inputs: ModelInputs) -> dict[str, torch.Tensor]:
    """The model's keyword arguments besides the pixels, to go with `mm_encoder_outputs`."""
    return {name: tensor for name, tensor in inputs.tensors.items() if name not in _PIXELS}


def vision_dim(model: Any) -> int:
    """Width D of the pooled visual feature: the language model's hidden size."""
    return int(unwrap(model).config.get_text_config().hidden_size)


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _split(pooled: Any, image_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Per-sample features from any of the layouts: a list of images, [images, tokens, D], or [tokens, D]."""
    samples = image_mask.shape[0]
    if len(pooled) == samples and pooled[0].ndim == 2:
        return tuple(pooled)
    flat = pooled.flatten(0, -2) if isinstance(pooled, torch.Tensor) else torch.cat(list(pooled))
    return flat.split(image_mask.sum(1).tolist())
