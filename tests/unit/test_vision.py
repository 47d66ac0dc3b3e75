"""The vision half apart from the language half gives what the whole model gives, in all families."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from streamcvit.errors import UserError
from streamcvit.models.base import Base
from streamcvit.models.pieces import Layout
from streamcvit.models.sight import check_sight
from streamcvit.models.vision import Vision, encode_images, text_tensors, vision_dim
from tests.models import TINY, tiny_aria, tiny_base, tiny_paligemma, tiny_samples


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
    kept = []
    for part in (samples[:3], samples[3:5], samples[5:]):
        vision = encode_images(base.model, base.collator.prompts(part))
        counts = [len(own) for own in vision.features]
        layout = Layout.of(vision.outputs, counts)
        kept += layout.cut(vision.outputs, counts)
    order = [5, 0, 3, 2]
    inputs = base.collator.prompts([samples[i] for i in order])
    joined = layout.join([kept[i] for i in order])
    logits = base.model(**text_tensors(inputs), mm_encoder_outputs={"image": joined}).logits
    assert torch.allclose(logits, base.model(**inputs.tensors).logits, atol=1e-4)


@torch.no_grad()
def test_outputs_put_together_again_are_the_same_to_the_bit_with_every_layer_of_deepstack(base):
    inputs = base.collator.prompts(tiny_samples(4))
    vision = encode_images(base.model, inputs)
    counts = [len(own) for own in vision.features]
    layout = Layout.of(vision.outputs, counts)
    pieces = layout.cut(vision.outputs, counts)
    assert {len(own) for own in pieces} == {3 if base.model.config.model_type == "qwen3_vl" else 1}
    again = Vision(layout.join(pieces), vision.features, vision.pooled)
    logits = [base.model(**text_tensors(inputs), **given.given).logits for given in (vision, again)]
    assert torch.equal(*logits)
    if len(pieces[0]) > 1:  # the layers matter
        bare = layout.join([(own[0], *(torch.zeros_like(layer) for layer in own[1:])) for own in pieces])
        assert not torch.allclose(
            base.model(**text_tensors(inputs), mm_encoder_outputs={"image": bare}).logits, logits[0]
        )


def test_outputs_that_do_not_belong_to_pictures_one_by_one_have_no_layout():
    whole = torch.arange(24.0).reshape(8, 3)
    outputs = BaseModelOutputWithPooling(pooler_output=whole)
    assert Layout.of(outputs, [5, 3]) is not None
    assert Layout.of(outputs, [5, 4]) is None
    assert Layout.of(BaseModelOutputWithPooling(pooler_output=whole, attentions=(whole[:7],)), [5, 3]) is None
    layers = BaseModelOutputWithPooling(pooler_output=list(whole.split([5, 3])), attentions=(whole, whole + 1))
    layout = Layout.of(layers, [5, 3])
    first, second = layout.cut(layers, [5, 3])
    assert torch.equal(first[1], whole[:5]) and torch.equal(second[2], whole[5:] + 1)
    swapped = layout.join([second, first])
    assert torch.equal(swapped.attentions[1], torch.cat([whole[5:], whole[:5]]) + 1)
    assert [len(own) for own in swapped.pooler_output] == [3, 5]
    one = BaseModelOutputWithPooling(pooler_output=(whole,), attentions=(whole,))  # one a picture, or one a layer?
    assert Layout.of(one, [8]) is None


def test_pooled_is_the_mean_over_a_samples_own_features(base):
    samples = tiny_samples(4)
    vision = encode_images(base.model, base.collator.prompts(samples))
    assert vision.pooled.shape == (4, vision_dim(base.model)) and vision.pooled.dtype == torch.float32
    alone = encode_images(base.model, base.collator.prompts(samples[2:3])).pooled
    assert torch.allclose(vision.pooled[2], alone[0], atol=1e-5)
    assert not torch.allclose(vision.pooled[0], vision.pooled[1])


@torch.no_grad()
def test_the_tower_is_given_whatever_it_names():
    base = Base(*tiny_aria())
    inputs = base.collator.prompts(tiny_samples(2, sizes=((70, 33), (33, 70))))
    assert not inputs.tensors["pixel_mask"].all()  # the pictures are padded to squares
    vision = encode_images(base.model, inputs)
    ours = base.model(**text_tensors(inputs), **vision.given).logits
    assert torch.equal(ours, base.model(**inputs.tensors).logits)
    del inputs.tensors["pixel_mask"]
    assert not torch.allclose(vision.pooled, encode_images(base.model, inputs).pooled, atol=1e-4)


def test_what_the_tower_cannot_do_without_is_named():
    base = tiny_base("llava")
    plain = type(base.model).get_image_features

    class Wanting(type(base.model)):
        def get_image_features(self, pixel_values, spatial_shapes, **kwargs):
            return plain(self, pixel_values, **kwargs)

    base.model.__class__ = Wanting
    inputs = base.collator.prompts(tiny_samples(1))
    with pytest.raises(UserError, match="spatial_shapes"):
        encode_images(base.model, inputs)
    inputs.tensors["spatial_shapes"] = torch.ones(1, 2)
    assert encode_images(base.model, inputs).pooled.any()


@torch.no_grad()
def test_no_answer_token_of_paligemma_sees_a_later_one():
    base = Base(*tiny_paligemma())
    inputs = base.collator.train(tiny_samples(1))
    first = int(inputs.answer_mask[0].nonzero()[1])
    given = encode_images(base.model, inputs).given
    before = base.model(**text_tensors(inputs), **given).logits
    inputs.tensors["input_ids"][0, first] += 1
    after = base.model(**text_tensors(inputs), **given).logits
    assert torch.allclose(before[0, :first], after[0, :first], atol=1e-5)
    assert not torch.allclose(before[0, first], after[0, first], atol=1e-3)


def test_features_that_are_not_as_many_as_their_places_are_refused():
    base = tiny_base("llava")
    inputs = base.collator.prompts(tiny_samples(2))
    fewer = dataclasses.replace(inputs, pictures=((16,), (15,)))
    with pytest.raises(UserError, match="32 features for 31 image tokens"):
        encode_images(base.model, fewer)


def test_a_model_that_would_not_see_the_picture_is_refused_at_load():
    for base in (tiny_base("llava"), tiny_base("qwen3vl")):
        check_sight(base.model, base.collator)
    blind = tiny_base("llava")
    blind.model.model.multi_modal_projector.linear_2.weight.data.zero_()
    with pytest.raises(UserError, match="does not see them"):
        check_sight(blind.model, blind.collator)
