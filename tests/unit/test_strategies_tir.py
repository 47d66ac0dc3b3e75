"""TIR: the importance of the task that owns a weight counts for less, the more that task is like the present one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_samples
from test_strategies_importance import batches as tiny_batches
from test_strategies_importance import flat, learner_for

from streamcvit.errors import UserError
from streamcvit.learning import EWC, MAS, TIR, OnlineLearner, Sequential
from streamcvit.learning.strategies.likeness import Likeness
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch

TASKS = ["a", "b", "b", "a", "c", "a", "c", "c", "a", "b", "c", "a"]


def batches(base: Base, tasks: list[str] = TASKS, count: int = 6) -> list[Batch]:
    """Two samples each, two batches a chunk: a and b, then a and c, then all."""
    return [
        replace(batch, samples=tuple(replace(s, task=tasks[p]) for p, s in zip(batch.positions, batch.samples)))  # noqa: B905
        for batch in tiny_batches(base)[:count]
    ]


def learned(strategy: Sequential, count: int = 6, tasks: list[str] = TASKS, **more: Any) -> OnlineLearner:
    learner = learner_for(strategy, **more)
    for batch in batches(learner.base, tasks, count):
        learner.learn(batch)
    return learner


def said_by_hand(learner: OnlineLearner, batch: Batch, kind: str) -> list[tuple[str, torch.Tensor]]:
    """What each sample says of each weight, with its task."""
    out, found = learner.outputs(batch.inputs), []
    for row, sample in enumerate(batch.samples):
        own, targets = out.logits[out.rows == row], out.targets[out.rows == row]
        value = (own**2).sum() if kind == "mas" else torch.log_softmax(own, -1).gather(1, targets[:, None]).sum()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, learner.parameters, retain_graph=True)])
        found.append((sample.task, gradient.abs() if kind == "mas" else gradient**2))
    return found


@pytest.mark.parametrize("kind", ["mas", "ewc"])
def test_the_maximum_over_tasks_is_kept_with_its_owner(kind: str) -> None:
    learner = learner_for(TIR(3, importance=kind, per_step=0, strength=0.0))
    maximum: Any = None
    owner: Any = None
    names: list[str] = []
    sums: dict[str, Any] = {}
    for batch in batches(learner.base)[:5]:  # the fifth begins the third chunk
        if batch.cursor in (4, 8):
            for task, total in sums.items():
                own = total / total.mean()
                if task not in names:
                    names.append(task)
                number = torch.full(own.shape, names.index(task))
                if maximum is None:
                    maximum, owner = own, number
                else:
                    owner, maximum = torch.where(own > maximum, number, owner), torch.maximum(own, maximum)
            sums = {}
        learner.learn(batch)
        for task, said in said_by_hand(learner, batch, kind):  # by the weights after the step
            sums[task] = sums.get(task, 0) + said
    assert learner.strategy.likeness.tasks == ["a", "b", "c"] == names
    torch.testing.assert_close(learner.strategy.importance, maximum, rtol=1e-3, atol=1e-5)
    clear = (learner.strategy.owner != owner).float().mean()
    assert clear < 1e-3  # where two are equal but for rounding
    assert {int(k) for k in owner.unique()} == {0, 1, 2}


def test_gradient_of_the_penalty_is_weighed_by_how_unlike_the_owner_is_to_the_batchs_tasks() -> None:
    learner = learned(TIR(3, strength=0.7, per_step=0), 4)
    strategy, batch = (
        learner.strategy,
        batches(learner.base)[4],
    )  # of the tasks a and b, whose similarities are averaged
    learner.learn(batch)
    learner.learn(batches(learner.base)[5])  # c and a
    s = strategy.likeness.matrix()
    like = (s[2] + s[0]) / 2
    torch.testing.assert_close(strategy.likeness.of(["c", "a"]), like)
    grads = torch.cat([g.flatten() for g in torch.autograd.grad(strategy.penalty(learner.model), learner.parameters)])
    expected = 0.7 * strategy.importance * (1 - like)[strategy.owner.long()] * (flat(learner) - strategy.anchor)
    torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-6)
    assert expected.abs().max() > 1e-4 and like.min() < 0.9 * like.max()


def test_of_one_task_a_chunk_it_is_mas_and_a_task_does_not_hold_its_own_weights() -> None:
    one = ["a"] * 12
    ours, plain = learned(TIR(3, strength=5.0), 6, one), learned(MAS(3, strength=0.0, decay=0.0), 6, one)
    assert ours.snapshot().digest == plain.snapshot().digest  # s[a, a] is 1, so nothing is held
    first, mas = learned(TIR(3, strength=0.0), 3, one), learned(MAS(3, strength=0.0), 3, one)
    assert torch.equal(first.strategy.importance, mas.strategy.importance)
    first, ewc = learned(TIR(3, 0.0, "ewc"), 3, one), learned(EWC(3, strength=0.0), 3, one)
    assert torch.equal(first.strategy.importance, ewc.strategy.importance)


def test_similarity_is_the_product_of_sigmoids_of_standardised_cosines() -> None:
    rng = np.random.default_rng(0)
    features = {
        task: {name: rng.normal(1, 1, (3, 5)) for name in ("image", "instruction", "answer")} for task in "abcd"
    }
    likeness = Likeness()
    for task, own in features.items():
        for row in range(3):
            likeness.add(task, {name: torch.from_numpy(rows[row]) for name, rows in own.items()})
        if task == "b":  # of a single pair the cosine itself
            pair = 1.0
            for name in own:
                x, y = (features[t][name].mean(0) for t in "ab")
                pair /= 1 + np.exp(-(x @ y) / np.linalg.norm(x) / np.linalg.norm(y))
            assert float(likeness.matrix()[0, 1]) == pytest.approx(pair, rel=1e-5)
    expected = np.ones((4, 4))
    for name in ("image", "instruction", "answer"):
        means = np.stack([features[task][name].mean(0) for task in "abcd"])
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        cosines = unit @ unit.T
        over = cosines[np.triu_indices(4, 1)]
        expected *= 1 / (1 + np.exp(-(cosines - over.mean()) / over.std()))
    np.fill_diagonal(expected, 1.0)
    torch.testing.assert_close(likeness.matrix(), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(likeness.of(["a", "new"]), 0.5 * likeness.matrix()[0])  # one not met yet is like none


def test_tasks_without_pictures_are_unlike_those_with_them() -> None:
    likeness = Likeness()
    text = torch.tensor([1.0, 2.0])
    for task, picture in (("seen", torch.tensor([1.0, 0.0])), ("text", None), ("talk", None)):
        likeness.add(task, {"image": picture, "instruction": text, "answer": text})
    s = likeness.matrix()
    assert s[0, 1] == s[0, 2] == 0 and s[1, 2] == pytest.approx(0.25) and torch.equal(s.diagonal(), torch.ones(3))
    likeness.add("seen", {"image": torch.tensor([float("nan"), 0.0]), "instruction": text, "answer": text})
    assert torch.equal(likeness.matrix(), s)


@pytest.mark.parametrize(("stop", "adapter", "micro"), [(3, "lora", 0), (5, "smolora", 1)])
def test_resuming_is_equal_to_the_bit(tmp_path: Path, stop: int, adapter: str, micro: int) -> None:
    more: dict[str, Any] = {"adapter": adapter, "micro_batch": micro, "gradient_checkpointing": bool(micro)}
    whole = learned(TIR(3, strength=2.0, per_step=1), stop, **more)
    commit, todo = whole.commit(tmp_path), batches(whole.base)[stop:]
    again = learner_for(TIR(3, strength=2.0, per_step=1), **more)
    again.resume(commit)
    for learner in (whole, again):
        for batch in todo:
            learner.learn(batch)
    assert again.snapshot().digest == whole.snapshot().digest
    assert torch.equal(again.strategy.likeness.matrix(), whole.strategy.likeness.matrix())


def test_it_says_that_it_is_told_tasks_and_refuses_samples_without() -> None:
    assert TIR.needs_task and not Sequential.needs_task and not MAS.needs_task
    learner = learner_for(TIR(3))
    samples = tuple(replace(sample, task="") for sample in tiny_samples(2))
    with pytest.raises(UserError, match="sample 's0-0' names no task, and TIR weighs by tasks") as caught:
        learner.learn(Batch(0, 2, 0, (0, 1), samples, learner.base.collator.train(samples)))
    assert "\n" not in str(caught.value) and "ewc or mas" in caught.value.fix and learner.step == 0


def test_an_unknown_way_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="importance must be one of mas, ewc, not 'si'"):
        TIR(3, importance="si")
