"""AdamW in which an expert that no sample was routed to stands still."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw


class ExpertAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) with a step count and moments of its own for every expert.

    Experts are stacked, [E, r, N], so to a stock optimizer they are one parameter. Its momentum then keeps moving an
    expert for many steps after the last sample that was routed to it, its second moments fade meanwhile, and its bias
    correction takes a fresh expert for an old one, whose first steps come out up to three times too long. Here each
    expert is a parameter of its own to torch's fused AdamW, and one whose gradient is zero in every entry is left out
    of the step, as stock optimizers leave out parameters without a gradient.

    Args:
        params: dense parameters, `experts` among them.
        experts: those that stack experts along their first axis.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled; not applied to an expert that is left out.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        experts: Iterable[torch.Tensor] = (),
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._stacked = {id(parameter) for parameter in experts}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient are left out. Reads once which experts are in use."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            used = self._in_use([p for p in weights if id(p) in self._stacked])
            columns: tuple[list[torch.Tensor], ...] = ([], [], [], [], [])
            for weight in weights:
                row = (weight, weight.grad, *self._state_of(weight))
                slices = used.get(id(weight))
                for column, tensor in zip(columns, row, strict=True):
                    column += [tensor] if slices is None else [tensor[expert] for expert in slices]
            if columns[0]:
                parameters, grads, means, squares, counts = columns
                beta1, beta2 = group["betas"]
                adamw(
                    parameters, grads, means, squares, [], counts, fused=True, amsgrad=False, beta1=beta1, beta2=beta2,
                    lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
                )  # fmt: skip

    def _state_of(self, parameter: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """First and second moment, and the count of steps: [E] for stacked experts."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            shape = parameter.shape[:1] if id(parameter) in self._stacked else ()
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = torch.zeros(shape, device=parameter.device)
        return state["exp_avg"], state["exp_avg_sq"], state["step"]

    def _in_use(self, stacked: list[torch.Tensor]) -> dict[int, list[int]]:
        """Which experts of each parameter have a gradient; one read from the device for all of them."""
        if not stacked:
            return {}
        norms = [torch.linalg.vector_norm(p.grad.flatten(1), dim=1) for p in stacked]  # type: ignore[union-attr]
        flags = torch.cat(norms).tolist()
        found, start = {}, 0
        for parameter in stacked:
            stop = start + len(parameter)
            found[id(parameter)] = [expert for expert, flag in enumerate(flags[start:stop]) if flag]
            start = stop
        return found
