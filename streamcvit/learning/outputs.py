"""What the model says where answers stand, and how far it is from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Outputs(NamedTuple):
    """A forward of B samples, at their n answer tokens.

    Attributes:
        logits: [n, V], with graph, in the model's type.
        targets: [n] int64, the answer tokens.
        rows: [n] int64 on the host, the sample of each.
        size: B.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    size: int

    def mean(self, values_n: torch.Tensor) -> torch.Tensor:
        """Mean [B] of each sample's values; 1 / length is the weight of each."""
        member_Bn = self._member(values_n)
        return (member_Bn @ values_n) / member_Bn.sum(1)

    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy [B] float32 over each sample's answer tokens, and whether all of them are the arg-max."""
        loss_n = F.cross_entropy(self.logits.float(), self.targets, reduction="none")
        wrong_n = (self.logits.detach().argmax(-1) != self.targets).to(loss_n.dtype)
        return self.mean(loss_n), (self._member(wrong_n) @ wrong_n) == 0

    def _member(self, values_n: torch.Tensor) -> torch.Tensor:
        # A product with the membership matrix sums in a fixed order on every device (index_add does not on CUDA).
        member_Bn = torch.arange(self.size)[:, None] == self.rows
        return member_Bn.to(values_n.device, values_n.dtype, non_blocking=True)


@contextmanager
def judging(model: nn.Module) -> Iterator[None]:
    """Eval mode while it lasts: nothing drops out, no router learns and nothing is counted.

    Layers with gradient checkpointing stay as they are, which puts them into eval mode itself.
    """
    modes = [(module, module.training) for module in model.modules() if module.training]
    try:
        for module, _ in modes:
            # Its own, as PEFT's wrappers pass on what they are asked for, and those tell routers whether to learn.
            module.training = vars(module).get("gradient_checkpointing", False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
