"""The hooks of a strategy, and the strategy that uses none of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.learning.outputs import Outputs
from streamcvit.models.batch import Batch, ModelInputs

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


def strategy_state(strategy: Sequential) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A strategy's `state_dict`, looked at.

    Raises:
        UserError: it is no pair of tensors by name and JSON values by name.
    """
    state: Any = strategy.state_dict()
    pair = isinstance(state, tuple) and len(state) == 2 and all(isinstance(part, dict) for part in state)
    if not pair or not all(isinstance(tensor, torch.Tensor) for tensor in state[0].values()):
        raise UserError(
            "state_dict must give a pair: tensors by name, and JSON values by name",
            where=f"strategy {type(strategy).__name__}",
            fix="Return ({}, {}) where it keeps nothing",
        )
    try:
        json.dumps(state[1])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the second part of state_dict cannot be written as JSON ({error})",
            where=f"strategy {type(strategy).__name__}",
            fix="Keep numbers, texts, lists and mappings there, and tensors in the first part",
        ) from None
    return state


def load_strategy_state(strategy: Sequential, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    """Give a strategy the state of a commit.

    Raises:
        UserError: something of it is not there, as where the commit is of another strategy.
    """
    try:
        strategy.load_state_dict(tensors, values)
    except KeyError as missing:
        raise UserError(
            f"the commit lacks {missing} of the strategy's state",
            where=f"strategy {type(strategy).__name__}",
            fix="Resume with the run's own config, or start another run",
        ) from None


def number(name: str, value: Any, least: float = 0.0, most: float = math.inf) -> float:
    """The option `name`, looked at.

    Raises:
        ValueError: it is no finite number of at least `least` and at most `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if not least <= value <= most:
        bound = f"at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} must be {bound}, not {value!r}")
    return float(value)


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """The option `name`, looked at.

    Raises:
        ValueError: it is no whole number of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


class Sequential:
    """Learn each batch once, as it comes; every hook does nothing.

    Args:
        seed: of the strategy's own random numbers.

    Attributes:
        held: numbers that it holds on the device for each trained weight, each as large as float32.
        needs_task: it is told the task of samples, which reports say of what it learned.
    """

    held: ClassVar[int] = 0
    needs_task: bool = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def check(self, model: torch.nn.Module, weight_decay: float = 0.0) -> None:
        """Whether it can work on an adapted model; asked before anything is written.

        Args:
            model: the adapted model, perhaps without weights.
            weight_decay: of the optimizer.

        Raises:
            UserError: it cannot; `where` is the strategy's option, or the setting.
        """

    def bind(self, learner: OnlineLearner) -> None:
        """Called once, by the learner that learns with it, when all but its random numbers and modes is set up."""

    def before_chunk(self, chunk: int, model: torch.nn.Module) -> None:
        """Called before the first batch of a chunk."""

    def extend_batch(self, batch: Batch) -> Sequence[Sample]:
        """Samples to learn besides the batch; they never enter the ledger or the prequential score."""
        return ()

    def beside(self, inputs: ModelInputs, outputs: Outputs) -> torch.Tensor | None:
        """Losses [B] added to those of the batch's own samples, or of a micro-batch's, with a graph to `outputs`."""
        return None

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """A scalar added to the loss, with a graph to the parameters it acts on."""
        return None

    def scored(self, own: torch.Tensor, extra: torch.Tensor) -> None:
        """Called with the losses before the update, of the batch's own samples [B] and of `extend_batch`'s [R]."""

    def after_step(self, batch: Batch, model: torch.nn.Module) -> None:
        """Called after the optimizer step."""

    def after_chunk(self, chunk: int, model: torch.nn.Module) -> None:
        """Called after the last batch of a chunk."""

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors (saved as safetensors) and JSON values that make the next step the same to the bit."""
        return {}, {}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
