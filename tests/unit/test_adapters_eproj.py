"""EProj: a projector for each cluster of samples, chosen by the keys of picture and instruction, without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TINY, tiny_base, tiny_conversations, tiny_samples
from peft import PeftModel
from torch.nn import functional as F

from streamcvit.adapters import InstructionEncoder, RoutingInputs, attach, auxiliary_loss, expert_usage
from streamcvit.adapters.eproj import EProjLayer, choosing_projectors
from streamcvit.errors import UserError
from streamcvit.evaluation.generate import Generator
from streamcvit.learning import EWC, BalancedReplay, LwF, OnlineLearner, Replay, Sequential
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.models.vision import encode_images, vision_dim

FAMILIES = ["llava", "qwen25vl", "gemma3", "internvl"]


def learner_for(base: Base, strategy: Sequential | None = None, **more: Any) -> OnlineLearner:
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    options = {"num_projectors": 3, "spawn_below": 1.6, **more.pop("options", {})}
    model = attach(base.model, "eproj", seed=3, options=options, sizes=sizes)
    return OnlineLearner(base, model, strategy, encoder=encoder, seed=3, **{"lr": 1e-2, **more})


def batch_of(base: Base, samples: list[Any], start: int = 0, chunk: int = 0) -> Batch:
    places = tuple(range(start, start + len(samples)))
    return Batch(start, start + len(samples), chunk, places, tuple(samples), base.collator.train(samples))


def layer_of(learner: OnlineLearner) -> EProjLayer:
    return next(module for module in learner.model.modules() if isinstance(module, EProjLayer))


def weights(layer: EProjLayer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in layer.named_parameters() if "eproj_" in name}


def queries(learner: OnlineLearner, samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """By the plain model: the pooled features of the frozen projector, and the instructions' embeddings."""
    with learner.model.disable_adapter():
        vision = encode_images(learner.base.model, learner.base.collator.train(samples))
    assert learner.encoder is not None
    return vision.pooled, learner.encoder.encode([sample.routing_text for sample in samples])


def choices(learner: OnlineLearner, samples: list[Any]) -> list[int]:
    """By the formula: argmax of cos(q_img, k_img) + cos(q_inst, k_inst) over the keys that are taken."""
    keys: Any = layer_of(learner).eproj_keys["default"]
    image, text = queries(learner, samples)
    near = F.cosine_similarity(image[:, None], keys.image, dim=-1)
    near = near + F.cosine_similarity(text[:, None], keys.instruction, dim=-1)
    return near[:, : int(keys.used)].argmax(1).tolist()


def features(learner: OnlineLearner, samples: list[Any]) -> tuple[torch.Tensor, ...]:
    learner.model.eval()
    with torch.no_grad():
        return learner.look(learner.base.collator.train(samples)).vision.features


def with_keys(learner: OnlineLearner, samples: list[Any]) -> None:
    """Three projectors, drawn, whose keys are made of some samples' queries so that they compete."""
    layer, draw = layer_of(learner), torch.Generator().manual_seed(5)
    keys: Any = layer.eproj_keys["default"]
    image, text = queries(learner, samples)
    with torch.no_grad():
        keys.image.copy_(image[:3])
        keys.instruction.copy_(text[[1, 0, 1]])
        keys.used.fill_(3)
        for stack in layer.stacked("default").values():
            stack.add_(torch.randn(stack.shape, generator=draw), alpha=0.1)


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_sample_is_projected_by_the_nearest_keys_whatever_its_batch(kind: str) -> None:
    learner = learner_for(tiny_base(kind))
    samples = tiny_samples(6)
    with_keys(learner, samples)
    chosen = choices(learner, samples)
    assert len(set(chosen)) > 1
    together = features(learner, samples)
    layer = layer_of(learner)
    for sample, which, found in zip(samples, chosen, together, strict=True):
        torch.testing.assert_close(features(learner, [sample])[0], found, rtol=1e-4, atol=1e-5)
        own = {name: stack[which] for name, stack in layer.stacked("default").items()}
        before = {name: p.detach().clone() for name, p in layer.base_layer.named_parameters()}
        with torch.no_grad(), learner.model.disable_adapter():  # the plain model with that projector
            for name, p in layer.base_layer.named_parameters():
                p.copy_(own[name])
            alone = encode_images(learner.base.model, learner.base.collator.train([sample])).features[0]
            for name, p in layer.base_layer.named_parameters():
                p.copy_(before[name])
        torch.testing.assert_close(alone, found, rtol=1e-4, atol=1e-5)


