"""Learners that share each batch, the ranks of a group: whose micro-batches are whose, and how gradients become one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from streamcvit.learning.buckets import BucketSum
from streamcvit.learning.ordered import OrderedSum
from streamcvit.learning.strategies.base import strategy_state
from streamcvit.learning.wires import reaching
from streamcvit.models.snapshot import adapter_state, state_digest

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


class Group:
    """One rank's view of its group.

    Every rank runs the same learner on the same batches, and computes the gradients of its own micro-batches alone.
    From the sum on all ranks do the same, so that weights, optimizers, routers and strategies stay equal.

    Args:
        rank: from 0; rank 0 leads, and is the one that commits.
        ranks: of the group.
        exact: sum gradients in the order of the stream (`OrderedSum`), else by an all-reduce (`BucketSum`).
        seed: of the numbers that each rank draws for itself where it is not exact.

    Attributes:
        wire: torch's process group that carries tensors; None while the group is not whole.
        exchanges: gradients summed so far.
        sent: bytes that this rank sent for them.
    """

    def __init__(self, rank: int, ranks: int, exact: bool = True, seed: int = 0) -> None:
        self.rank, self.ranks, self.exact, self.seed = rank, ranks, exact, seed
        self.wire: Any = None
        self.exchanges = self.sent = 0
        self._buckets: BucketSum | None = None

    def share(self, items: int) -> range:
        """Of so many micro-batches in stream order, those of this rank: neighbours, rank 0's first."""
        return self.share_of(self.rank, items)

    def share_of(self, rank: int, items: int) -> range:
        """The same of any rank."""
        first, stop = (-(-items * number // self.ranks) for number in (rank, rank + 1))
        return range(first, stop)

    def sums(self, parameters: Sequence[torch.nn.Parameter]) -> OrderedSum | BucketSum:
        """What adds up the gradients of one step."""
        if self.exact:
            return OrderedSum(self, parameters)
        if self._buckets is None or not self._buckets.of(parameters):
            if self._buckets is not None:
                self._buckets.close()
            self._buckets = BucketSum(self, parameters)
        return self._buckets

    def rows(self, own: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """The rows of all ranks, in their order.

        Args:
            own: [counts[rank], D], this rank's.
            counts: rows of each rank.
        """
        most = max(counts)
        padded = own.new_zeros(most, own.shape[1])
        padded[: len(own)] = own
        all_ = [torch.empty_like(padded) for _ in counts]
        with reaching():
            self.wire.allgather([[_bytes(each) for each in all_]], [_bytes(padded)]).wait()
        self.sent += padded.nbytes * (self.ranks - 1)
        return torch.cat([each[:count] for each, count in zip(all_, counts, strict=True)])

    def send(self, tensor: torch.Tensor, to: int) -> Any:
        """Begin to send a contiguous tensor; returns what to wait for."""
        self.sent += tensor.nbytes
        with reaching():
            return self.wire.send([_bytes(tensor)], to, 0)

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        """Fill a contiguous tensor with what a rank sends."""
        with reaching():
            self.wire.recv([_bytes(tensor)], source, 0).wait()

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Give every rank what one of them holds in a contiguous tensor."""
        self.sent += tensor.nbytes * (self.ranks - 1) if self.rank == source else 0
        with reaching():
            self.wire.broadcast(_bytes(tensor), source).wait()

    def add_up(self, tensor: torch.Tensor) -> Any:
        """Begin to sum a contiguous tensor over all ranks, in place; returns what to wait for."""
        self.sent += 2 * tensor.nbytes * (self.ranks - 1) // self.ranks
        with reaching():
            return self.wire.allreduce([tensor])

    def close(self) -> None:
        """Let go of the wire, so that the other ranks find the group broken."""
        wire, self.wire = self.wire, None
        if self._buckets is not None:
            self._buckets.close()
            self._buckets = None
        if wire is not None:
            with contextlib.suppress(Exception):
                wire.abort()


def fingerprint(learner: OnlineLearner) -> str:
    """SHA-256 over all that must be equal on every rank: adapter, routers, optimizer and strategy."""
    tensors, values = strategy_state(learner.strategy)
    found = {f"adapter.{name}": tensor for name, tensor in adapter_state(learner.model).items()}
    found |= {f"strategy.{name}": tensor for name, tensor in tensors.items()}
    for index, entry in learner.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": tensor for name, tensor in entry.items()}
    found["values"] = torch.frombuffer(bytearray(json.dumps(values, sort_keys=True).encode()), dtype=torch.uint8)
    return state_digest(found)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A view as bytes, in which every type travels."""
    return tensor.reshape(-1).view(torch.uint8)
