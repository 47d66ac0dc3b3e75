"""Whether a model sees the pictures that it is given."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image

from streamcvit.data.sample import Picture, Sample
from streamcvit.errors import UserError
from streamcvit.models.collate import Collator
from streamcvit.models.pictures import OPTIONS
from streamcvit.models.vision import encode_images, text_tensors

_SIDE = 64


@torch.no_grad()
def check_sight(model: Any, collator: Collator) -> None:
    """Asks the model the same about two pictures, as learning will ask it: for the logits of chosen places alone.

    Raises:
        UserError: it would answer both alike, gives other logits than it is asked for, or cannot be asked; also where
            settings of the processor give it pictures that it is not made for.
    """
    try:
        _look(model, collator)
    except (UserError, ValueError, TypeError, LookupError, RuntimeError) as error:
        if not collator.rules.options:
            raise
        raise UserError(
            f"the model cannot work with pictures that are prepared so: {' '.join(str(error).split())[:200]}",
            where=OPTIONS,
            fix="Leave out what its vision tower is made for (size of its pictures and patches)",
        ) from error


def _look(model: Any, collator: Collator) -> None:
    inputs = collator.prompts([_probe(k) for k in range(2)]).to(model.device)
    where = type(model).__name__
    if not inputs.image_mask.any(1).all():
        raise UserError(
            "the prompt has no place for the picture, so the model would not see it",
            where=where,
            fix="Use the processor and chat template that were saved with the model",
        )
    vision = encode_images(model, inputs)
    keep = torch.zeros_like(inputs.image_mask)
    keep[:, -1] = True
    logits = model(**text_tensors(inputs), **vision.given, logits_to_keep=keep, use_cache=False).logits
    check_rows(logits, 2, where)
    logits = logits.reshape(2, -1)
    if torch.equal(logits[0], logits[1]):
        raise UserError(
            "the model gives two different pictures the same answer, so it does not see them",
            where=where,
            fix="Use the processor that was saved with the model, or another model",
        )


def places_picture(collator: Collator) -> bool:
    """Whether the prompt of a question about a picture has places for its features."""
    return bool(collator.prompts([_probe(0)]).image_mask.any())


def check_rows(logits: torch.Tensor, count: int, model: str) -> None:
    """Logits are of as many places as were asked for; shapes are known without waiting for the device.

    Raises:
        UserError: the model gives those of others: its forward takes no notice of `logits_to_keep`.
    """
    if (given := logits.shape[:-1].numel()) != count:
        raise UserError(
            f"gives logits of {given} places where those of {count} were asked for (logits_to_keep)",
            where=model,
            fix="Use a model whose forward takes logits_to_keep",
        )


def _probe(k: int) -> Sample:
    """A question about a square of which one half is light."""
    image = Image.new("RGB", (_SIDE, _SIDE), (30, 60, 90))
    image.paste((240, 200, 160), (0, 0, _SIDE // 2, _SIDE) if k else (0, 0, _SIDE, _SIDE // 2))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return Sample(f"probe {k}", "probe", "probe", "", ("probe",), (Picture(stream.getvalue()),))
