"""No method changes the base for the next one, whatever its options leave behind in the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import batches, learner_for

from streamcvit.embedded import tasks as embedded
from streamcvit.models.base import Base, load_base
from streamcvit.models.weights import checksum
from streamcvit.pipeline import load_config
from streamcvit.run.evaluating import EvaluatorWorker
from streamcvit.run.loading import local_feed
from streamcvit.run.messages import Job
from streamcvit.run.stream import prepare_stream
from streamcvit.run.workers import LearnerWorker

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": [1, 2, 3]},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}
PUT_BACK = ("plain", "head", "embedding", "tokens", "dora")


@pytest.fixture(scope="module")
def samples() -> list:
    return embedded.train_samples("colour", 24, seed=5)


@pytest.fixture
def base() -> Base:
    return load_base("embedded", device="cpu")


@pytest.mark.parametrize("name", OPTIONS)
def test_after_a_method_the_base_is_as_it_was_or_is_said_not_to_be(base: Base, samples: list, name: str) -> None:
    modules = dict(base.model.named_modules())
    weights = {key: value.clone() for key, value in base.model.state_dict().items()}
    learner = learner_for(base, "lora", r=4, **OPTIONS[name])
    for batch in batches(base, samples)[:2]:
        learner.learn(batch)
    learner.model.unload()
    assert base.restore() == (name in PUT_BACK)
    assert dict(base.model.named_modules()) == modules
    assert not any(module.training for module in modules.values())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    same = all(torch.equal(value, weights[key]) for key, value in base.model.state_dict().items())
    assert same == (name in PUT_BACK)


def test_a_weight_that_anything_changed_is_noticed(base: Base) -> None:
    assert base.restore()
    with torch.no_grad():
        base.model.get_input_embeddings().weight[5, 3] += 1e-6
    assert not base.restore()


def test_the_checksum_sees_a_bit_a_place_a_name_a_type_and_a_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(3, 1 << 19, generator=generator)  # more words than are summed at a time, and not in pairs
    tensors = {"a": tensor, "b": torch.arange(7).to(torch.bfloat16), "c": torch.tensor(True), "d": torch.empty(0)}
    found = {checksum(tensors), checksum({**tensors, "a": tensor.clone().view(-1).roll(2).view(3, -1)})}
    for place in (0, 1 << 19, -1):
        other = tensor.clone().view(-1)
        other[place] = torch.nextafter(other[place], torch.tensor(9.0))
        found.add(checksum({**tensors, "a": other.view(3, -1)}))
    found.add(checksum({**tensors, "a": tensor.view(1, -1)}))
    found.add(checksum({**tensors, "e": tensors["d"]}))
    found.add(checksum({**tensors, "b": tensors["b"].to(torch.float16)}))
    assert len(found) == 8
    assert checksum(tensors) == checksum({name: value.clone() for name, value in reversed(tensors.items())})


@pytest.mark.parametrize("name", ["head", "embedding", "pissa", "olora"])
def test_resuming_inside_such_a_method_gives_the_same_weights_to_the_bit(
    base: Base, samples: list, tmp_path: Path, name: str
) -> None:
    whole, todo = learner_for(base, "lora", r=4, **OPTIONS[name]), batches(base, samples)
    for batch in todo[:2]:
        whole.learn(batch)
    commit = whole.commit(tmp_path)
    for batch in todo[2:]:
        whole.learn(batch)
    again = learner_for(load_base("embedded", device="cpu"), "lora", r=4, **OPTIONS[name])
    again.resume(commit)
    for batch in todo[2:]:
        again.learn(batch)
    assert again.snapshot().digest == whole.snapshot().digest


def test_a_method_learns_the_same_after_any_other_and_is_scored_the_same(tmp_path: Path) -> None:
    names = ["head", "pissa", "bare"]
    shared = ["stream.scenario.chunks=1", "stream.scenario.samples_per_chunk=16", "stream.test_samples=2"]
    methods = [f"methods.{n}={{adapter: lora, options: {{r: 4, **}}}}" for n in names]
    methods = [m.replace(", **", "".join(f", {k}: {v}" for k, v in OPTIONS.get(n, {}).items()))
               for m, n in zip(methods, names, strict=True)]  # fmt: skip
    config = load_config(None, [*shared, *methods], out=str(tmp_path))
    alone = load_config(None, [*shared, methods[-1]], out=str(tmp_path), name="alone")
    stream = str(tmp_path / "stream")
    prepare_stream(config, Path(stream))
    loads: list[torch.nn.Module] = []

    def learned(config: Any, order: list[str]) -> Iterator[Any]:
        worker = LearnerWorker(config, stream, local_feed(config, stream), loaded=loads.append)
        yield from (worker.learn_chunk(name, 0) for name in order)

    reports = dict(zip(names, learned(config, names), strict=True))
    assert len(loads) == 2  # once, and again after what PiSSA wrote into the base
    (expected,) = learned(alone, ["bare"])
    assert reports["bare"].digest == expected.digest

    loads.clear()
    scorer = EvaluatorWorker(config, stream, loads.append)
    jobs = [Job(n, 0, "colour", r.version, r.digest, r.commit) for n, r in reports.items()]
    zero = Job("bare", -1, "colour", 0, scorer.base.digest, "")
    found = [scorer.evaluate(job) for job in (zero, *jobs, zero, jobs[1], zero)]
    assert [one.digest for one in found] == [j.digest for j in (zero, *jobs, zero, jobs[1], zero)]
    assert found[0].predictions == found[4].predictions == found[6].predictions
    assert found[2].predictions == found[5].predictions
    assert len(loads) == 3
