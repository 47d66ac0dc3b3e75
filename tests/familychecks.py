"""What is asked of a model family: it loads, learns, evaluates as `generate` does, sees, and resumes to the bit.

Each check raises where the family fails it; `check_all` notes what was raised and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES
from models import picture, save, tiny_samples

from streamcvit.adapters import InstructionEncoder
from streamcvit.adapters.build import attach
from streamcvit.data.sample import Picture
from streamcvit.errors import UserError
from streamcvit.evaluation.generate import Generator
from streamcvit.learning import STRATEGIES, OnlineLearner
from streamcvit.models.base import Base, load_base
from streamcvit.models.batch import Batch
from streamcvit.models.sight import check_sight
from streamcvit.models.vision import encode_images, text_tensors, vision_dim

ADAPTERS = ("lora", "moelora", "smolora", "strlora")
STEPS = 6
NEW = 8


def load(name: str, folder: Path) -> Base:
    """The family's tiny model, written and read again as a user's."""
    return load_base(save(FAMILIES[name](), folder), device="cpu")


def wrapped(base: Base, adapter: str, **options: Any) -> Any:
    """The base with that adapter on it; take it off with `unload`."""
    sizes = {"instruction_dim": vision_dim(base.model), "visual_dim": vision_dim(base.model)}
    return attach(base.model, adapter, seed=3, options=options, sizes=sizes)


def learner(base: Base, adapter: str) -> OnlineLearner:
    """A learner of that adapter on the base."""
    model = wrapped(base, adapter)
    encoder = InstructionEncoder.from_model(base.model, base.tokenizer)
    return OnlineLearner(base, model, STRATEGIES["sequential"](3), encoder=encoder, lr=1e-2, seed=3)


def batches(base: Base, steps: int = STEPS) -> list[Batch]:
    """The same batch again and again, at the cursors of a stream."""
    samples = tuple(tiny_samples(4))
    inputs = base.collator.train(samples)
    size = len(samples)
    return [Batch(k * size, (k + 1) * size, 0, tuple(range(k * size, (k + 1) * size)), samples, inputs)
            for k in range(steps)]  # fmt: skip


def learns_and_resumes(base: Base, adapter: str, folder: Path, steps: int = STEPS) -> None:
    """The loss on one batch falls; a learner that goes on from a commit half-way has the same weights to the bit."""
    todo = batches(base, steps)
    first = learner(base, adapter)
    losses = []
    for step, batch in enumerate(todo):
        report = first.learn(batch)
        assert report is not None
        losses.append(float(report.loss.mean()))
        if step == steps // 2 - 1:
            commit = first.commit(folder)
    digest = first.snapshot().digest
    first.model.unload()
    assert all(math.isfinite(loss) for loss in losses), f"losses {losses}"
    assert losses[-1] < losses[0], f"the loss rises from {losses[0]:.3f} to {losses[-1]:.3f}"
    again = learner(base, adapter)
    again.resume(commit)
    for batch in todo[steps // 2 :]:
        again.learn(batch)
    same = again.snapshot().digest == digest
    again.model.unload()
    assert same, "other weights after resuming"


@torch.no_grad()
def answers_as_generate(base: Base, model: Any | None = None, count: int = 6) -> None:
    """Texts answered in one batch are those that transformers' own `generate` gives for each prompt alone."""
    model, collator = model or base.model, base.collator
    samples = tiny_samples(count)
    generator = Generator(base, batch_size=count)
    ours = generator.answer(model, generator.prepare(samples), NEW)
    theirs = []
    stops = sorted(set(collator.stop_ids))
    for sample in samples:
        tensors = collator.prompts([sample]).tensors
        whole = base.model.generate(
            **tensors, do_sample=False, num_beams=1, max_new_tokens=NEW, eos_token_id=stops,
            pad_token_id=collator.pad_token_id,
        )  # fmt: skip
        theirs += collator.decode(whole[:, tensors["input_ids"].shape[1] :])
    differ = [f"{a!r} is {b!r} by generate" for a, b in zip(ours, theirs, strict=True) if a != b]
    assert not differ, f"{len(differ)} of {count} answers differ: {differ[0]}"
    assert len(set(ours)) > 1, "all answers are alike"


