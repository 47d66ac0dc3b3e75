"""AdamW in which an expert that no sample was routed to stands still, and a step that is not finite is not taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

    A parameter in half precision, such as a projector that is trained whole, would lose steps to rounding: it follows a
    copy of its own in float32, with moments in float32.

    Args:
        params: dense parameters, `experts` among them; or groups of them, each with its own `params` and `lr`.
        experts: those that stack experts along their first axis.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled; not applied to an expert that is left out.
        together: an expert's parameters are left out together or not at all, as those of a model of its own would be:
            A of a fresh LoRA, whose first gradient is zero, then counts a step with its B.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        experts: Iterable[torch.Tensor] = (),
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        together: bool = False,
    ) -> None:
        self._together = together
        # `fused`: torch then loads counts of steps onto their parameter's device, where the fused kernel wants them.
        given = list(params)
        groups: list[dict[str, Any]] = [g if isinstance(g, dict) else {"params": [g]} for g in given]
        flat: list[torch.Tensor] = [p for group in groups for p in group["params"]]
        stacked = {id(parameter) for parameter in experts}
        kept = [p if p.dtype.itemsize > 2 else p.detach().float().requires_grad_() for p in flat]
        self._halves = {i: p for i, (p, copy) in enumerate(zip(flat, kept, strict=True)) if copy is not p}
        self._kept = kept
        rest = iter(kept)
        own: Any = kept
        if given and isinstance(given[0], dict):
            own = [{**group, "params": [next(rest) for _ in group["params"]]} for group in groups]
        super().__init__(own, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})
        self._stacked = {id(copy) for p, copy in zip(flat, kept, strict=True) if id(p) in stacked}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        super().zero_grad(set_to_none)
        for half in self._halves.values():
            half.grad = None

    def copies(self) -> dict[int, torch.Tensor]:
        """The float32 copies of parameters in half precision, by number: what a restart needs beside the state."""
        return {i: self._kept[i] for i in self._halves}

    @torch.no_grad()
    def load_copies(self, copies: Mapping[int, torch.Tensor]) -> None:
        """Inverse of `copies`, after the parameters themselves were loaded, which stand in for one that is lacking."""
        for i, half in self._halves.items():
            self._kept[i].copy_(copies.get(i, half))

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, *, verdict: torch.Tensor | None = None, read: bool = True
    ) -> float | None:
        """Take one step, or none; parameters without a gradient are left out.

        With experts, one read from the device says which of them are in use, and the verdict comes along with it. So
        it does where `read` asks for it. Else nothing waits for the device: there the verdict itself keeps the fused
        kernel from writing.

        Args:
            closure: not used.
            verdict: 0-dim float32, other than 0 where the step must change nothing; None: take it.
            read: whether the caller must know the verdict now.

        Returns:
            The verdict, or None where it was not read.
        """
        for i, half in self._halves.items():
            self._kept[i].grad = None if half.grad is None else half.grad.float()
        found = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        stacked = [p for weights in found for p in weights if id(p) in self._stacked]
        used, said = self._look(stacked, verdict, read)
        if said:
            return said
        bar = None if said is not None or verdict is None else (verdict != 0).float()
        for group, weights in zip(self.param_groups, found, strict=True):
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
                    lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False, found_inf=bar,
                )  # fmt: skip
        if self._halves:
            torch._foreach_copy_(list(self._halves.values()), [self._kept[i] for i in self._halves])
        return said

    def _state_of(self, parameter: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """First and second moment, and the count of steps: [E] for stacked experts."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            shape = parameter.shape[:1] if id(parameter) in self._stacked else ()
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = torch.zeros(shape, device=parameter.device)
        return state["exp_avg"], state["exp_avg_sq"], state["step"]

    def _look(
        self, stacked: list[torch.Tensor], verdict: torch.Tensor | None, read: bool
    ) -> tuple[dict[int, list[int]], float | None]:
        """Which experts of each parameter have a gradient, and the verdict; one read from the device for all."""
        parts = [torch.linalg.vector_norm(p.grad.flatten(1), dim=1) for p in stacked]  # type: ignore[union-attr]
        if verdict is not None and (stacked or read):
            parts.append(verdict.reshape(1))
        flags = torch.cat(parts).cpu().tolist() if parts else []
        said = flags.pop() if verdict is not None and flags else None
        found, start = {}, 0
        for parameter in stacked:
            stop = start + len(parameter)
            found[id(parameter)] = [expert for expert, flag in enumerate(flags[start:stop]) if flag]
            start = stop
        if self._together:
            used = sorted(set().union(*found.values()))
            found = dict.fromkeys(found, used)
        return found, said
