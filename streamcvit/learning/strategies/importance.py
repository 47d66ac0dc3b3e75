"""Weights held where they were at the last boundary, each as hard as it matters: what EWC and MAS share."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.learning.outputs import Outputs, judging
from streamcvit.learning.strategies.base import Sequential, number, whole_number
from streamcvit.models.batch import Batch

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


def scaled(said: torch.Tensor) -> torch.Tensor:
    """What samples say of each weight, [N], over its mean over the weights."""
    return said / said.mean().clamp_min(torch.finfo(torch.float32).tiny)


class Importance(Sequential, ABC):
    """Hold weights by a quadratic penalty: strength / 2 * sum_i I_i (theta_i - theta0_i)^2.

    theta0 are the weights at the last boundary. The importance I of a chunk is the mean, over samples drawn from its
    batches, of what a sample's own gradient says (`measure`, `matter`), divided by its mean over all trained weights
    (He et al. divide by the total, Schwarz et al. normalise each task's likewise), so that `strength` means much the
    same for any model, loss and adapter. At a boundary I <- decay * I + that of the chunk.

    A sample's gradient is exact: its own forward and backward, in eval mode, by the weights after the step that learned
    it. Routed adapters group samples by expert in autograd functions of their own, and models pick answer and picture
    places by masks, so that `torch.func.vmap` over samples is not to be had; a backward of a batch that is batched over
    its samples (`is_grads_batched`) costs the square of their number. So samples are taken one at a time, and
    `per_step` bounds their number. The order of a batch's samples and the tasks do not matter, nothing of a sample is
    kept.

    Args:
        seed: of the draw.
        strength: lambda, of the penalty; 0: none.
        decay: gamma, what of the importance so far is left at a boundary, from 0 to 1.
        per_step: samples of each batch whose gradient is taken, drawn at random; 0: all of them.
    """

    held = 3  # what the chunk says, the importance, and where the weights were

    def __init__(self, seed: int = 0, strength: float = 1.0, decay: float = 0.9, per_step: int = 4) -> None:
        super().__init__(seed)
        self.strength, self.decay = number("strength", strength), number("decay", decay, most=1.0)
        self.per_step = whole_number("per_step", per_step)
        self.rng = np.random.default_rng([seed, 3])
        self.met: set[str] = set()
        self.sum: torch.Tensor | None = None
        self.importance: torch.Tensor | None = None
        self.anchor: torch.Tensor | None = None

    @abstractmethod
    def measure(self, outputs: Outputs) -> torch.Tensor:
        """The scalar of one sample's outputs whose gradient is taken."""

    @abstractmethod
    def matter(self, gradient: torch.Tensor) -> torch.Tensor:
        """What one sample's gradient [N] says of each weight's importance, [N], at least 0."""

    def bind(self, learner: OnlineLearner) -> None:
        """Remember whose samples and weights these are."""
        # Weakly: a learner that is let go of frees its device's memory at once.
        self.learner: Any = weakref.proxy(learner)
        self.weights = {name: p for name, p in learner.model.named_parameters() if p.requires_grad}

    def after_step(self, batch: Batch, model: torch.nn.Module) -> None:
        """Take the gradients of some of the batch's samples."""
        samples, some = batch.samples, list(range(len(batch.samples)))
        if self.per_step and self.per_step < len(samples):
            some = sorted(self.rng.choice(len(samples), self.per_step, replace=False).tolist())
        with judging(model), torch.enable_grad():
            for place in some:
                self._note(samples[place])

    def _note(self, sample: Sample) -> None:
        """Take one sample's gradient."""
        said = self._said(self.measure(self.learner.outputs(self.learner.base.collator.train([sample]))))
        self.sum = said if self.sum is None else self.sum.add_(said)

    def _said(self, value: torch.Tensor) -> torch.Tensor:
        """What the gradient of one sample's scalar says of each weight, [N]."""
        asked = {name: p for name, p in self.weights.items() if p.requires_grad}
        given: dict[str, torch.Tensor] = {}
        if value.requires_grad:  # a text depends on nothing where projectors alone learn
            found = torch.autograd.grad(value, list(asked.values()), allow_unused=True)
            given = {name: g for name, g in zip(asked, found, strict=True) if g is not None}
        self.met |= given.keys()
        flat = torch.cat([
            (given[name].float() if name in given else torch.zeros_like(p, dtype=torch.float32)).flatten()
            for name, p in self.weights.items()
        ])  # fmt: skip
        said = self.matter(flat)
        # One gradient that is not finite would spoil all that is held; it counts as nothing.
        return torch.where(said.sum().isfinite(), said, torch.zeros_like(said))

    def after_chunk(self, chunk: int, model: torch.nn.Module) -> None:
        """Merge the chunk's importance, and hold the weights as they are; a chunk without samples changes nothing."""
        if self.sum is None:
            return
        own = scaled(self.sum)
        self.importance = own if self.importance is None else self.importance * self.decay + own
        self.anchor = self._now().clone()
        self.sum = None

    @torch.no_grad()
    def _now(self) -> torch.Tensor:
        return torch.cat([p.float().flatten() for p in self.weights.values()])

    def hold(self) -> torch.Tensor | None:
        """How hard each weight is held, [N]; None before the first boundary."""
        return self.importance

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """Its gradient is strength * I * (theta - theta0); weights that no sample ever reached get none."""
        hold = self.hold() if self.strength else None
        if hold is None or self.anchor is None:
            return None
        # Weights without a gradient of their own stay so: the learner tells them by it.
        now = [(p if name in self.met else p.detach()).float().flatten() for name, p in self.weights.items()]
        return (hold * (torch.cat(now) - self.anchor).square()).sum() * (self.strength / 2)

    def _held(self) -> dict[str, torch.Tensor]:
        """What has a number for each trained weight, by name."""
        held = {"sum": self.sum, "importance": self.importance, "anchor": self.anchor}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What was measured and held, one number a trained weight each, and the state of the draw."""
        tensors = self._held()
        return tensors, {
            "kind": type(self).__name__,
            "rng": self.rng.bit_generator.state,
            "met": sorted(self.met),
            "held": sorted(tensors),
            "weights": [[name, p.numel()] for name, p in self.weights.items()],
        }

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            UserError: there is no state of this strategy, or it is of other weights.
        """
        where, fix = f"strategy {type(self).__name__}", "Resume with the run's own config, or start another run"
        if values.get("kind") != type(self).__name__ or not tensors.keys() >= set(values["held"]):
            raise UserError("the commit has no importances of this strategy", where=where, fix=fix)
        size = sum(p.numel() for p in self.weights.values())
        mine = [[name, p.numel()] for name, p in self.weights.items()]
        if values["weights"] != mine or any(tensors[name].shape != (size,) for name in values["held"]):
            raise UserError("the commit's importances are of other weights", where=where, fix=fix)
        self.met = set(values["met"])
        self.rng.bit_generator.state = values["rng"]
        device = next(iter(self.weights.values())).device
        for name in ("sum", "importance", "anchor"):
            setattr(self, name, tensors[name].to(device, copy=True) if name in tensors else None)
