"""AdamW with experts as parameters of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from adapter_models import adapted, moelora, samples, smolora, strlora

from streamcvit.adapters import expert_parameters, routing_kwargs
from streamcvit.learning.optim import ExpertAdamW


def stacks(experts: int = 4) -> list[torch.Tensor]:
    """Experts [E, 2, 5] and [E, 3], and a dense matrix."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(*shape, generator=generator).requires_grad_() for shape in ((experts, 2, 5), (experts, 3), (4, 3))
    ]


def give_gradients(parameters: list[torch.Tensor], seed: int, used: list[int] | None = None) -> None:
    """Random gradients, zero for experts that are not in `used`."""
    generator = torch.Generator().manual_seed(seed)
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if used is not None and number < 2:
            idle = [e for e in range(len(parameter)) if e not in used]
            parameter.grad[idle] = 0


def test_with_every_expert_in_use_it_is_adamw():
    ours, theirs = stacks(), stacks()
    mine = ExpertAdamW(ours, ours[:2], lr=0.01, weight_decay=0.1)
    stock = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, fused=True)
    for seed in range(5):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        mine.step()
        stock.step()
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(ours, theirs, strict=True))


def test_expert_that_no_sample_reached_stands_still_where_stock_adamw_moves_it():
    ours, theirs = stacks(), stacks()
    mine, stock = ExpertAdamW(ours, ours[:2], lr=0.01), torch.optim.AdamW(theirs, lr=0.01)
    for parameters, optimizer in ((ours, mine), (theirs, stock)):
        give_gradients(parameters, 1)
        optimizer.step()
    before = [p.detach().clone() for p in ours]
    state = copy.deepcopy(mine.state_dict()["state"])
    stale = theirs[0].detach().clone()
    for parameters, optimizer in ((ours, mine), (theirs, stock)):
        give_gradients(parameters, 2, used=[0, 2])
        optimizer.step()
    for parameter, old in zip(ours[:2], before, strict=False):
        assert torch.equal(parameter[[1, 3]], old[[1, 3]])
        assert not torch.isclose(parameter[[0, 2]], old[[0, 2]]).any()
    after = mine.state_dict()["state"]
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(after[0][key][[1, 3]], state[0][key][[1, 3]])
    assert after[0]["step"].tolist() == [2, 1, 2, 1]
    assert not torch.isclose(theirs[0][[1, 3]], stale[[1, 3]]).any()


def test_first_step_of_a_late_expert_is_that_of_a_fresh_parameter():
    late, fresh = stacks(), stacks()
    optimizer = ExpertAdamW(late, late[:2], lr=0.01, weight_decay=0.0)
    for seed in range(30):
        give_gradients(late, seed, used=[0])
        optimizer.step()
    first = ExpertAdamW(fresh, fresh[:2], lr=0.01, weight_decay=0.0)
    give_gradients(late, 99, used=[3])
    give_gradients(fresh, 99, used=[3])
    optimizer.step()
    first.step()
    assert torch.equal(late[0][3], fresh[0][3])


def test_saved_state_continues_to_the_bit():
    whole, split = stacks(), stacks()
    one, two = ExpertAdamW(whole, whole[:2], lr=0.01), ExpertAdamW(split, split[:2], lr=0.01)
    for seed in range(6):
        if seed == 3:
            two_again = ExpertAdamW(split, split[:2], lr=0.01)
            two_again.load_state_dict(copy.deepcopy(two.state_dict()))
            two = two_again
        for parameters, optimizer in ((whole, one), (split, two)):
            give_gradients(parameters, seed, used=[seed % 4, 1])
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, split, strict=True))


def test_a_verdict_keeps_the_step_from_being_taken_whether_it_is_read_or_not():
    for read in (True, False):
        for number in (2, 0):  # with experts, and none
            ours = stacks()
            optimizer = ExpertAdamW(ours, ours[:number], lr=0.01)
            for seed, verdict in enumerate((0.0, 2.0, 0.0)):
                give_gradients(ours, seed)
                if verdict:
                    ours[2].grad.fill_(torch.nan)
                said = optimizer.step(verdict=torch.tensor(verdict), read=read)
                assert said == (verdict if read or number else None)
            plain = stacks()
            expected = ExpertAdamW(plain, plain[:number], lr=0.01)
            for seed in (0, 2):
                give_gradients(plain, seed)
                expected.step()
            assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
            states = zip(optimizer.state_dict()["state"].values(), expected.state_dict()["state"].values(), strict=True)
            assert all(torch.equal(mine[name], theirs[name]) for mine, theirs in states for name in theirs)


def test_counts_of_steps_are_loaded_onto_the_device_of_their_parameter():
    ours = stacks()
    optimizer = ExpertAdamW(ours, ours[:2])
    give_gradients(ours, 0)
    optimizer.step()
    there = [parameter.detach().to("meta").requires_grad_() for parameter in ours]
    again = ExpertAdamW(there, there[:2])
    again.load_state_dict(optimizer.state_dict())
    assert {tensor.device.type for state in again.state.values() for tensor in state.values()} == {"meta"}


@pytest.mark.parametrize("make", [smolora, moelora, strlora])
def test_only_experts_of_the_routed_samples_move(make):
    model = adapted(make()).train()
    experts = expert_parameters(model)
    assert {p.dim() for p in experts} == {3}
    optimizer = ExpertAdamW([p for p in model.parameters() if p.requires_grad], experts, lr=0.01)
    before = [p.detach().clone() for p in experts]
    ids, routing = samples(1)
    model(input_ids=ids, labels=ids, **routing_kwargs(model, routing)).loss.backward()
    optimizer.step()
    moved = torch.stack([(p != old).flatten(1).any(1) for p, old in zip(experts, before, strict=True)])
    used = {"smolora": 2, "moelora": 4, "strlora": 2}[make.__name__]
    assert (moved.sum(1) <= used).all()
    assert moved.any(1).all()
