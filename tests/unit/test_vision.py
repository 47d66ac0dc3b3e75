"""The vision half apart from the language half gives what the whole model gives, in all families."""

from __future__ import annotations

import pytest
import torch

from streamcvit.models.vision import encode_images, join_features, text_tensors, vision_dim
from tests.models import TINY, tiny_base, tiny_samples


@pytest.fixture(scope="module", params=sorted(TINY))
def base(request):
    return tiny_base(request.param)


@torch.no_grad()
def test_encoded_images_in_place_of_pixels_give_the_same_logits(base):
    inputs = base.collator.train(tiny_samples(5))
    whole = base.model(**inputs.tensors).logits
    vision = encode_images(base.model, inputs)
    assert torch.equal(whole, base.model(**text_tensors(inputs), mm_encoder_outputs={"image": vision.outputs}).logits)


@torch.no_grad()
def test_a_mask_of_kept_positions_gives_those_logits_only(base):
    inputs = base.collator.train(tiny_samples(5))
    keep = torch.zeros_like(inputs.answer_mask)
    keep[:, :-1] = inputs.answer_mask[:, 1:]
    vision = encode_images(base.model, inputs)
    given = {**text_tensors(inputs), "mm_encoder_outputs": {"image": vision.outputs}}
    kept = base.model(**given, logits_to_keep=keep).logits
    assert kept.shape[-2] == inputs.answer_mask.sum()
    assert torch.allclose(kept.view(-1, kept.shape[-1]), base.model(**given).logits[keep], atol=1e-5)


@torch.no_grad()
def test_features_kept_from_other_batches_can_be_joined_in_any_order(base):
    samples = tiny_samples(6)
    first, second = (encode_images(base.model, base.collator.prompts(part)) for part in (samples[:4], samples[4:]))
    features = [*first.features, *second.features]
    if base.model.config.model_type == "qwen3_vl":
        with pytest.raises(ValueError, match="more than the projected features"):
            join_features(features, first.outputs)
        return
    order = [5, 0, 3, 2]
    inputs = base.collator.prompts([samples[i] for i in order])
    joined = join_features([features[i] for i in order], first.outputs)
    logits = base.model(**text_tensors(inputs), mm_encoder_outputs={"image": joined}).logits
    assert torch.allclose(logits, base.model(**inputs.tensors).logits, atol=1e-4)


def test_pooled_is_the_mean_over_a_samples_own_features(base):
    samples = tiny_samples(4)
    vision = encode_images(base.model, base.collator.prompts(samples))
    assert vision.pooled.shape == (4, vision_dim(base.model)) and vision.pooled.dtype == torch.float32
    alone = encode_images(base.model, base.collator.prompts(samples[2:3])).pooled
    assert torch.allclose(vision.pooled[2], alone[0], atol=1e-5)
    assert not torch.allclose(vision.pooled[0], vision.pooled[1])
