"""Data-parallel training on two processes equals training on the whole batch in one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from adapter_models import FAMILIES, METHODS, adapted, batch, close, forward, row
from torch import distributed, multiprocessing
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from streamcvit.adapters import after_step, auxiliary_loss, decide_routes, routing_kwargs

RANKS, BATCH = 2, 6
CASES = [("llama", method) for method in METHODS] + [("llava", "prototype")]


def same_on_all_ranks(tensor: torch.Tensor) -> bool:
    everywhere = [torch.empty_like(tensor) for _ in range(RANKS)]
    distributed.all_gather(everywhere, tensor.contiguous())
    return all(torch.equal(tensor, other) for other in everywhere)


def loss_of(model: Any, logits: torch.Tensor, labels: torch.Tensor, ranks: int) -> torch.Tensor:
    """Summed over samples, which the ranks' average divides by their number; plus what the adapter adds."""
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    added = auxiliary_loss(model)
    return nll * ranks / BATCH + (0 if added is None else added)


def compare(family: str, method: str, rank: int) -> None:
    """Two steps, each rank on its rows, beside two on the whole batch."""
    model = adapted(METHODS[method](), FAMILIES[family]()).train()
    alone = copy.deepcopy(model)
    parallel = DistributedDataParallel(model)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.01) for m in (model, alone)]
    mine = slice(rank * BATCH // RANKS, (rank + 1) * BATCH // RANKS)
    for step in range(2):
        inputs, routing = batch([row(family, 10 * step + k) for k in range(BATCH)])
        labels = inputs.pop("labels")
        # Every rank decides on the whole batch, and takes its own rows of the decision.
        share = decide_routes(model, routing).select(mine)
        own = {name: tensor[mine] for name, tensor in inputs.items()}
        logits = parallel(**own, **routing_kwargs(model, share)).logits
        loss_of(model, logits, labels[mine], RANKS).backward()
        loss_of(alone, forward(alone, inputs, routing).logits, labels, 1).backward()
        for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            assert ours.grad is None or close(ours.grad, theirs.grad), f"{family} {method} step {step}: {name}"
        for m, optimizer in zip((model, alone), optimizers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            after_step(m)
    whole = alone.state_dict()
    for name, tensor in model.state_dict().items():
        assert same_on_all_ranks(tensor), f"{family} {method}: {name}"
        if "prototypes_" in name:
            assert torch.equal(tensor, whole[name]), f"{family} {method}: {name}"


def train(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    for family, method in CASES:
        compare(family, method, rank)
    distributed.destroy_process_group()


def test_two_processes_train_as_one_does_on_the_whole_batch(tmp_path: Path) -> None:
    """No unused parameters to be found: whatever trains gets a gradient in every forward, if only of zeros."""
    multiprocessing.spawn(train, args=(str(tmp_path / "meeting"),), nprocs=RANKS)
