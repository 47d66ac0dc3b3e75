"""O-LoRA (Wang et al. 2023): each chunk learns in a subspace of its own, orthogonal to those of the chunks before."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from streamcvit.adapters.lowrank import LowRank, low_ranks
from streamcvit.errors import UserError
from streamcvit.learning.strategies.base import Sequential, number, whole_number

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


class OLoRA(Sequential):
    """Keep the directions that a chunk's update reads out of those that earlier chunks' updates read.

    W + sum_i B_i A_i with a LoRA of rank w for each chunk i is one LoRA of rank sum_i w, whose A has the A_i one above
    another. So every layer's rank is cut into `subspaces` equal parts; chunk t learns part t mod `subspaces` alone, the
    others stand still, and the loss has strength * sum_{i < t} sum_{j, k} |(A_i A_t^T)_{j, k}|^2 besides, summed over
    layers (Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", equations 6 to 9; the
    released code sums absolute values). Once there are more chunks than parts, the oldest part is learned over, kept
    orthogonal to all others: so many chunks are protected, and nothing grows.

    A mixture of experts has such parts in each expert, so that what an expert learns in a chunk keeps out of what it
    learned before; an expert whose part no sample has changed yet is left alone. Routers, and what is trained whole,
    learn as they would.

    Args:
        seed: not used.
        strength: lambda, of the term; 0: none, chunks still have parts of their own.
        subspaces: parts of each layer's rank, which must divide it; at least 2.
    """

    def __init__(self, seed: int = 0, strength: float = 0.5, subspaces: int = 4) -> None:
        super().__init__(seed)
        self.strength, self.subspaces = number("strength", strength), whole_number("subspaces", subspaces, least=2)
        self.chunk = 0

    def check(self, model: nn.Module, weight_decay: float = 0.0) -> None:
        """Whether every layer of the adapter has low-rank matrices whose rank can be cut, and nothing moves by itself.

        Raises:
            UserError: it has not, or weights decay.
        """
        for layer in low_ranks(model):  # type: ignore[arg-type]
            if layer.rank % self.subspaces:
                more = -(-layer.rank // self.subspaces) * self.subspaces
                raise UserError(
                    f"an adapter of rank {layer.rank} cannot be cut into {self.subspaces} equal subspaces",
                    where="subspaces",
                    fix=f"Set the adapter's r to {more}, or subspaces to a divisor of {layer.rank}",
                )
        if weight_decay:
            told = "weight decay would shrink the subspaces that stand still"
            raise UserError(told, where="learner.weight_decay", fix="Set it to 0")

    def bind(self, learner: OnlineLearner) -> None:
        """Have gradients reach the chunk's own part alone."""
        groups = learner.optimizer.param_groups
        self.check(learner.model, max(group["weight_decay"] for group in groups))
        self.layers = low_ranks(learner.model)
        # Weakly: a learner that is let go of frees its device's memory at once.
        self.learner: Any = weakref.proxy(learner)
        # The optimizer steps copies of weights that are held in half precision.
        stepped = [p for group in groups for p in group["params"]]
        steps = {id(learner.parameters[place]): p for place, p in zip(learner.places, stepped, strict=True)}
        own = weakref.ref(self)
        self.stepped: list[torch.Tensor] = []
        for layer in self.layers:
            for matrix, axis in ((layer.a, layer.a.dim() - 2), (layer.b, 1)):
                self.stepped.append(steps[id(matrix)])
                matrix.register_hook(_masking(own, axis))

    def own(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """The part of a matrix, or of its gradient, that the present chunk learns, as a view; `axis` counts ranks."""
        width = tensor.shape[axis] // self.subspaces
        return tensor.narrow(axis, self.chunk % self.subspaces * width, width)

    @torch.no_grad()
    def before_chunk(self, chunk: int, model: nn.Module) -> None:
        """Go on to the chunk's own part, with moments of its own."""
        self.chunk = chunk
        for stepped in self.stepped:
            # What momentum is left would move the part that stands still from here on.
            for held in self.learner.optimizer.state.get(stepped, {}).values():
                held.zero_()

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """strength * sum over layers and earlier parts of |A_i A_t^T|^2; none in the first chunk."""
        if not self.chunk or not self.strength:
            return None
        return torch.stack([self._overlap(layer) for layer in self.layers]).sum() * self.strength

    def _overlap(self, layer: LowRank) -> torch.Tensor:
        """Of one layer; of its experts those alone whose part has learned something."""
        parts = layer.a.float().unflatten(-2, (self.subspaces, -1)).movedim(-3, 0)  # [K, w, I], of experts [K, E, w, I]
        mine = self.chunk % self.subspaces
        earlier = [part for part in range(min(self.chunk, self.subspaces)) if part != mine]
        found = (parts[earlier].detach() @ parts[mine].mT).square().sum((-2, -1)).sum(0)
        return (found * self.own(layer.b.detach(), 1).flatten(1).any(1)).sum() if found.dim() else found

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The chunk; the subspaces are the adapter's own weights."""
        return {}, {"kind": "OLoRA", "chunk": self.chunk, "subspaces": self.subspaces}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            UserError: there is no state of this strategy, or it has other subspaces.
        """
        where, fix = "strategy OLoRA", "Resume with the run's own config, or start another run"
        if values.get("kind") != "OLoRA":
            raise UserError("the commit has no subspaces of this strategy", where=where, fix=fix)
        if values["subspaces"] != self.subspaces:
            told = f"the commit has {values['subspaces']} subspaces, not {self.subspaces}"
            raise UserError(told, where=where, fix=fix)
        self.chunk = values["chunk"]


def _masking(own: weakref.ref[OLoRA], axis: int) -> Any:
    """A hook that leaves of a matrix's gradient what belongs to the chunk's own part."""

    def mask(gradient: torch.Tensor) -> torch.Tensor:
        strategy = own()
        if strategy is None:
            return gradient
        left = torch.zeros_like(gradient)
        strategy.own(left, axis).copy_(strategy.own(gradient, axis))
        return left

    return mask
