"""Which samples are alike, as far as a learner can tell without their tasks: by its router, or by their features."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from streamcvit.adapters import InstructionEncoder, tuner_of
from streamcvit.adapters.prototypes import Prototypes
from streamcvit.models.batch import ModelInputs
from streamcvit.models.vision import Vision, routing_inputs, text_tensors, vision_dim

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


class Clusters:
    """Clusters of the samples that a learner learns, with nothing computed twice.

    Under an adapter that routes by sample, a cluster is a route: the experts of all banks together, where layers decide
    for themselves those of the first one. Under any other it is a pair of prototypes (`streamcvit.adapters.prototypes`,
    with SMoLoRA's thresholds), one of instruction embeddings and one of mean picture features among the samples of that
    instruction's; a sample without a picture has its prompt's text in its place.

    Args:
        learner: learns the samples.
        size: instruction prototypes, and picture prototypes; not used where the adapter routes by sample.
    """

    def __init__(self, learner: OnlineLearner, size: int) -> None:
        self.learner: Any = weakref.proxy(learner)
        self.size = size
        self._noted: list[tuple[torch.Tensor, ...]] = []
        self._encoder: InstructionEncoder | None = None
        self._prototypes: dict[str, Prototypes] = {}

    def note(self, inputs: ModelInputs) -> None:
        """Remember what tells samples apart; to be called after their forward and before another one.

        Args:
            inputs: the samples, B of them.
        """
        tuner = tuner_of(self.learner.model)
        if tuner is not None and tuner.routed is not None:
            self._noted.append((tuner.routed,))
            return
        base = self.learner.base
        if self._encoder is None:
            self._encoder = InstructionEncoder.from_model(base.model, base.tokenizer)
        texts = replace(inputs, tensors=text_tensors(inputs)).to(base.device)
        facts = routing_inputs(self._encoder, texts, Vision(None, (), self.learner.pooled))
        assert facts.instruction is not None and facts.visual is not None
        self._noted.append((facts.instruction, facts.visual, texts.image_mask.any(1)))

    def take(self, count: int) -> list[str]:
        """Clusters of the last `count` samples noted, which are learned from; the rest, of a step not taken, is let go.

        Waits for the device.
        """
        noted, self._noted = self._noted, []
        columns = [torch.cat(parts)[-count:] for parts in zip(*noted, strict=True)]
        if len(columns) == 1:
            return ["-".join(map(str, sorted(row))) for row in columns[0].tolist()]
        instruction, visual, seeing = columns
        if not self._prototypes:
            self._make(instruction.shape[1], visual.shape[1])
        own = self._prototypes["instruction"].learn(instruction)
        looks = self._prototypes["visual"].learn(visual, torch.where(seeing, own, -1 - own))
        for prototypes in self._prototypes.values():
            prototypes.step()
        return [f"{a}-{b}" for a, b in torch.stack((own, looks), 1).tolist()]

    def _make(self, instruction_dim: int, visual_dim: int) -> None:
        self._prototypes = {
            "instruction": Prototypes(self.size, instruction_dim, 0.8, standardise=False),
            "visual": Prototypes(self.size, visual_dim, 0.0, standardise=True),
        }
        for prototypes in self._prototypes.values():
            prototypes.to(self.learner.base.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Of the prototypes; empty where none are used, or none yet."""
        return {
            f"{bank}.{name}": tensor
            for bank, prototypes in self._prototypes.items()
            for name, tensor in prototypes.state_dict().items()
        }

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`."""
        if not tensors:
            self._prototypes = {}
            return
        self._make(tensors["instruction.centroids"].shape[1], vision_dim(self.learner.base.model))
        for bank, prototypes in self._prototypes.items():
            prototypes.load_state_dict({k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{bank}.")})
