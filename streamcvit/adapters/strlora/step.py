"""StrLoRA's decode step."""

from __future__ import annotations

from typing import NamedTuple

import torch

from streamcvit.adapters.experts import barred, largest


class Step(NamedTuple):
    """What a decode step needs to weigh all experts, the same for every step of a sequence.

    Attributes:
        rows: [D, I] query projection, or [E, I] linear token router.
        toward: [B, E, D] what each expert looks for in the query, zero at those barred; None for the linear router.
        barred: [B, E] zero at each sample's experts, -inf at others.
    """

    rows: torch.Tensor
    toward: torch.Tensor | None
    barred: torch.Tensor

    @classmethod
    def of(cls, index: torch.Tensor, toward: torch.Tensor | None, rows: torch.Tensor, experts: int) -> Step:
        """For samples that may use experts `index` [B, k], of which each looks for `toward` [B k, D]."""
        if toward is not None:
            chosen = toward.view(*index.shape, -1)
            place = index.unsqueeze(-1).expand_as(chosen)
            toward = chosen.new_zeros(len(index), experts, chosen.shape[-1]).scatter_(1, place, chosen)
        return cls(rows, toward, barred(index, experts, rows.dtype))

    def weights(self, x: torch.Tensor, keep: int) -> torch.Tensor:
        """Weights [B, E] for x [B, 1, I]: of the sample's experts the `keep` that score highest, scaled to sum to 1."""
        read = x.squeeze(1) @ self.rows.T
        if self.toward is None:
            score = read + self.barred
        else:
            score = torch.baddbmm(self.barred.unsqueeze(-1), self.toward, read.unsqueeze(-1)).squeeze(-1)
        return largest(torch.softmax(score, 1), keep, renormalise=True)