@torch.no_grad()
def batch_is_batch_of_one(base: Base, adapter: str | None = None, count: int = 5) -> None:
    """Features, losses and answers of a sample are the same alone and among others."""
    samples = tiny_samples(count, seed=1)
    collator = base.collator
    whole = encode_images(base.model, collator.prompts(samples))
    alone = [encode_images(base.model, collator.prompts([sample])) for sample in samples]
    for ours, own in zip(whole.features, alone, strict=True):
        torch.testing.assert_close(ours, own.features[0], atol=1e-4, rtol=1e-4)
    logits = _last(base, samples)
    for k, sample in enumerate(samples):
        torch.testing.assert_close(logits[k], _last(base, [sample])[0], atol=2e-3, rtol=1e-3)
    model = wrapped(base, adapter, init_weights=False) if adapter else base.model
    together, single = (Generator(base, batch_size=size) for size in (count, 1))
    try:
        model.eval()
        first = together.answer(model, together.prepare(samples), NEW)
        second = single.answer(model, single.prepare(samples), NEW)
    finally:
        if adapter:
            model.unload()
    assert first == second, "answers of a batch are not those of its samples alone"


@torch.no_grad()
def sees(base: Base) -> None:
    """Another picture gives other logits; the same model without its features is refused."""
    sample = tiny_samples(1)[0]
    other = replace(sample, pictures=(Picture(picture(99)),))
    assert not torch.equal(_last(base, [sample]), _last(base, [other])), "another picture changes nothing"
    owner = type(base.model)
    encode = base.model.get_image_features if hasattr(base.model, "get_image_features") else None

    class Blind(owner):  # type: ignore[misc, valid-type]
        def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
            outputs = (encode or self.model.get_image_features)(*args, **kwargs)
            outputs.pooler_output = _nothing(outputs.pooler_output)
            if getattr(outputs, "deepstack_features", None) is not None:
                outputs.deepstack_features = _nothing(outputs.deepstack_features)
            return outputs

        get_image_features.__signature__ = _signature(encode or base.model.model.get_image_features)  # type: ignore[attr-defined]

    base.model.__class__ = Blind
    try:
        check_sight(base.model, base.collator)
    except UserError as error:
        assert "does not see them" in str(error)  # noqa: PT017 - as a function of its own, without pytest
    else:
        raise AssertionError("a model without image features is not refused")
    finally:
        base.model.__class__ = owner


def _nothing(features: Any) -> Any:
    return features * 0 if isinstance(features, torch.Tensor) else type(features)([_nothing(own) for own in features])


def _signature(method: Any) -> Any:
    import inspect

    found = inspect.signature(method)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return found.replace(parameters=[own, *found.parameters.values()])


def _last(base: Base, samples: Any) -> torch.Tensor:
    """Logits [B, V] at the prompts' ends."""
    inputs = base.collator.prompts(samples)
    given = encode_images(base.model, inputs).given
    keep = torch.zeros_like(inputs.image_mask)
    keep[:, -1] = True
    logits = base.model(**text_tensors(inputs), **given, logits_to_keep=keep, use_cache=False, **_places(inputs)).logits
    return logits.reshape(len(samples), -1).float()


def _places(inputs: Any) -> dict[str, torch.Tensor]:
    """Positions of left-padded rows, where the model does not work out its own from the pictures."""
    if any(name.endswith("_grid_thw") for name in inputs.tensors):
        return {}
    return {"position_ids": (inputs.tensors["attention_mask"].cumsum(1) - 1).clamp_min(0)}


def check_all(name: str, folder: Path) -> dict[str, str]:
    """Every check of a family: `yes`, or the first line of what was raised; nothing more where it does not load."""
    found: dict[str, str] = {}

    def note(title: str, check: Callable[[], Any]) -> Any:
        try:
            outcome = check()
        except Exception as error:  # whatever a family raises is its result
            text = str(error).strip() or type(error).__name__
            found[title] = (
                text.splitlines()[0]
                if isinstance(error, UserError)
                else f"{type(error).__name__}: {text.splitlines()[0]}"
            )
            return None
        found[title] = "yes"
        return outcome

    base = note("loads", lambda: load(name, folder / "model"))
    if base is None:
        return found
    for adapter in ADAPTERS:
        note(adapter, lambda adapter=adapter: learns_and_resumes(base, adapter, folder / adapter))
        assert base.restore(), f"{adapter} left something in the model"
    note("generate", lambda: answers_as_generate(base))
    note("batch", lambda: [batch_is_batch_of_one(base, adapter) for adapter in (None, "smolora")])
    note("sees", lambda: sees(base))
    return found
