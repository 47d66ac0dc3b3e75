"""The hooks of a strategy, and the strategy that uses none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from streamcvit.data.sample import Sample
from streamcvit.models.batch import Batch


class Sequential:
    """Learn each batch once, as it comes; every hook does nothing.

    Args:
        seed: of the strategy's own random numbers.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def before_chunk(self, chunk: int, model: torch.nn.Module) -> None:
        """Called before the first batch of a chunk."""

    def extend_batch(self, batch: Batch) -> Sequence[Sample]:
        """Samples to learn besides the batch; they never enter the ledger or the prequential score."""
        return ()

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """A scalar added to the loss, with a graph to the parameters it acts on."""
        return None

    def after_step(self, batch: Batch, model: torch.nn.Module) -> None:
        """Called after the optimizer step."""

    def after_chunk(self, chunk: int, model: torch.nn.Module) -> None:
        """Called after the last batch of a chunk."""

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors (saved as safetensors) and JSON values that make the next step the same to the bit."""
        return {}, {}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
