"""Learning without forgetting (Li & Hoiem 2016): answer the current samples as the last boundary's weights did."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from streamcvit.adapters.eproj.layer import ProjectorKeys
from streamcvit.adapters.prototypes import Prototypes
from streamcvit.errors import UserError
from streamcvit.learning.outputs import Outputs, judging
from streamcvit.learning.strategies.base import Sequential, number
from streamcvit.models.batch import ModelInputs

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


class LwF(Sequential):
    """Distil the weights of the last boundary on each batch's own samples.

    A sample's loss is its cross-entropy plus strength * T^2 * the mean over its answer tokens of
    KL(softmax(z0 / T) || softmax(z / T)), where z are the logits and z0 those of the last boundary's weights and
    routers at the same places (Li & Hoiem, equation 3, whose cross-entropy has the same gradient; T^2 as Hinton et al.
    2015, so that `strength` means the same at any temperature). There is no such term before the first boundary.

    Args:
        seed: not used.
        strength: lambda, of the term; 0: none.
        temperature: T, above 0.
    """

    held = 1

    def __init__(self, seed: int = 0, strength: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(seed)
        self.strength, self.temperature = number("strength", strength), number("temperature", temperature)
        if not self.temperature:
            raise ValueError("temperature must be above 0")
        self.teacher: dict[str, torch.Tensor] = {}

    def bind(self, learner: OnlineLearner) -> None:
        """Remember what learns: the trained weights, and what routers know besides."""
        # Weakly: a learner that is let go of frees its device's memory at once.
        self.learner: Any = weakref.proxy(learner)
        self.places: dict[str, tuple[dict[str, Any], str]] = {}
        for path, module in learner.model.named_modules():
            own: dict[str, tuple[dict[str, Any], str]] = {
                name: (module._parameters, name) for name, p in module._parameters.items() if p is not None
            }
            own = {name: place for name, place in own.items() if place[0][name].requires_grad}
            if isinstance(module, Prototypes | ProjectorKeys):
                own |= {name: (module._buffers, name) for name in module._buffers}
            self.places |= {f"{path}.{name}" if path else name: place for name, place in own.items()}

    def after_chunk(self, chunk: int, model: nn.Module) -> None:
        """Keep a copy of what learns; none is wanted where the term is off."""
        if self.strength:
            self.teacher = {name: held[key].detach().clone() for name, (held, key) in self.places.items()}

    def beside(self, inputs: ModelInputs, outputs: Outputs) -> torch.Tensor | None:
        """Distance [B] from the teacher's answers."""
        if not self.teacher:
            return None
        with torch.no_grad(), judging(self.learner.model), self._taught():
            before = torch.log_softmax(self.learner.outputs(inputs).logits.float() / self.temperature, -1)
        now = torch.log_softmax(outputs.logits.float() / self.temperature, -1)
        return outputs.mean((before.exp() * (before - now)).sum(-1)) * (self.strength * self.temperature**2)

    @contextmanager
    def _taught(self) -> Iterator[None]:
        """The teacher's tensors in the places of the model's own, which are then put back themselves, unchanged."""
        own = {name: held[key] for name, (held, key) in self.places.items()}
        try:
            for name, (held, key) in self.places.items():
                held[key] = self.teacher[name]
            yield
        finally:
            for name, (held, key) in self.places.items():
                held[key] = own[name]

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The teacher."""
        return dict(self.teacher), {"kind": "LwF", "held": len(self.teacher)}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            UserError: there is no state of this strategy, or its teacher does not fit the model.
        """
        where, fix = "strategy LwF", "Resume with the run's own config, or start another run"
        if values.get("kind") != "LwF" or len(tensors) != values["held"]:
            raise UserError("the commit has no teacher of this strategy", where=where, fix=fix)
        shapes = {name: held[key].shape for name, (held, key) in self.places.items()}
        if tensors and {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise UserError("the commit's teacher does not fit the model", where=where, fix=fix)
        self.teacher = {
            name: tensors[name].to(held[key].device, copy=True) for name, (held, key) in self.places.items() if tensors
        }