def test_a_sample_of_one_projector_leaves_all_others_and_their_keys_to_the_bit() -> None:
    learner = learner_for(tiny_base("llava"))
    samples = tiny_samples(12)
    with_keys(learner, samples)
    chosen = choices(learner, samples)
    learner.learn(batch_of(learner.base, samples))  # so that every projector has momentum
    mine = [sample for sample, which in zip(samples, chosen, strict=True) if which == chosen[0]][:2]
    assert choices(learner, mine) == [chosen[0]] * len(mine)
    before = weights(layer_of(learner))
    learner.learn(batch_of(learner.base, mine, 12))
    moved = set()
    for name, now in weights(layer_of(learner)).items():
        for e in range(3):
            if not torch.equal(now[e], before[name][e]):
                moved.add(e)
    assert moved == {chosen[0]}
    assert all(
        not torch.equal(now[chosen[0]], before[name][chosen[0]]) for name, now in weights(layer_of(learner)).items()
    )


def test_a_sample_unlike_all_takes_a_projector_that_begins_as_the_first_stands() -> None:
    learner = learner_for(tiny_base("llava"), lr=1e-3)
    first, second = tiny_samples(2)  # of two instructions
    layer = layer_of(learner)
    keys: Any = layer.eproj_keys["default"]
    learner.learn(batch_of(learner.base, [first]))
    assert keys.used == 1
    trained = {name: stack[0].detach().clone() for name, stack in layer.stacked("default").items()}
    image, text = queries(learner, [second])
    assert float(keys.similarity(image, text).detach()[0, 0]) < 1.6
    seen: dict[str, torch.Tensor] = {}
    gradients = learner.optimizer.step
    learner.optimizer.step = lambda **k: (seen.update(weights(layer)), gradients(**k))[1]  # type: ignore[method-assign]
    learner.learn(batch_of(learner.base, [second], 1))
    assert keys.used == 2
    for name, now in trained.items():
        assert torch.equal(seen[f"eproj_projectors.default.{name.replace('.', '__')}"][1], now)
    assert torch.equal(seen["eproj_keys.default.image"][1], image[0])
    assert torch.equal(seen["eproj_keys.default.instruction"][1], text[0])
    learner.learn(batch_of(learner.base, [replace(first, sample_id="again")], 2))
    assert keys.used == 2  # one like the first goes to the first


def test_projectors_at_most_as_many_as_there_are_and_then_the_nearest() -> None:
    learner = learner_for(tiny_base("llava"), options={"num_projectors": 2, "spawn_below": 2.0})
    samples = tiny_samples(8)
    learner.learn(batch_of(learner.base, samples))
    assert int(layer_of(learner).eproj_keys["default"].used) == 2
    use = expert_usage(learner.model)["projector"]
    assert sum(use.shares) == pytest.approx(1) and min(use.shares) > 0


