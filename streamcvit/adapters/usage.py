"""Which experts training used: counted on the device, read on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence


class Bank(NamedTuple):
    """A bank's place in a route [B, columns], and its experts: `size` of them from index `first` on."""

    columns: slice
    first: int
    size: int


@dataclass(frozen=True)
class ExpertUsage:
    """Use of one bank's experts.

    Attributes:
        shares: of each expert, over all layers; they sum to 1.
        layers: the same layer by layer, by the layers' paths; empty where all layers share their routes.
    """

    shares: list[float]
    layers: dict[str, list[float]] = field(default_factory=dict)

    @property
    def entropy(self) -> float:
        """Entropy of the shares in nats: 0 where one expert takes all, ln(E) where E experts share alike."""
        return entropy_nats(self.shares)


def entropy_nats(shares: list[float]) -> float:
    """-sum p ln p of shares that sum to 1."""
    return -sum(share * math.log(share) for share in shares if share > 0)


class UsageCounter:
    """Counts per bank, layer and expert. Counting never waits for the device; nothing of it is in a state dict."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, tuple[str, ...]], torch.Tensor] = {}

    def add_routes(self, routes: Mapping[str, torch.Tensor], banks: Mapping[str, Bank]) -> None:
        """Count samples.

        Args:
            routes: routes [B, columns] by layer; the layer "" stands for all of them.
            banks: where in a route each bank's decision stands.
        """
        found = list(routes.values())
        alike = len({route.shape for route in found}) == 1
        stacked = torch.stack(found) if alike else pad_sequence(found, batch_first=True, padding_value=-1)
        for label, bank in banks.items():
            experts = torch.arange(bank.first, bank.first + bank.size, device=stacked.device)
            taken = stacked[..., bank.columns].flatten(1).unsqueeze(-1) == experts
            self._add(label, tuple(routes), taken.sum(1))

    def add_weights(
        self,
        label: str,
        weights: Mapping[str, torch.Tensor],
        routes: Mapping[str, torch.Tensor],
        experts: int,
        mask: torch.Tensor | None,
    ) -> None:
        """Add up weights of tokens.

        Args:
            label: of the bank.
            weights: weights [B, S, k] by layer.
            routes: the experts [B, k] that the weights belong to, by layer; a layer that is not there weighs all.
            experts: number of experts E.
            mask: [B, S] bool, true at tokens that count; None for all.
        """
        by_shape: dict[tuple[torch.Size, bool], list[str]] = {}
        for layer, weight in weights.items():
            by_shape.setdefault((weight.shape, layer in routes), []).append(layer)
        for (shape, routed), layers in by_shape.items():
            # A step that is not finite is skipped; its weights must not spoil the counts of all others.
            stacked = torch.nan_to_num(torch.stack([weights[layer] for layer in layers]), 0.0, 0.0, 0.0)
            if mask is not None and mask.shape == shape[:2]:
                sums = (mask.to(stacked.dtype).unsqueeze(1) @ stacked).squeeze(2)
            else:
                sums = stacked.sum(2)
            if routed:
                place = torch.stack([routes[layer] for layer in layers])
                sums = sums.new_zeros(*sums.shape[:2], experts).scatter_(-1, place, sums)
            self._add(label, tuple(layers), sums.sum(1, dtype=torch.float32))

    def _add(self, label: str, layers: tuple[str, ...], counts: torch.Tensor) -> None:
        # An adapter with other experts took over: what the former one used is no longer asked for.
        for key in [k for k, held in self._counts.items() if k[0] == label and held.shape[1] != counts.shape[1]]:
            del self._counts[key]
        before = self._counts.get((label, layers))
        self._counts[label, layers] = counts if before is None else before.to(counts.device) + counts

    def take(self) -> list[list[Any]]:
        """What was counted since the last reset, as JSON values, and reset it; waits for the device."""
        found = [[label, names, counts.tolist()] for (label, names), counts in self._counts.items()]
        self._counts = {}
        return found

    def put(self, taken: list[list[Any]]) -> None:
        """Count what another counter gave."""
        for label, names, rows in taken:
            held = self._counts.get((label, tuple(names)))
            self._add(label, tuple(names), torch.tensor(rows, dtype=None if held is None else held.dtype))

    def read(self, reset: bool) -> dict[str, ExpertUsage]:
        """Use by bank since the last reset; waits for the device."""
        found: dict[str, dict[str, list[float]]] = {}
        for (label, names), counts in self._counts.items():
            rows = found.setdefault(label, {})
            for layer, row in zip(names, counts.tolist(), strict=True):
                rows[layer] = [a + b for a, b in zip(rows.get(layer, [0.0] * len(row)), row, strict=True)]
        if reset:
            self._counts = {}
        usage = {}
        for label, rows in found.items():
            totals = [sum(column) for column in zip(*rows.values(), strict=True)]
            if any(totals):
                layers = {layer: _shares(row) for layer, row in rows.items() if layer and any(row)}
                usage[label] = ExpertUsage(_shares(totals), layers)
        return usage


def _shares(counts: list[float]) -> list[float]:
    total = sum(counts)
    return [count / total for count in counts]
