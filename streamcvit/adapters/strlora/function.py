"""StrLoRA's token router: the rows it scores by, with a hand-written gradient, and its decode step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from streamcvit.adapters.experts import Decoding, largest
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
    """What a decode step needs to weigh experts and to apply them, the same for every step of a sequence.

    Attributes:
        experts: in the form that a step needs.
        columns: [I, D] query projection; [I, n] linear token router.
        toward: [B, n, D] what each expert looks for in the query, zero at those barred; None for the linear router.
        barred: [B, n, 1], that of `experts`.
        slots: [n] int64, 0 to n - 1.
        scaling: s.
    """

    experts: Decoding
    columns: torch.Tensor
    toward: torch.Tensor | None
    barred: torch.Tensor
    slots: torch.Tensor
    scaling: float

    @classmethod
    def of(cls, experts: Decoding, toward: torch.Tensor | None, rows: torch.Tensor, scaling: float) -> Step:
        """For `experts` of which each looks for `toward` [B k, D] in the query, or that are scored by `rows` [n, I]."""
        place, others = experts.place, experts.barred
        if toward is not None:
            chosen = toward.view(*place.shape, -1)
            place = place.unsqueeze(-1).expand_as(chosen)
            toward = chosen.new_zeros(*others.shape, chosen.shape[-1]).scatter_(1, place, chosen)
        slots = torch.arange(others.shape[1], device=others.device)
        return cls(experts, rows.T, toward, others.unsqueeze(-1), slots, scaling)

    def weights(self, x: torch.Tensor, keep: int) -> torch.Tensor:
        """Weights [B, n] for x [B, 1, I]: of the sample's experts the `keep` that score highest, scaled to sum to 1."""
        read = (x.squeeze(1) @ self.columns).unsqueeze(-1)
        score = read + self.barred if self.toward is None else torch.baddbmm(self.barred, self.toward, read)
        if keep == 1 < score.shape[1]:  # one expert is the same by its score as by its share
            return score.squeeze(-1).argmax(1, keepdim=True) == self.slots
        return largest(torch.softmax(score, 1).squeeze(-1), keep, renormalise=True)

    def add(self, x: torch.Tensor, seen: torch.Tensor, base: torch.Tensor, keep: int) -> torch.Tensor:
        """`TokenExperts` for x [B, 1, I], of which the experts are given `seen`, without gradients."""
        weights = self.weights(x, keep)
        h = (seen.squeeze(1) @ self.experts.a).view(*weights.shape, -1)
        mixed = (h * weights.unsqueeze(-1)).flatten(1)
        return torch.addmm(base.squeeze(1), mixed, self.experts.b, alpha=self.scaling).unsqueeze(1)