@pytest.mark.parametrize("kind", ["llava", "qwen25vl"])
def test_micro_batches_choose_and_learn_as_the_whole_batch(kind: str) -> None:
    found = []
    for micro in (0, 2):
        learner = learner_for(tiny_base(kind), micro_batch=micro, max_grad_norm=1e9, lr=1e-3)
        samples = [*tiny_samples(5), *(tiny_conversations().values() if kind == "llava" else ())]
        learner.learn(batch_of(learner.base, samples))
        grads = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
        found.append(
            (grads, expert_usage(learner.model)["projector"].shares, int(layer_of(learner).eproj_keys["default"].used))
        )
    assert found[0][1:] == found[1][1:] and found[0][2] > 1
    for name, grad in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("strategy", "micro"), [(Sequential, 0), (Sequential, 1), (EWC, 0), (BalancedReplay, 0), (BalancedReplay, 1)]
)
def test_samples_without_pictures_are_scored_and_leave_all_projectors_to_the_bit(
    strategy: type[Sequential], micro: int
) -> None:
    learner = learner_for(tiny_base("llava"), strategy(3), micro_batch=micro)
    texts = [tiny_conversations()[name] for name in ("none", "talk")]
    before: dict[str, torch.Tensor] = {}
    for start, samples in ((0, texts), (2, tiny_samples(2)), (4, [*tiny_samples(3)[2:], texts[0]]), (6, texts)):
        before = weights(layer_of(learner))
        report = learner.learn(batch_of(learner.base, samples, start, start // 4))
        assert report is not None and report.loss.isfinite().all() and not report.skipped
    if isinstance(learner.strategy, Replay):  # which learns pictures beside the texts
        assert len(learner.strategy.kept) == len(learner.strategy.notes) == 8
    else:
        assert all(torch.equal(now, before[name]) for name, now in weights(layer_of(learner)).items())


def test_without_forgetting_a_sample_is_answered_by_the_projectors_that_were_taken_at_the_boundary() -> None:
    strategy = LwF(3)
    learner = learner_for(tiny_base("llava"), strategy, lr=1e-3)
    first, second = tiny_samples(2)
    keys: Any = layer_of(learner).eproj_keys["default"]
    learner.learn(batch_of(learner.base, [first]))
    learner.learn(batch_of(learner.base, [second], 1, 1))
    assert keys.used == 2
    with strategy._taught():
        assert keys.used == 1
    assert keys.used == 2


def test_key_loss_is_the_mean_of_both_distances_and_reaches_the_keys_alone() -> None:
    learner = learner_for(tiny_base("llava"), options={"key_loss": 0.25})
    samples = tiny_samples(4)
    with_keys(learner, samples)
    chosen = choices(learner, samples)
    image, text = queries(learner, samples)
    keys: Any = layer_of(learner).eproj_keys["default"]
    with torch.enable_grad():
        learner.outputs(learner.base.collator.train(samples))
        loss = auxiliary_loss(learner.model)
    expected = (1 - F.cosine_similarity(image, keys.image[chosen])) + (
        1 - F.cosine_similarity(text, keys.instruction[chosen])
    )
    assert loss is not None
    torch.testing.assert_close(loss, 0.25 * expected.mean())
    given = torch.autograd.grad(loss, learner.parameters, allow_unused=True)
    reached = {id(p) for p, g in zip(learner.parameters, given, strict=True) if g is not None and g.any()}
    assert reached == {id(keys.image), id(keys.instruction)}


@pytest.mark.parametrize(("strategy", "micro"), [(Sequential, 0), (EWC, 2)])
def test_resuming_is_equal_to_the_bit_and_the_commit_answers_as_the_learner(
    tmp_path: Path, strategy: type[Sequential], micro: int
) -> None:
    samples = tiny_samples(12)
    whole = learner_for(tiny_base("llava"), strategy(3), micro_batch=micro)
    todo = [batch_of(whole.base, samples[k : k + 3], k, k // 6) for k in range(0, 12, 3)]
    for batch in todo[:2]:
        whole.learn(batch)
    commit = whole.commit(tmp_path)
    again = learner_for(tiny_base("llava"), strategy(3), micro_batch=micro)
    again.resume(commit)
    assert int(layer_of(again).eproj_keys["default"].used) == int(layer_of(whole).eproj_keys["default"].used) > 1
    for learner in (whole, again):
        for batch in todo[2:]:
            learner.learn(batch)
    assert again.snapshot().digest == whole.snapshot().digest

    other = tiny_base("llava")
    loaded = PeftModel.from_pretrained(other.model, whole.commit(tmp_path) / "adapter").eval()
    answers = []
    for base, model in ((whole.base, whole.model), (other, loaded)):
        digest = {name: t.clone() for name, t in model.state_dict().items() if "eproj" in name}
        generator = Generator(base, batch_size=4)
        answers.append(generator.answer(model.eval(), generator.prepare(samples), 4))
        assert all(
            torch.equal(t, model.state_dict()[name]) for name, t in digest.items()
        )  # nothing is taken, nor moves
    assert answers[0] == answers[1]


def test_a_step_that_is_not_finite_takes_no_projector() -> None:
    learner = learner_for(tiny_base("llava"))
    first, second = tiny_samples(2)
    learner.learn(batch_of(learner.base, [first]))
    digest = learner.snapshot().digest
    poison = learner.base.model.lm_head.weight
    kept = poison.detach().clone()
    poison.data[:] = float("nan")
    report = learner.learn(batch_of(learner.base, [second], 1))
    poison.data[:] = kept
    assert report is not None and report.skipped
    assert learner.snapshot().digest == digest


def test_a_peft_user_passes_pixels_and_routing_inputs_as_for_any_routed_adapter() -> None:
    learner = learner_for(tiny_base("llava"))
    samples = tiny_samples(4)
    with_keys(learner, samples)
    inputs = learner.base.collator.train(samples)
    image, text = queries(learner, samples)
    model = learner.model.eval()
    with torch.no_grad():
        routing = RoutingInputs(instruction=text, image_mask=inputs.image_mask)
        ours = model(**inputs.tensors, routing=routing).logits[inputs.answer_mask.roll(-1, 1)]
        torch.testing.assert_close(ours, learner.outputs(inputs).logits, rtol=1e-4, atol=1e-5)
        with pytest.raises(UserError, match="ran without routing inputs"):
            model(**inputs.tensors)
        with model.disable_adapter():
            plain = model(**inputs.tensors).logits
    torch.testing.assert_close(plain, tiny_base("llava").model(**inputs.tensors).logits.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("qwen3vl", {}, "target_modules: Qwen3VLForConditionalGeneration has 3 projectors"),
        ("llava", {"target_modules": ["q_proj"]}, "target_modules: eproj is on one projector, and this names"),
        ("llava", {"target_modules": "nothing"}, "eproj is on one projector, and this names 0 modules"),
        ("llava", {"num_projectors": 0}, "EProjConfig: num_projectors is at least 1 (got 0)"),
        ("llava", {"spawn_below": 3.0}, "spawn_below is a sum of two cosines, above -2 and 2 at most (got 3)"),
        ("llava", {"key_loss": -1.0}, "key_loss is a number of at least 0 (got -1)"),
        ("llava", {"r": 4}, "eproj has no option 'r'"),
    ],
)
def test_what_it_cannot_be_on_and_options_outside_their_range_are_one_line(
    kind: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        learner_for(tiny_base(kind), options=options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_features_that_are_not_the_projectors_own_are_refused_by_name() -> None:
    learner = learner_for(tiny_base("llava"))
    inputs = learner.base.collator.train(tiny_samples(2))
    fewer = inputs.image_mask.clone()
    fewer[0, fewer[0].nonzero()[0]] = False
    text = torch.zeros(2, learner.encoder.dim)  # type: ignore[union-attr]
    choosing = choosing_projectors(learner.base.model, lambda: text, fewer)
    with (
        pytest.raises(UserError, match="multi_modal_projector: the projector does not give the model's image"),
        choosing,
    ):
        encode_images(learner.base.model, inputs)


def test_every_tiny_family_is_either_learned_or_refused_in_one_line() -> None:
    found = {}
    for kind in TINY:
        try:
            learner = learner_for(tiny_base(kind))
            learner.learn(batch_of(learner.base, tiny_samples(2)))
            found[kind] = "learned"
        except UserError as error:
            found[kind] = "refused" if "\n" not in str(error) else "?"
    assert found == {**dict.fromkeys(FAMILIES, "learned"), "qwen3vl": "refused"}
