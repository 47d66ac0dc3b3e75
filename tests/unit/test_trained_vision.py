"""What a person asks to train is trained, also before the language model; or it is refused before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TINY, tiny_base, tiny_samples
from safetensors.torch import load_file

from streamcvit.adapters import InstructionEncoder, touched_before_language
from streamcvit.adapters.build import attach
from streamcvit.data.sample import TaskSpec
from streamcvit.errors import UserError
from streamcvit.evaluation import Evaluator
from streamcvit.learning import OnlineLearner
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.models.vision import encode_images, vision_dim
from streamcvit.run.notes import idle_modules

PROJECTOR = {
    "llava": "multi_modal_projector",
    "qwen25vl": "merger",
    "qwen3vl": "merger",
    "gemma3": "multi_modal_projector",
    "internvl": "multi_modal_projector",
}
IN_THE_TOWER = r".*(vision|visual).*(q_proj|v_proj|qkv|linear_fc1|query|value)"


def learner_for(base: Base, adapter: str = "lora", options: dict[str, Any] | None = None, lr: float = 1e-2) -> Any:
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    return OnlineLearner(base, attach(base.model, adapter, options=options, sizes=sizes), encoder=encoder, lr=lr)


def batch_of(base: Base, number: int = 0, size: int = 4) -> Batch:
    samples = tiny_samples(size, seed=number)
    start = number * size
    places = tuple(range(start, start + size))
    return Batch(start, start + size, 0, places, tuple(samples), base.collator.train(samples))


def moved(learner: OnlineLearner, before: dict[str, torch.Tensor], word: str) -> list[bool]:
    now = learner.snapshot().tensors
    return [not torch.equal(tensor, before[name]) for name, tensor in now.items() if word in name]


@pytest.mark.parametrize("kind", TINY)
def test_a_projector_and_adapters_in_the_tower_get_the_gradient_that_the_whole_model_gives(kind: str) -> None:
    base = tiny_base(kind)
    names = [name for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)]
    tower = [name for name in names if re.fullmatch(IN_THE_TOWER, name)]
    assert tower
    options = {"r": 2, "init_lora_weights": False, "target_modules": [*tower, "down_proj"]}
    learner = learner_for(base, options=options | {"modules_to_save": [PROJECTOR[kind]]})
    batch = batch_of(base, size=1)
    assert batch.inputs is not None and learner.sees
    learner.losses(batch.inputs)[0].sum().backward()
    ours = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    learner.model.zero_grad()
    labels = batch.inputs.tensors["input_ids"].masked_fill(~batch.inputs.answer_mask, -100)
    learner.model(**batch.inputs.tensors, labels=labels).loss.backward()
    trained = {name: p for name, p in learner.model.named_parameters() if p.requires_grad}
    assert ours.keys() == {name for name, p in trained.items() if p.grad is not None}
    for name, grad in ours.items():
        torch.testing.assert_close(grad, trained[name].grad, atol=1e-5, rtol=1e-3)
    assert any("modules_to_save" in name and ours[name].any() for name in ours)
    blocks = [grad for name, grad in ours.items() if "lora_B" in name and re.search(r"vis.*\.(layers?|blocks)\.", name)]
    assert len(blocks) >= 2 and all(grad.any() for grad in blocks)


@pytest.mark.parametrize("adapter", ["lora", "smolora", "moelora", "strlora"])
def test_a_projector_named_in_modules_to_save_is_trained_beside_any_adapter_and_scored_as_trained(adapter: str) -> None:
    base = tiny_base("llava")
    options: dict[str, Any] = {"modules_to_save": ["multi_modal_projector"]}
    learner = learner_for(base, adapter, options)
    before = learner.snapshot().tensors
    first = batch_of(base)
    assert first.inputs is not None
    samples = {"tiny": tiny_samples(6, seed=7)}
    evaluator = Evaluator(base, {"tiny": TaskSpec("tiny", "exact", "single_word", max_new_tokens=4)}, samples)
    evaluator.evaluate(learner.model, "tiny")
    assert evaluator.generator.store.held_bytes == 0  # features of an adapter that changes them are nobody else's
    report = learner.learn(first)
    assert report is not None and not report.skipped
    assert all(moved(learner, before, "multi_modal_projector"))
    for number in range(1, 6):
        learner.learn(batch_of(base, number))
    found = evaluator.evaluate(learner.model, "tiny").texts
    fresh = Evaluator(base, evaluator.tasks, samples)
    assert found == fresh.evaluate(learner.model, "tiny").texts
    learner.model.unload()
    assert base.restore()
    bare = evaluator.evaluate(base.model, "tiny").texts
    assert evaluator.generator.store.held_bytes > 0
    assert bare != found
    assert Evaluator(base, evaluator.tasks, samples).evaluate(base.model, "tiny").texts == bare


def test_routers_read_features_without_a_gradient_of_the_projector_as_it_is() -> None:
    base = tiny_base("llava")
    learner = learner_for(base, "smolora", {"modules_to_save": ["multi_modal_projector"]})
    batch = batch_of(base)
    assert batch.inputs is not None
    vision = encode_images(base.model, batch.inputs, learns=True)
    assert vision.features[0].requires_grad and not vision.pooled.requires_grad
    learner.learn(batch)
    assert not torch.equal(encode_images(base.model, batch.inputs).pooled, vision.pooled)


def test_a_tower_layer_that_is_named_learns_and_one_that_is_not_stands_still() -> None:
    base = tiny_base("llava")
    named = "vision_tower.encoder.layers.0.self_attn.q_proj"
    learner = learner_for(base, options={"target_modules": [named, "v_proj"]})
    before = learner.snapshot().tensors
    for number in range(2):
        learner.learn(batch_of(base, number))
    assert all(moved(learner, before, "vision_tower"))
    assert len(moved(learner, before, "vision_tower")) == 2
    assert len(moved(learner, before, "language_model")) == 4
    assert touched_before_language(base.model) == [f"model.{named}"]


@pytest.mark.parametrize("adapter", ["smolora", "moelora", "strlora"])
def test_experts_are_refused_outside_the_language_model(adapter: str) -> None:
    for target in (["multi_modal_projector.linear_1"], ["lm_head"], r".*vision_tower.*q_proj"):
        base = tiny_base("llava")
        with pytest.raises(UserError, match="is no layer of the language model, and experts are routed in that alone"):
            learner_for(base, adapter, {"target_modules": target})
        assert base.restore()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_half_precision_takes_steps_smaller_than_its_rounding_and_resumes_to_the_bit(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    def learner() -> OnlineLearner:
        model, processor = TINY["llava"]()
        return learner_for(Base(model.to(dtype), processor), options={"modules_to_save": ["linear_2"]}, lr=2e-5)

    whole = learner()
    weight = next(p for name, p in whole.model.named_parameters() if "modules_to_save" in name and p.dim() == 2)
    assert weight.dtype == dtype
    before = weight.detach().clone()
    for number in range(6):
        whole.learn(batch_of(whole.base, number))
        if number == 0:
            after_one = (weight != before).float().mean()
        if number == 2:
            commit = whole.commit(tmp_path)
    assert after_one < 0.5 * (weight != before).float().mean()  # steps add up
    saved = load_file(commit / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for name, tensor in saved.items() if "projector" in name} == {dtype}
    again = learner()
    again.resume(commit)
    for number in range(3, 6):
        again.learn(batch_of(again.base, number))
    assert again.snapshot().digest == whole.snapshot().digest
    copies = zip(again.optimizer.copies().values(), whole.optimizer.copies().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in copies)


def test_modules_that_the_model_never_calls_are_named_once_learning_shows_it() -> None:
    base = tiny_base("llava")
    for layer in base.model.model.language_model.layers:
        layer.mlp.modality_router = torch.nn.Linear(32, 4)  # as in Gemma-3n, whose forward reads no module of some
    learner = learner_for(base, options={"target_modules": "all-linear", "modules_to_save": ["vision_tower"]})
    assert len(learner.idle) > 14
    learner.learn(batch_of(base))
    named = idle_modules(learner.idle)
    assert "model.language_model.layers.#.mlp.modality_router" in named
    assert [name for name in named if "language_model" in name] == ["model.language_model.layers.#.mlp.modality_router"]
    assert all("vision_tower" in name for name in named if "language_model" not in name)
