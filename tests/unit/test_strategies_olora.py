"""O-LoRA: a subspace for each chunk, kept orthogonal to those of the chunks before, which stand still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_strategies_importance import batches, flat, learned, learner_for

from streamcvit.adapters.lowrank import low_ranks
from streamcvit.errors import UserError
from streamcvit.learning import OLoRA, OnlineLearner, Sequential

R4 = {"r": 4}


def parts(learner: OnlineLearner, k: int) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Of each layer, the rows of A [.., w, I] and the columns of B that belong to part 0 to k - 1; copies."""
    return {
        layer.name: list(zip(layer.a.detach().clone().chunk(k, -2), layer.b.detach().clone().chunk(k, 1), strict=True))
        for layer in low_ranks(learner.model)
    }


@pytest.mark.parametrize("adapter", ["lora", "moelora", "smolora"])
def test_penalty_is_the_papers_sum_over_earlier_chunks_and_so_is_its_gradient(adapter: str) -> None:
    learner = learned(OLoRA(3, strength=0.7), 6, adapter=adapter, options=R4)  # in the third chunk
    total: Any = 0.0
    for layer in low_ranks(learner.model):
        a = layer.a if layer.a.dim() == 3 else layer.a.unsqueeze(0)
        b = layer.b if layer.b.dim() == 3 else layer.b.T.unsqueeze(0)
        for expert in range(len(a)):
            if len(a) > 1 and not b[expert, 2].any():
                continue  # no sample took it in this chunk
            for earlier in (0, 1):  # parts of one row: chunk t learns row t
                total = total + (a[expert, earlier].detach() @ a[expert, 2]) ** 2
    found = learner.strategy.penalty(learner.model)
    torch.testing.assert_close(found, 0.7 * total)
    assert found > 0
    raw = [layer.a for layer in low_ranks(learner.model)]
    for ours, theirs in zip(torch.autograd.grad(found, raw), torch.autograd.grad(0.7 * total, raw), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("adapter", ["lora", "smolora"])
def test_a_chunk_learns_its_own_part_and_leaves_all_others_to_the_bit(adapter: str) -> None:
    learner = learner_for(OLoRA(3, strength=2.0, subspaces=2), adapter=adapter, options=R4)
    for batch in batches(learner.base, count=6):
        before = parts(learner, 2)
        learner.learn(batch)
        own = batch.chunk % 2  # the third chunk learns the first one's part over
        moved = False
        for name, now in parts(learner, 2).items():
            for k, (then, here) in enumerate(zip(before[name], now, strict=True)):
                same = all(torch.equal(x, y) for x, y in zip(then, here, strict=True))
                assert same or k == own
                moved = moved or not same
        assert moved


def test_what_later_chunks_read_is_more_orthogonal_to_what_earlier_ones_read_than_without() -> None:
    overlap = {}
    for strength in (0.0, 20.0):
        learner = learned(OLoRA(3, strength=strength, subspaces=2), 6, options=R4, lr=2e-2, max_grad_norm=100.0)
        cosines = []
        for (first, _), (second, _) in parts(learner, 2).values():
            first, second = (torch.nn.functional.normalize(a, dim=-1) for a in (first, second))
            cosines.append((first @ second.T).abs().mean())
        overlap[strength] = float(torch.stack(cosines).mean())
    assert overlap[20.0] < 0.5 * overlap[0.0]


def test_there_is_no_penalty_in_the_first_chunk_and_none_at_strength_0() -> None:
    learner = learned(OLoRA(3), 2)
    assert learner.strategy.penalty(learner.model) is None
    learner = learned(OLoRA(3, strength=0.0), 3)
    assert learner.strategy.penalty(learner.model) is None


@pytest.mark.parametrize(("adapter", "micro"), [("lora", 0), ("smolora", 1)])
def test_resuming_is_equal_to_the_bit(tmp_path: Path, adapter: str, micro: int) -> None:
    more: dict[str, Any] = {"adapter": adapter, "options": R4, "micro_batch": micro}
    whole = learned(OLoRA(3), 3, **more)
    commit, todo = whole.commit(tmp_path), batches(whole.base)[3:5]
    again = learner_for(OLoRA(3), **more)
    again.resume(commit)
    for learner in (whole, again):
        for batch in todo:
            learner.learn(batch)
    assert again.snapshot().digest == whole.snapshot().digest


def test_micro_batches_give_the_update_of_the_whole_batch() -> None:
    more: dict[str, Any] = {"options": R4, "lr": 1e-3}
    whole, split = learned(OLoRA(3, 5.0), 4, **more), learned(OLoRA(3, 5.0), 4, micro_batch=1, **more)
    free = learned(OLoRA(3, 0.0), 4, **more)
    assert (flat(whole) - flat(split)).abs().mean() < 0.1 * (flat(whole) - flat(free)).abs().mean()


@pytest.mark.parametrize(
    ("subspaces", "more", "said"),
    [
        (
            3,
            {"options": R4},
            "subspaces: an adapter of rank 4 cannot be cut into 3 equal subspaces. Set the adapter's r",
        ),
        (2, {"options": {"use_dora": True}}, "DoRA's magnitudes belong to all ranks together. Set use_dora to false"),
        (2, {"weight_decay": 0.1}, "learner.weight_decay: weight decay would shrink the subspaces that stand still"),
        (2, {"adapter": "eproj"}, "the adapter eproj has no low-rank matrices. Take lora or a mixture of experts"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(subspaces: int, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        learner_for(OLoRA(3, subspaces=subspaces), **more)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_commit_of_another_strategy_or_of_other_subspaces_is_refused(tmp_path: Path) -> None:
    commit = learner_for(Sequential(3)).commit(tmp_path / "plain")
    with pytest.raises(UserError, match="no subspaces of this strategy"):
        learner_for(OLoRA(3)).resume(commit)
    commit = learner_for(OLoRA(3, subspaces=2)).commit(tmp_path / "two")
    with pytest.raises(UserError, match="the commit has 2 subspaces, not 4"):
        learner_for(OLoRA(3)).resume(commit)
