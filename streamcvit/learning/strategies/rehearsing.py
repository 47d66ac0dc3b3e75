"""Any strategy with a memory beside it, which is rehearsed only while somebody asks for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from streamcvit.data.sample import Sample
from streamcvit.learning.outputs import Outputs
from streamcvit.learning.strategies.base import Sequential, load_strategy_state, strategy_state
from streamcvit.learning.strategies.replay import Replay
from streamcvit.models.batch import Batch, ModelInputs

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner

_OWN = "rehearsed"


class Rehearsing(Sequential):
    """A strategy as it is, and a reservoir of `Replay` beside it; while `share` is 0 it learns as it would alone.

    Args:
        inner: the strategy.
        seed: of reservoir and rehearsal.
        memory: samples kept.

    Attributes:
        share: samples rehearsed beside a batch, as a share of its own.
    """

    def __init__(self, inner: Sequential, seed: int = 0, memory: int = 64) -> None:
        super().__init__(seed)
        self.inner, self.own, self.share = inner, Replay(seed, memory), 0.0
        self.needs_task = inner.needs_task

    def bind(self, learner: OnlineLearner) -> None:
        """As the strategy does."""
        self.inner.bind(learner)

    def before_chunk(self, chunk: int, model: torch.nn.Module) -> None:
        """As the strategy does."""
        self.inner.before_chunk(chunk, model)

    def extend_batch(self, batch: Batch) -> Sequence[Sample]:
        """The strategy's samples, and those rehearsed."""
        samples = self.inner.extend_batch(batch)
        return [*samples, *self.own.draw(math.ceil(self.share * len(batch.samples)))] if self.share else samples

    def beside(self, inputs: ModelInputs, outputs: Outputs) -> torch.Tensor | None:
        """As the strategy does."""
        return self.inner.beside(inputs, outputs)

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """As the strategy does."""
        return self.inner.penalty(model)

    def after_step(self, batch: Batch, model: torch.nn.Module) -> None:
        """As the strategy does; then the batch's own samples are offered to the reservoir."""
        self.inner.after_step(batch, model)
        self.own.after_step(batch, model)

    def after_chunk(self, chunk: int, model: torch.nn.Module) -> None:
        """As the strategy does."""
        self.inner.after_chunk(chunk, model)

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The strategy's, with the reservoir in it."""
        tensors, values = strategy_state(self.inner)
        return tensors, {**values, _OWN: self.own.state_dict()[1]}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`; a commit that was made without a reservoir leaves it empty."""
        load_strategy_state(self.inner, tensors, {name: value for name, value in values.items() if name != _OWN})
        if _OWN in values:
            self.own.load_state_dict({}, values[_OWN])
