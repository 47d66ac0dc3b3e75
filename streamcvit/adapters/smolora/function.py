"""The SMoLoRA formula with a hand-written gradient."""

from __future__ import annotations

from typing import Any

import torch


class RoutedExperts(torch.autograd.Function):
    """base + s sum_m a_m B_m A_m x over the k = 1 or 2 experts m that each sample was routed to.

    With two, (a_1, a_2) = softmax(<fc_1, s B_1 A_1 x>, <fc_2, s B_2 A_2 x>) per position; with one, a is 1. Scores are
    taken in rank space, <fc, B h> = <B^T fc, h>, so neither expert's output is ever formed. Gathers the routed experts,
    gathers them again in backward instead of keeping them, and sums gradients by a product with one-hot routes, which
    unlike index_add is deterministic on every device. Weights are cast to x's type.

    Shapes: x [B, S, I], base [B, S, O], A [E, r, I], B [E, r, O], fc [2, O] or None, weight [B, k] or None (ones that
    carry the router's gradient), index [B, k] int64 into E, first: experts of the first bank, scaling: s.
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
        index: torch.Tensor,
        first: int,
        scaling: float,
    ) -> torch.Tensor:
        batch, length, _ = x.shape
        k, r = index.shape[1], a.shape[1]
        a_x, b_x = _gather(a, index, x.dtype), _gather(b, index, x.dtype)
        h = torch.bmm(x, a_x.mT)
        mixed, share, score = h, None, None
        if fc is not None:
            # [2, E r], of which a sample needs row 0 at its first expert and row 1 at its second.
            scores = (fc @ b.view(-1, b.shape[2]).T).view(2, -1, r)
            score = (scores[torch.arange(2, device=x.device), index] * scaling).to(x.dtype)
            by_expert = h.view(batch, length, k, r)
            share = torch.softmax((by_expert * score.unsqueeze(1)).sum(-1), -1)
            mixed = (by_expert * share.unsqueeze(-1)).view(batch, length, k * r)
        ctx.save_for_backward(x, a, b, fc, index, h, mixed, share, score)
        ctx.first, ctx.scaling = first, scaling
        return torch.baddbmm(base, mixed, b_x, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, a, b, fc, index, h, mixed, share, score = ctx.saved_tensors
        first, scaling = ctx.first, ctx.scaling
        batch, length, _ = x.shape
        k, experts, r = index.shape[1], a.shape[0], a.shape[1]
        grad = grad.contiguous()
        owner = (torch.arange(experts, device=x.device).unsqueeze(1) == index.view(1, -1)).to(x.dtype)

        d_h = torch.bmm(grad, _gather(b, index, x.dtype).mT) * scaling
        d_b = (owner @ (torch.bmm(mixed.mT, grad) * scaling).view(batch * k, -1)).view(b.shape).to(b.dtype)
        d_fc = None
        if fc is not None:
            by_expert, d_mixed = h.view(batch, length, k, r), d_h.view(batch, length, k, r)
            d_share = (d_mixed * by_expert).sum(-1)
            d_z = share * (d_share - (d_share * share).sum(-1, keepdim=True))
            d_h = (d_mixed * share.unsqueeze(-1) + d_z.unsqueeze(-1) * score.unsqueeze(1)).view(h.shape)
            d_score = (d_z.unsqueeze(-1) * by_expert).sum(1).view(batch * k, r)
            d_u = (owner @ d_score).to(b.dtype) * scaling
            d_b[:first].addcmul_(d_u[:first].unsqueeze(-1), fc[0])
            d_b[first:].addcmul_(d_u[first:].unsqueeze(-1), fc[1])
            d_fc = torch.stack(
                (
                    d_u[:first].reshape(-1) @ b[:first].reshape(-1, b.shape[2]),
                    d_u[first:].reshape(-1) @ b[first:].reshape(-1, b.shape[2]),
                )
            )
        d_a = (owner @ torch.bmm(d_h.mT, x).view(batch * k, -1)).view(a.shape).to(a.dtype)
        d_x = torch.bmm(d_h, _gather(a, index, x.dtype)) if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[5]:
            d_weight = (d_h * h).view(batch, length, k, r).sum((1, 3))
        return d_x, grad, d_a, d_b, d_fc, d_weight, None, None, None


def _gather(weights: torch.Tensor, index: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights [E, r, N] of the routed experts as [B, k r, N]."""
    batch, k = index.shape
    return weights.to(dtype).index_select(0, index.view(-1)).view(batch, k * weights.shape[1], weights.shape[2])
