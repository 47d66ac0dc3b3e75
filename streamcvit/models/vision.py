"""The vision half of a vision-language model: image features, computed apart from the language model."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from streamcvit.adapters import InstructionEncoder, RoutingInputs, choosing_projectors
from streamcvit.errors import UserError
from streamcvit.models.batch import TOWER_TEXT, ModelInputs


@dataclass(frozen=True)
class Vision:
    """Image features of B samples, each of any number of pictures.

    Attributes:
        outputs: what `get_image_features` gave; `pooler_output` holds the projected features, in the layout that the
            model's forward expects. None where no sample has a picture.
        features: per sample, its projected features [image tokens, D], those of its pictures in order; views into
            `outputs`.
        pooled: [B, D] float32, what routers read: the mean over each sample's image tokens, zeros where it has none;
            never with a gradient.
    """

    outputs: Any
    features: tuple[torch.Tensor, ...]
    pooled: torch.Tensor

    @property
    def given(self) -> dict[str, Any]:
        """The model's keyword arguments that stand for the pixels; none where there is no picture."""
        return {} if self.outputs is None else {"mm_encoder_outputs": {"image": self.outputs}}


def encode_images(
    model: Any, inputs: ModelInputs, learns: bool = False, encoder: InstructionEncoder | None = None
) -> Vision:
    """Runs the vision tower and the projector; neither where no sample has a picture.

    Args:
        model: a Hugging Face image-text-to-text model, or a PEFT model around one.
        inputs: with `pixel_values` and whatever else the tower reads; on the model's device.
        learns: whether something in tower or projector is trained: then with a graph, where gradients are wanted.
        encoder: of instructions, where what is put on the projector may be chosen by them.

    Raises:
        UserError: the tower wants something that the processor does not give, or gives another number of features
            than there are places for them.
    """
    base = unwrap(model)
    if "pixel_values" not in inputs.tensors:
        none = torch.zeros(0, vision_dim(base), dtype=base.dtype, device=inputs.image_mask.device)
        return Vision(None, (none,) * len(inputs.image_mask), pool([none] * len(inputs.image_mask)))
    encode, names, needed = _tower(base)
    if lacking := sorted(needed - inputs.tensors.keys()):
        raise UserError(
            f"the vision tower of {type(base).__name__} wants {lacking[0]}, which the processor does not give",
            fix="Use the model's own processor",
        )
    given = {name: tensor for name, tensor in inputs.tensors.items() if name in names}
    given["pixel_values"] = given["pixel_values"].to(base.dtype)  # not every tower does that by itself (ARIA's)
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()), _choosing(base, inputs, encoder):
        outputs = encode(**given, return_dict=True)
    # Only the projected features are read from here on; the tower's hidden states would be kept alive for nothing.
    for name in ("last_hidden_state", "hidden_states", "attentions"):
        if getattr(outputs, name, None) is not None:
            setattr(outputs, name, None)
    features = _split(outputs.pooler_output, inputs.pictures)
    return Vision(outputs, features, pool(features))


def _choosing(base: Any, inputs: ModelInputs, encoder: InstructionEncoder | None) -> AbstractContextManager:
    if encoder is None:
        return nullcontext()
    return choosing_projectors(base, lambda: encoder.encode(inputs.instructions), inputs.image_mask)


def pool(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of each sample's features [image tokens, D]; [B, D] float32, zeros where a sample has none."""
    features = [f.detach() for f in features]
    return torch.stack([f.float().mean(0) if len(f) else f.new_zeros(f.shape[1:], dtype=torch.float) for f in features])


def routing_inputs(encoder: InstructionEncoder, inputs: ModelInputs, vision: Vision) -> RoutingInputs:
    """What routers decide by: instructions and pictures; the prompt's text in place of pictures where there is none.

    Raises:
        UserError: a sample has no picture, and the encoder no token means.
    """
    visual = vision.pooled
    blind = [k for k, counts in enumerate(inputs.pictures) if not counts]
    if blind:
        if encoder.tokens is None:
            raise UserError(
                "the instruction encoder cannot route samples without a picture",
                fix="Make it with InstructionEncoder.load, or give it tokens=TokenMeans(...)",
            )
        rows = torch.tensor(blind, device=visual.device)
        text = encoder.tokens.prompts(inputs.tensors["input_ids"][rows], inputs.prompt_mask[rows])
        visual = visual.index_copy(0, rows, text.to(visual.device))
    return RoutingInputs(
        instruction=encoder.encode(inputs.instructions).to(visual.device),
        visual=visual,
        image_mask=inputs.image_mask,
        prompt_mask=inputs.prompt_mask,
    )


def text_tensors(inputs: ModelInputs) -> dict[str, torch.Tensor]:
    """The model's keyword arguments besides the pixels, to go with `Vision.given`.

    All per-token values, and the grids of pictures from which three-dimensional positions are worked out.
    """
    shape = inputs.image_mask.shape
    return {n: t for n, t in inputs.tensors.items() if t.shape == shape or n.endswith("_grid_thw")}


def tower_texts(inputs: ModelInputs) -> list[str]:
    """What the vision tower reads of the prompt of each sample with a picture, as a digest; empty where it reads none.

    Image features hold for a picture under such a text, not for the picture alone.
    """
    read = inputs.tensors.get(TOWER_TEXT)
    if read is None:
        return []
    rows = [ids[: int(held.sum())].tolist() for ids, held in read.cpu()]
    return ["/" + hashlib.sha256(repr(row).encode()).hexdigest() for row in rows]


def vision_dim(model: Any) -> int:
    """Width D of the pooled visual feature: the language model's hidden size."""
    return int(unwrap(model).config.get_text_config().hidden_size)


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _tower(base: Any) -> tuple[Any, frozenset[str], frozenset[str]]:
    """What gives a model's image features, the names of what it reads, and of those that it cannot do without."""
    owner: Any = base if hasattr(base, "get_image_features") else getattr(base, "model", None)
    if not hasattr(owner, "get_image_features"):
        raise UserError(f"{type(base).__name__} does not give image features", fix="Use another family of models")
    outer: Any = type(owner)
    inner: Any = type(getattr(owner, "model", owner))
    return (owner.get_image_features, *_arguments(outer, inner))


@lru_cache
def _arguments(outer: Any, inner: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Names by signature; the outer class hands on to the inner one what only that one names."""
    names: set[str] = set()
    for kind in (outer, inner):
        parameters = list(inspect.signature(getattr(kind, "get_image_features", _none)).parameters.values())[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if kind is outer:
            needed = frozenset(p.name for p in named if p.default is p.empty)
        names |= {p.name for p in named}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return frozenset(names), needed


def _none(self: Any) -> None: ...


def _split(pooled: Any, pictures: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
    """Per-sample features from any of the layouts: a list of images, [images, tokens, D], or [tokens, D].

    Raises:
        UserError: there are not as many features as image tokens.
    """
    counts = [sum(own) for own in pictures]
    if pooled[0].ndim == 2 and [len(each) for each in pooled] == counts:
        return tuple(pooled)
    flat = pooled.flatten(0, -2) if isinstance(pooled, torch.Tensor) else torch.cat(list(pooled))
    if len(flat) != sum(counts):
        raise UserError(
            f"the vision tower gives {len(flat)} features for {sum(counts)} image tokens",
            fix="Use the processor that was saved with the model",
        )
    return flat.split(counts)
