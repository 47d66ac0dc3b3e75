"""Whether a model sees the pictures that it is given."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image

from streamcvit.data.sample import Picture, Sample
from streamcvit.errors import UserError
from streamcvit.models.collate import Collator
from streamcvit.models.vision import encode_images, text_tensors

_SIDE = 64


@torch.no_grad()
def check_sight(model: Any, collator: Collator) -> None:
    """Asks the model the same about two pictures.

    Raises:
        UserError: it would answer both alike, or cannot be asked.
    """
    inputs = collator.prompts([_probe(k) for k in range(2)]).to(model.device)
    where = type(model).__name__
    if not inputs.image_mask.any(1).all():
        raise UserError(
            "the prompt has no place for the picture, so the model would not see it",
            where=where,
            fix="Use the processor and chat template that were saved with the model",
        )
    vision = encode_images(model, inputs)
    logits = model(**text_tensors(inputs), **vision.given, logits_to_keep=1, use_cache=False).logits
    if torch.equal(logits[0], logits[1]):
        raise UserError(
            "the model gives two different pictures the same answer, so it does not see them",
            where=where,
            fix="Use the processor that was saved with the model, or another model",
        )


def _probe(k: int) -> Sample:
    """A question about a square of which one half is light."""
    image = Image.new("RGB", (_SIDE, _SIDE), (30, 60, 90))
    image.paste((240, 200, 160), (0, 0, _SIDE // 2, _SIDE) if k else (0, 0, _SIDE, _SIDE // 2))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return Sample(f"probe {k}", "probe", "probe", "", ("probe",), (Picture(stream.getvalue()),))
