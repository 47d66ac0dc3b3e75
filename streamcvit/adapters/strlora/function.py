"""StrLoRA's token router: the rows it scores by, with a hand-written gradient, and its decode step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from streamcvit.adapters.experts import barred, largest
from streamcvit.adapters.tuner import without_autocast


class AttentionRows(torch.autograd.Function):
    """Rows (K c * p_e / |p_e|) Q of each sample's experts: products with x are the scores <Q x, K c * p_e / |p_e|>.

    The query projection is folded into one row per expert and sample: never a query per token. Weights are cast to the
    type of the text; the gradient of the prototypes is summed by a product with the one-hot `owner`, as experts' are.

    Shapes: text c [B, T], key K [D, T], query Q [D, I], prototypes p [E, D], flat [B k], owner [E, B k] (None without
    gradients); the rows are [B k, 1, I].
    """

    @staticmethod
    def forward(
        ctx: Any,
        text: torch.Tensor,
        key: torch.Tensor,
        query: torch.Tensor,
        prototypes: torch.Tensor,
        flat: torch.Tensor,
        owner: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(text, key, query, prototypes, flat, owner)
        return (attention_targets(text, key, prototypes, flat) @ query.to(text.dtype)).unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        text, key, query, prototypes, flat, owner = ctx.saved_tensors
        with without_autocast(grad.device.type):
            wanted, unit, norm, chosen = _attend(text, key, prototypes, flat)
            grad = grad.squeeze(1)
            d_query = ((wanted * chosen).flatten(0, 1).T @ grad).to(query.dtype)
            d_target = (grad @ query.to(text.dtype).T).view(chosen.shape)
            d_key = ((d_target * chosen).sum(1).T @ text).to(key.dtype)
            d_unit = owner @ (d_target * wanted).flatten(0, 1)
            d_prototypes = (d_unit - unit * (unit * d_unit).sum(-1, keepdim=True)) / norm
        return None, d_key, d_query, d_prototypes.to(prototypes.dtype), None, None


def attention_targets(
    text: torch.Tensor, key: torch.Tensor, prototypes: torch.Tensor, flat: torch.Tensor
) -> torch.Tensor:
    """K c * p_e / |p_e| of each sample's experts, [B k, D]: what they look for in a query."""
    wanted, _, _, chosen = _attend(text, key, prototypes, flat)
    return (wanted * chosen).flatten(0, 1)


def _attend(text: torch.Tensor, key: torch.Tensor, prototypes: torch.Tensor, flat: torch.Tensor) -> tuple:
    """K c [B, 1, D], unit prototypes [E, D], their norms [E, 1], and those of each sample's experts [B, k, D]."""
    wanted = (text @ key.to(text.dtype).T).unsqueeze(1)
    prototypes = prototypes.to(text.dtype)
    norm = prototypes.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    unit = prototypes / norm
    return wanted, unit, norm, unit.index_select(0, flat).view(len(text), -1, unit.shape[1])


class Step(NamedTuple):
    """What a decode step needs to weigh all experts, the same for every step of a sequence.

    Attributes:
        columns: [I, D] query projection, or [I, E] linear token router.
        toward: [B, E, D] what each expert looks for in the query, zero at those barred; None for the linear router.
        barred: [B, E, 1] zero at each sample's experts, -inf at others.
    """

    columns: torch.Tensor
    toward: torch.Tensor | None
    barred: torch.Tensor

    @classmethod
    def of(cls, index: torch.Tensor, toward: torch.Tensor | None, rows: torch.Tensor, experts: int) -> Step:
        """For samples that may use experts `index` [B, k], of which each looks for `toward` [B k, D]."""
        if toward is not None:
            chosen = toward.view(*index.shape, -1)
            place = index.unsqueeze(-1).expand_as(chosen)
            toward = chosen.new_zeros(len(index), experts, chosen.shape[-1]).scatter_(1, place, chosen)
        return cls(rows.T, toward, barred(index, experts, rows.dtype).unsqueeze(-1))

    def weights(self, x: torch.Tensor, keep: int) -> torch.Tensor:
        """Weights [B, E] for x [B, 1, I]: of the sample's experts the `keep` that score highest, scaled to sum to 1."""
        read = (x.squeeze(1) @ self.columns).unsqueeze(-1)
        score = read + self.barred if self.toward is None else torch.baddbmm(self.barred, self.toward, read)
        # One expert is the same by its score as by its share.
        shares = score if keep == 1 < score.shape[1] else torch.softmax(score, 1)
        return largest(shares.squeeze(-1), keep, renormalise=True)
