"""The SMoLoRA formula with a hand-written gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from streamcvit.adapters.experts import Decoding, gather, owned, owners, project, scaled_bmm, softmax_backward
from streamcvit.adapters.tuner import without_autocast


class Route(NamedTuple):
    """Which experts act for each sample, in the forms that the formula and its gradient need.

    Attributes:
        experts: [B, k] int64 into the stacked experts.
        flat: [B k] int64, the same in a row.
        score: [B k] int64, rows of the k E expert scores: `flat`, plus E for a sample's second expert.
        owner: [E, B k] one-hot of `flat`, and
        score_owner: [k E, B k] one-hot of `score`, both only where gradients are wanted.
    """

    experts: torch.Tensor
    flat: torch.Tensor
    score: torch.Tensor
    owner: torch.Tensor | None
    score_owner: torch.Tensor | None

    @classmethod
    def of(cls, index: torch.Tensor, experts: int, dtype: torch.dtype) -> Route:
        """The forms of `index` [B, k] into `experts` experts, for inputs of `dtype`."""
        k = index.shape[1]
        columns = torch.arange(0, k * experts, experts, device=index.device)
        flat, score = index.reshape(-1), (index + columns).view(-1)
        if not torch.is_grad_enabled():
            return cls(index, flat, score, None, None)
        return cls(index, flat, score, owners(flat, experts, dtype), owners(score, k * experts, dtype))


class RoutedExperts(torch.autograd.Function):
    """base + s sum_m a_m B_m A_m x over the k = 1 or 2 experts m that each sample was routed to.

    With two, (a_1, a_2) = softmax(<fc_1, s B_1 A_1 x>, <fc_2, s B_2 A_2 x>) per position; with one, a is 1. Scores are
    taken in rank space, <fc, B h> = <B^T fc, h>, so neither expert's output is ever formed. Gathers the routed experts,
    gathers them again in backward instead of keeping them, and sums gradients by a product with one-hot routes, which
    unlike index_add is deterministic on every device. Weights are cast to x's type. The scaling rides on products that
    are taken anyway.

    Shapes: x [B, S, I], base [B, S, O], a [E, r, I], b [E, r, O], fc [2, O] or None, weight [B, k] or None (ones that
    carry the router's gradient), flat, score, owner and score_owner as in `Route`, scaling: s.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        fc: torch.Tensor | None,
        weight: torch.Tensor | None,
        flat: torch.Tensor,
        score: torch.Tensor,
        owner: torch.Tensor | None,
        score_owner: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        batch, length, _ = x.shape
        r = a.shape[1]
        h = project(x, gather(a, flat, x.dtype), scaling).view(batch, -1, r, length)
        mixed, share, toward = h, None, None
        if fc is not None:
            toward = expert_scores(fc, b, score).to(x.dtype).view(batch, -1, r, 1)
            share = torch.softmax((h * toward).sum(2), 1)
            mixed = h * share.unsqueeze(2)
        ctx.save_for_backward(x, a, b, fc, flat, owner, score_owner, h, share, toward)
        ctx.scaling = scaling
        return torch.baddbmm(base, mixed.flatten(1, 2).mT, gather(b, flat, x.dtype).view(batch, -1, b.shape[2]))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        with without_autocast(grad.device.type):
            return _gradients(ctx, grad.contiguous())


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple:
    x, a, b, fc, flat, owner, score_owner, h, share, toward = ctx.saved_tensors
    batch, k, r, length = h.shape
    experts, _, width = a.shape

    d_h = project(grad, gather(b, flat, x.dtype)).view(h.shape)
    mixed = h if fc is None else h * share.unsqueeze(2)
    d_b = owned(owner, torch.bmm(mixed.flatten(1, 2), grad).view(batch * k, r, -1), b)
    d_fc = None
    if fc is not None:
        d_score = softmax_backward((d_h * h).sum(2), share, 1, share.dtype).unsqueeze(2)
        d_toward = (d_score * h).sum(3).view(batch * k, r)
        d_h = (d_h * share.unsqueeze(2)).addcmul_(d_score, toward)
        d_scores = (score_owner @ d_toward).to(b.dtype).view(k, experts * r)
        d_fc = d_scores @ b.view(experts * r, -1)
        d_b.view(experts * r, -1).addmm_(d_scores.T, fc)
    d_weight = (d_h * h).sum((2, 3)) if ctx.needs_input_grad[5] else None
    d_h = d_h.flatten(1, 2)
    d_a = owned(owner, scaled_bmm(d_h, x, ctx.scaling).view(batch * k, r, width), a)
    d_x = None
    if ctx.needs_input_grad[0]:
        d_x = scaled_bmm(d_h.mT, gather(a, flat, x.dtype).view(batch, -1, width), ctx.scaling)
    return d_x, grad, d_a, d_b, d_fc, d_weight, None, None, None, None, None


def expert_scores(fc: torch.Tensor, b: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """B^T fc of each sample's experts, [B k, r]: its fusion scores in rank space, from fc [k, O] and b [E, r, O]."""
    # What each fc row says of each expert, of which a sample needs one row per expert.
    return (fc @ b.view(-1, b.shape[2]).T).view(-1, b.shape[1]).index_select(0, score)


class Step(NamedTuple):
    """What a decode step needs of a route, the same for every step of a sequence.

    Attributes:
        experts: in the form that a step needs.
        toward: [B, n, r] scaled fusion scores of each sample's experts, zero at others; None where they weigh the same.
        weights: [B, n r], those same weights, once for every row of an expert; None where scores decide.
        scaling: s.
    """

    experts: Decoding
    toward: torch.Tensor | None
    weights: torch.Tensor | None
    scaling: float

    @classmethod
    def of(
        cls,
        route: Route,
        fc: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> Step:
        """For experts a [E, r, I] and b [E, r, O] and fusion rows fc [2, O], at inputs of `dtype`."""
        experts, r = Decoding.of(route.experts, a, b, dtype), b.shape[1]
        if fc is None:
            return cls(experts, None, torch.softmax(experts.barred, -1).repeat_interleave(r, 1), scaling)
        scores = (expert_scores(fc, b, route.score) * scaling).to(dtype).view(*route.experts.shape, r)
        toward = scores.new_zeros(*experts.barred.shape, r)
        return cls(experts, toward.scatter_(1, experts.place.unsqueeze(-1).expand_as(scores), scores), None, scaling)

    def add(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """`RoutedExperts` for x [B, 1, I], without gradients."""
        h = x.squeeze(1) @ self.experts.a
        if self.weights is not None:
            mixed = h * self.weights
        else:
            assert self.toward is not None
            h = h.view(self.toward.shape)
            score = (h * self.toward).sum(-1) + self.experts.barred
            mixed = (h * torch.softmax(score, -1).unsqueeze(-1)).flatten(1)
        return torch.addmm(base.squeeze(1), mixed, self.experts.b, alpha=self.scaling).unsqueeze(1)
