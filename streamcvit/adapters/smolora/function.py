"""The SMoLoRA formula with a hand-written gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from streamcvit.adapters.tuner import without_autocast

_softmax_backward = torch.ops.aten._softmax_backward_data.default


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
        slots = torch.arange(k * experts, device=index.device).unsqueeze(1)
        # Not F.one_hot: that waits for the device.
        return cls(index, flat, score, (slots[:experts] == flat).to(dtype), (slots == score).to(dtype))


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
        k, r = len(flat) // batch, a.shape[1]
        h = _scaled_bmm(x, _gather(a, flat, batch, x.dtype).mT, scaling)
        mixed, share, toward = h, None, None
        if fc is not None:
            toward = expert_scores(fc, b, score).to(x.dtype).view(batch, 1, k, r)
            by_expert = h.view(batch, length, k, r)
            share = torch.softmax((by_expert * toward).sum(-1), -1)
            mixed = (by_expert * share.unsqueeze(-1)).view(batch, length, k * r)
        ctx.save_for_backward(x, a, b, fc, flat, owner, score_owner, h, mixed, share, toward)
        ctx.k, ctx.scaling = k, scaling
        return torch.baddbmm(base, mixed, _gather(b, flat, batch, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        with without_autocast(grad.device.type):
            return _gradients(ctx, grad)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple:
    x, a, b, fc, flat, owner, score_owner, h, mixed, share, toward = ctx.saved_tensors
    batch, length, _ = x.shape
    k, (experts, r, _) = ctx.k, a.shape
    grad = grad.contiguous()

    d_h = torch.bmm(grad, _gather(b, flat, batch, x.dtype).mT)
    d_b = _owned(owner, torch.bmm(mixed.mT, grad), b)
    d_fc = None
    if fc is not None:
        by_expert, d_mixed = h.view(batch, length, k, r), d_h.view(batch, length, k, r)
        d_share = (d_mixed * by_expert).sum(-1)
        d_z = _softmax_backward(d_share, share, -1, share.dtype).unsqueeze(-1)
        d_toward = (d_z * by_expert).sum(1).view(batch * k, r)
        d_h = (d_mixed * share.unsqueeze(-1)).addcmul_(d_z, toward).view(h.shape)
        d_scores = (score_owner @ d_toward).to(b.dtype).view(k, experts * r)
        d_fc = d_scores @ b.view(experts * r, -1)
        d_b.view(experts * r, -1).addmm_(d_scores.T, fc)
    d_a = _owned(owner, _scaled_bmm(d_h.mT, x, ctx.scaling), a)
    d_x = None
    if ctx.needs_input_grad[0]:
        d_x = _scaled_bmm(d_h, _gather(a, flat, batch, x.dtype), ctx.scaling)
    d_weight = None
    if ctx.needs_input_grad[5]:
        d_weight = (d_h * h).view(batch, length, k, r).sum((1, 3))
    return d_x, grad, d_a, d_b, d_fc, d_weight, None, None, None, None, None


def expert_scores(fc: torch.Tensor, b: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """B^T fc of each sample's experts, [B k, r]: its fusion scores in rank space, from fc [k, O] and b [E, r, O]."""
    # What each fc row says of each expert, of which a sample needs one row per expert.
    return (fc @ b.view(-1, b.shape[2]).T).view(-1, b.shape[1]).index_select(0, score)


class Step(NamedTuple):
    """What a decode step needs of a route, the same for every step of a sequence.

    Attributes:
        toward: [B, E, r] scaled fusion scores of each sample's experts, zero at others; None with one expert.
        barred: [B, E] zero at each sample's experts, -inf at others.
    """

    toward: torch.Tensor | None
    barred: torch.Tensor

    @classmethod
    def of(cls, route: Route, fc: torch.Tensor | None, b: torch.Tensor, scaling: float, dtype: torch.dtype) -> Step:
        """For experts b [E, r, O] and fusion rows fc [2, O], at inputs of `dtype`."""
        batch, (experts, r, _) = len(route.experts), b.shape
        barred = torch.full((batch, experts), -torch.inf, dtype=dtype, device=b.device).scatter_(1, route.experts, 0)
        if fc is None:
            return cls(None, barred)
        scores = (expert_scores(fc, b, route.score) * scaling).to(dtype).view(batch, -1, r)
        place = route.experts.unsqueeze(-1).expand(-1, -1, r)
        return cls(scores.new_zeros(batch, experts, r).scatter_(1, place, scores), barred)


def one_token(
    x: torch.Tensor, base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, step: Step, scaling: float
) -> torch.Tensor:
    """`RoutedExperts` for a decode step, x [B, 1, I], without gradients.

    One position does not repay gathering a sample's experts: all are applied, and those not chosen get weight 0.
    """
    experts, r, _ = a.shape
    h = (x.squeeze(1) @ a.to(x.dtype).view(experts * r, -1).T).view(-1, experts, r)
    score = step.barred if step.toward is None else (h * step.toward).sum(-1) + step.barred
    mixed = (h * torch.softmax(score, -1).unsqueeze(-1)).view(-1, experts * r)
    return torch.addmm(base.squeeze(1), mixed, b.to(x.dtype).view(experts * r, -1), alpha=scaling).unsqueeze(1)


def _gather(weights: torch.Tensor, flat: torch.Tensor, batch: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights [E, r, N] of the routed experts as [B, k r, N]."""
    return weights.to(dtype).index_select(0, flat).view(batch, -1, weights.shape[2])


def _scaled_bmm(left: torch.Tensor, right: torch.Tensor, scaling: float) -> torch.Tensor:
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scaling)


def _owned(owner: torch.Tensor, per_sample: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Gradients [B, k r, N] of the gathered experts, summed into those of the experts [E, r, N]."""
    return (owner @ per_sample.view(owner.shape[1], -1)).to(weights.dtype).view(weights.shape)
