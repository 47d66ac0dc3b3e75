"""Gradients of micro-batches summed in the stream's order, whoever computed them: the same to the bit on any ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from streamcvit.learning.wires import await_all

if TYPE_CHECKING:
    from streamcvit.learning.group import Group

PIECE = 1 << 20  # numbers that travel at once, so that ranks add while others send


def by_dtype(parameters: Sequence[torch.nn.Parameter]) -> dict[torch.dtype, list[int]]:
    """Places of parameters by their type, in their order."""
    found: dict[torch.dtype, list[int]] = {}
    for place, parameter in enumerate(parameters):
        found.setdefault(parameter.dtype, []).append(place)
    return found


def flattened(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Their gradients as one vector, zeros where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])


def give_back(parameters: Sequence[torch.nn.Parameter], flat: torch.Tensor, met: Sequence[bool]) -> None:
    """Inverse of `flattened`; a parameter that no rank had a gradient of gets none."""
    for parameter, own, there in zip(parameters, flat.split([p.numel() for p in parameters]), met, strict=True):
        # In the parameter's own layout, as autograd leaves gradients: norms are then summed in the same order.
        parameter.grad = torch.empty_like(parameter).copy_(own.view(parameter.shape)) if there else None


class OrderedSum:
    """Adds up one step's gradients.

    Floating-point sums depend on their order. One process adds the gradient of each micro-batch to the sum of those
    before it; so does this: the sum so far travels from rank to rank, each of which adds those of its own
    micro-batches, one by one, and the last hands the whole to all. What travels is the adapter's size, however many
    micro-batches there are; a rank holds the gradients of its own ones meanwhile.

    Args:
        group: who sums.
        parameters: whose gradients.
    """

    def __init__(self, group: Group, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.group, self.parameters = group, parameters
        self.kinds = [[parameters[place] for place in places] for places in by_dtype(parameters).values()]
        self.places = [place for places in by_dtype(parameters).values() for place in places]
        self.taken: list[list[torch.Tensor]] = []
        self.met = [False] * len(parameters)

    def begin(self, last: bool) -> None:
        """Called before each of this rank's backward passes."""

    def take(self) -> None:
        """Called after each."""
        flats = [flattened(kind) for kind in self.kinds]
        for place, parameter in enumerate(self.parameters):
            self.met[place] |= parameter.grad is not None
            parameter.grad = None
        if self.taken and self.group.rank == 0:  # nothing comes before it
            for total, flat in zip(self.taken[0], flats, strict=True):
                total.add_(flat)
        else:
            self.taken.append(flats)

    def finish(self, notes: torch.Tensor) -> torch.Tensor:
        """Set the gradients of the whole batch.

        Args:
            notes: float32 vector in which each rank wrote its own places, zeros elsewhere.

        Returns:
            The sum of all ranks' notes.

        Raises:
            GroupBroken: a rank is gone.
        """
        group, last = self.group, self.group.ranks - 1
        notes = torch.cat([notes, notes.new_tensor(self.met)])
        sends: list[Any] = []
        first = self.taken[0] if group.rank == 0 else None
        empty = [
            torch.empty(sum(p.numel() for p in kind), dtype=kind[0].dtype, device=notes.device) for kind in self.kinds
        ]
        totals = [torch.zeros_like(notes), *(first or empty)]
        mine = [[notes], *([flats[k] for flats in self.taken] if first is None else [] for k in range(len(self.kinds)))]
        for total, own in zip(totals, mine, strict=True):
            for start in range(0, len(total), PIECE):
                piece = total[start : start + PIECE]
                if group.rank:
                    group.receive(piece, group.rank - 1)
                for flat in own:
                    piece.add_(flat[start : start + PIECE])
                if group.rank < last:
                    sends.append(group.send(piece, group.rank + 1))
        await_all(sends)
        for total in totals:
            group.broadcast(total, last)
        group.exchanges += 1
        notes, met = totals[0].split([len(notes) - len(self.met), len(self.met)])
        there = met.tolist()
        ordered = [there[place] > 0 for place in self.places]
        for kind, total in zip(self.kinds, totals[1:], strict=True):
            give_back(kind, total, ordered[: len(kind)])
            ordered = ordered[len(kind) :]
        return notes
