"""Products with gathered experts, and the formula of experts weighed per token, with a hand-written gradient.

Experts are held as A [E, r, I] and B [E, r, O]. A sample's k experts are gathered by `flat` [B k], and gathered again
in backward instead of being kept; their gradients are summed by a product with the one-hot `owner` [E, B k], which
unlike index_add is deterministic on every device. What has an entry per token lies with the tokens last, [B, k, r, S],
where sums over ranks and experts run along whole rows. Weights are cast to the type of x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from streamcvit.adapters.tuner import without_autocast

softmax_backward = torch.ops.aten._softmax_backward_data.default


def owners(flat: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """One-hot [count, n] of indices [n]. Not F.one_hot: that waits for the device."""
    return (torch.arange(count, device=flat.device).unsqueeze(1) == flat).to(dtype)


def gather(weights: torch.Tensor, flat: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Weights [E, r, N] of the routed experts, [B k, r, N]; all of them where `flat` is None."""
    weights = weights.to(dtype)
    return weights if flat is None else weights.index_select(0, flat)


def owned(owner: torch.Tensor | None, gathered: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Gradients [B k, r, N] of the gathered experts, summed into those of the experts [E, r, N]."""
    if owner is not None:
        gathered = (owner @ gathered.flatten(1)).view(weights.shape)
    return gathered.to(weights.dtype)


def scaled_bmm(left: torch.Tensor, right: torch.Tensor, scaling: float) -> torch.Tensor:
    """scaling * left @ right, at the cost of the product."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scaling)


def project(x: torch.Tensor, rows: torch.Tensor, scaling: float = 1.0) -> torch.Tensor:
    """scaling * rows @ x per sample, for x [B, S, N] and rows [B k, m, N]; [B, k, m, S]."""
    batch, length, width = x.shape
    rows = rows.view(batch, -1, width)
    # The small result is transposed, not the operands: with few rows, this way round the product is faster.
    product = scaled_bmm(x, rows.mT, scaling).mT.contiguous()
    return product.view(batch, -1, length)


def barred(index: torch.Tensor, experts: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, E]: zero at a sample's experts `index` [B, k], -inf at all others."""
    return torch.full((len(index), experts), -torch.inf, dtype=dtype, device=index.device).scatter_(1, index, 0)


def project_all(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """A x of all experts for one token a sample, x [B, 1, I]; [B, E, r].

    One position does not repay gathering a sample's experts: all are applied, those not chosen with weight zero.
    """
    return (x.squeeze(1) @ a.to(x.dtype).flatten(0, 1).T).view(-1, *a.shape[:2])


def add_all(
    base: torch.Tensor, h: torch.Tensor, weights: torch.Tensor, b: torch.Tensor, scaling: float
) -> torch.Tensor:
    """base [B, 1, O] plus scaling * sum_e weights_e B_e h_e, for weights [B, E] and h of `project_all`."""
    mixed = (h * weights.unsqueeze(-1)).flatten(1)
    return torch.addmm(base.squeeze(1), mixed, b.to(h.dtype).flatten(0, 1), alpha=scaling).unsqueeze(1)


class Decoding(NamedTuple):
    """Experts as a decode step needs them, one token a sample; the same for every step of a sequence.

    One position does not repay gathering anew: n experts are applied, those not chosen with weight zero. They are all
    experts, or those of the samples side by side where these are fewer.

    Attributes:
        a: [I, n r].
        b: [n r, O].
        place: [B, k] int64, where a sample's own stand among the n.
        barred: [B, n], zero at a sample's own, -inf at others.
    """

    a: torch.Tensor
    b: torch.Tensor
    place: torch.Tensor
    barred: torch.Tensor

    @classmethod
    def of(cls, index: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> Decoding:
        """For samples that may use experts `index` [B, k] of a [E, r, I] and b [E, r, O], at inputs of `dtype`."""
        if index.numel() < a.shape[0]:
            a, b = (weights.index_select(0, index.reshape(-1)) for weights in (a, b))
            index = torch.arange(index.numel(), device=index.device).view(index.shape)
        others = barred(index, a.shape[0], dtype)
        a, b = (weights.detach().to(dtype).flatten(0, 1) for weights in (a, b))
        return cls(a.T, b, index, others)


class Chosen(NamedTuple):
    """The experts that each sample may use.

    Attributes:
        experts: [B, k] int64.
        flat: [B k], the same in a row.
        owner: [E, B k] one-hot of `flat`, only where gradients are wanted.
    """

    experts: torch.Tensor
    flat: torch.Tensor
    owner: torch.Tensor | None

    @classmethod
    def of(cls, index: torch.Tensor, count: int, dtype: torch.dtype) -> Chosen:
        """The forms of `index` [B, k] into `count` experts, for inputs of `dtype`."""
        flat = index.reshape(-1)
        return cls(index, flat, owners(flat, count, dtype) if torch.is_grad_enabled() else None)

    def pick(self, weights: torch.Tensor) -> torch.Tensor:
        """Rows [B k, N] of weights [E, N]."""
        return Picked.apply(weights, self.flat, self.owner)


class Picked(torch.autograd.Function):
    """Rows [B k, N] of weights [E, N], with a deterministic gradient."""

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, flat: torch.Tensor, owner: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(owner)
        return weights.index_select(0, flat)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        (owner,) = ctx.saved_tensors
        return owner @ grad, None, None


def largest(shares: torch.Tensor, keep: int, renormalise: bool) -> torch.Tensor:
    """Shares [B, k, ...] with all but the `keep` largest of the k at zero, the others scaled to sum to 1 if asked."""
    if not 0 < keep < shares.shape[1]:
        return shares
    value, place = shares.topk(keep, 1)
    kept = torch.zeros_like(shares)
    if not renormalise:
        return kept.scatter_(1, place, value)
    return kept.scatter_(1, place, 1.0 if keep == 1 else value / value.sum(1, keepdim=True))


class TokenExperts(torch.autograd.Function):
    """base + s sum_e w_e B_e A_e x over the k experts of each sample, w = largest(softmax_e(<rows_e, x>)) per token.

    A router's row is put below its expert's A, so that one product gives both. With `straight`, the weights kept are
    scaled to sum to 1 and pass their gradient to all shares as if none had been dropped; otherwise neither.

    With `teacher`, rows like `rows` that get no gradient, a second output is KL(softmax(teacher x / tau) ||
    softmax(rows x / tau)) of each token, [B, S]; its gradient reaches x only `through` the student's scores.
    The last output is w, [B, k, S], for those who count; it has no gradient.

    With `seen`, x after dropout, the experts are given that, and the routers x as it is.

    Shapes: x and seen [B, S, I], base [B, S, O], a [E, r, I], b [E, r, O], rows and teacher [B k, 1, I], flat [B k] and
    owner [E, B k], both None where all tokens share all experts (and are passed as one sample), scaling: s.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        rows: torch.Tensor,
        teacher: torch.Tensor | None,
        flat: torch.Tensor | None,
        owner: torch.Tensor | None,
        keep: int,
        straight: bool,
        through: bool,
        tau: float,
        scaling: float,
        seen: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        r = a.shape[1]
        below = (rows,) if teacher is None else (rows, teacher)
        experts = gather(a, flat, x.dtype)
        batch, length, _ = x.shape
        if seen is None:
            stack = torch.cat((experts, *below), 1)
            products = project(x, stack).view(batch, -1, stack.shape[1], length)
        else:
            scores = project(x, torch.cat(below, 1)).view(batch, -1, len(below), length)
            products = torch.cat((project(seen, experts).view(batch, -1, r, length), scores), 2)
        share = torch.softmax(products[:, :, r], 1)
        kept = largest(share, keep, straight)
        divergence = pull = None
        if teacher is not None:
            divergence, pull = _divergence(products[:, :, r:], tau)
        ctx.save_for_backward(x, seen, a, b, rows, flat, owner, products, share, kept, pull)
        ctx.sparse, ctx.through, ctx.scaling = kept is not share and not straight, through, scaling
        out = torch.baddbmm(base, _mixed(products, kept, r).mT, _by_sample(b, flat, x), alpha=scaling)
        weights = kept.detach()
        ctx.mark_non_differentiable(weights)
        return out, divergence, weights

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, d_divergence: torch.Tensor | None, _: torch.Tensor | None) -> tuple:
        with without_autocast(grad.device.type):
            return _gradients(ctx, grad.contiguous(), d_divergence)


def _gradients(ctx: Any, grad: torch.Tensor, d_divergence: torch.Tensor | None) -> tuple:
    x, seen, a, b, rows, flat, owner, products, share, kept, pull = ctx.saved_tensors
    r, width = a.shape[1:]
    batch, k, _, length = products.shape

    d_mixed = project(grad, _by_sample(b, flat, x), ctx.scaling).view(batch, k, r, length)
    d_b = owned(owner, scaled_bmm(_mixed(products, kept, r), grad, ctx.scaling).view(batch * k, r, -1), b)
    d_share = (d_mixed * products[:, :, :r]).sum(2)
    if ctx.sparse:
        d_share = d_share * (kept > 0)
    d_score = softmax_backward(d_share, share, 1, share.dtype).unsqueeze(2)
    d_h = d_mixed * kept.unsqueeze(2)
    own = d_score
    if pull is not None and d_divergence is not None:
        d_score = d_score.addcmul(pull, d_divergence.to(x.dtype)[:, None, None])
    through = d_score if ctx.through else own
    d_x = d_seen = None
    if seen is None:
        d_products = torch.cat((d_h, d_score), 2).view(batch, -1, length)
        d_own = d_products if through is d_score else torch.cat((d_h, through), 2).view(batch, -1, length)
        d_stack = torch.bmm(d_products, x).view(batch * k, r + 1, width)
        d_experts, d_rows = d_stack[:, :r], d_stack[:, r:]
        if ctx.needs_input_grad[0]:
            stack = torch.cat((gather(a, flat, x.dtype), rows), 1).view(batch, -1, width)
            d_x = torch.bmm(d_own.mT, stack)
    else:
        d_h, d_score, through = (part.view(batch, -1, length) for part in (d_h, d_score, through))
        d_experts = torch.bmm(d_h, seen).view(batch * k, r, width)
        d_rows = torch.bmm(d_score, x).view(batch * k, 1, width)
        if ctx.needs_input_grad[0]:
            d_x = torch.bmm(through.mT, rows.view(batch, -1, width))
            d_seen = torch.bmm(d_h.mT, gather(a, flat, x.dtype).view(batch, -1, width))
    d_a = owned(owner, d_experts, a)
    return d_x, grad, d_a, d_b, d_rows, None, None, None, None, None, None, None, None, d_seen


def _mixed(products: torch.Tensor, kept: torch.Tensor, r: int) -> torch.Tensor:
    """Weighed A x of each sample's experts, [B, k r, S]."""
    return (products[:, :, :r] * kept.unsqueeze(2)).flatten(1, 2)


def _by_sample(weights: torch.Tensor, flat: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return gather(weights, flat, x.dtype).view(x.shape[0], -1, weights.shape[2])


def _divergence(scores: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(teacher || student) [B, S] of scores [B, k, (student, teacher), S], and its gradient [B, k, 1, S] by the
    student's scores."""
    logs = torch.log_softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)) / tau, 1)
    student, teacher = logs.unbind(2)
    shares = logs.exp()
    divergence = (shares[:, :, 1] * (teacher - student)).sum(1)
    return divergence, ((shares[:, :, :1] - shares[:, :, 1:]) / tau).to(scores.dtype)
