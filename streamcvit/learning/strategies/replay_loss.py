"""Replay that draws samples by the loss that the learner had on them (Schaul et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from streamcvit.learning.strategies.base import number
from streamcvit.learning.strategies.replay import Replay
from streamcvit.models.batch import Batch

_LEAST = 1e-4  # nats: what is known by heart is drawn now and then


class LossReplay(Replay):
    """Rehearse remembered samples, those with a large loss more often.

    The memory is `replay`'s reservoir. From it, sample i is drawn with probability

        P(i) = p_i^alpha / sum_k p_k^alpha,   p_i = loss_i + 1e-4

    (Schaul et al., "Prioritized Experience Replay", ICLR 2016, equation 1 in the proportional form; without replacement
    within a step). The loss is the mean cross-entropy over the answer's tokens, in nats, when the sample was learned
    last, in the stream or in rehearsal, before that update. What is drawn weighs as any sample does: the paper's
    correction by importance weights, which takes the bias back, is left out.

    Args:
        alpha: 0 draws all alike, 1 in proportion to the losses; 10 at most.
    """

    def __init__(
        self,
        seed: int = 0,
        memory: int = 64,
        per_step: int = 0,
        share: float = 0.0,
        memory_bytes: int = 0,
        alpha: float = 1.0,
    ) -> None:
        super().__init__(seed, memory, per_step, share, memory_bytes)
        self.alpha = number("alpha", alpha, most=10)  # beyond it chances run out of float64's range
        self._losses: tuple[torch.Tensor, torch.Tensor] | None = None

    def chances(self) -> np.ndarray:
        """In proportion to the losses to the power of alpha."""
        weights = (np.array(self.notes, float) + _LEAST) ** self.alpha
        return weights / weights.sum()

    def scored(self, own: torch.Tensor, extra: torch.Tensor) -> None:
        """Remember the step's losses until it is known whether it is taken."""
        self._losses = own, extra

    def notes_of(self, batch: Batch, model: torch.nn.Module) -> Sequence[Any]:
        """The losses of the batch's samples; those of the rehearsed ones take the place of what was known of them."""
        assert self._losses is not None
        own, extra = self._losses
        losses = torch.cat(self._losses).float().tolist()
        for place, loss in zip(self.drawn, losses[len(own) :], strict=True):
            self.notes[place] = loss
        return losses[: len(own)]
