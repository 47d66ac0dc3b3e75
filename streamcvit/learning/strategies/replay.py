"""Experience replay from a small reservoir (He et al., "Continual Instruction Tuning for Large Multimodal Models")."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from streamcvit.data.sample import Picture, Sample
from streamcvit.learning.strategies.base import Sequential
from streamcvit.models.batch import Batch


class Replay(Sequential):
    """Rehearse remembered samples beside every batch.

    The memory is a reservoir (Vitter 1985, algorithm R): after n samples each of them is in it with probability
    `memory / n`, without knowing tasks or chunk ends.

    Args:
        seed: of reservoir and rehearsal.
        memory: samples kept.
        per_step: remembered samples learned beside each batch; 0: half the batch's size.

    Attributes:
        share: of a batch's size, rehearsed where that is more than `per_step`; set while something is to be recovered.
    """

    def __init__(self, seed: int = 0, memory: int = 64, per_step: int = 0) -> None:
        super().__init__(seed)
        if memory < 1 or per_step < 0:
            raise ValueError("replay needs memory >= 1 and per_step >= 0")
        self.memory, self.per_step = memory, per_step
        self.rng = np.random.default_rng([seed, 2])
        self.kept: list[Sample] = []
        self.seen, self.share = 0, 0.0

    def extend_batch(self, batch: Batch) -> Sequence[Sample]:
        """Draw from the memory as it stood before this batch."""
        count = len(batch.samples)
        return self.draw(max(self.per_step or max(1, count // 2), math.ceil(self.share * count)))

    def draw(self, want: int) -> Sequence[Sample]:
        """So many remembered samples, or all there are, without replacement."""
        want = min(want, len(self.kept))
        if not want:
            return ()
        return [self.kept[i] for i in self.rng.choice(len(self.kept), want, replace=False)]

    def after_step(self, batch: Batch, model: torch.nn.Module) -> None:
        """Offer the batch's own samples to the reservoir, in stream order."""
        for sample in batch.samples:
            self.seen += 1
            if len(self.kept) < self.memory:
                self.kept.append(sample)
            elif (slot := int(self.rng.integers(self.seen))) < self.memory:
                self.kept[slot] = sample

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The memory's texts and pictures, and the random state."""
        kept = [
            {
                "text": sample.text_bytes().decode(),
                "pictures": [[base64.b64encode(p.data).decode(), p.ext] for p in sample.pictures],
            }
            for sample in self.kept
        ]
        return {}, {"seen": self.seen, "rng": self.rng.bit_generator.state, "kept": kept}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.seen = values["seen"]
        self.rng.bit_generator.state = values["rng"]
        self.kept = [Sample.from_bytes(row["text"].encode(), _pictures(row)) for row in values["kept"]]


def _pictures(row: dict[str, Any]) -> list[Picture]:
    held = row["pictures"] if "pictures" in row else [[row["image"], row["ext"]]]  # a sample had one picture once
    return [Picture(base64.b64decode(data), ext) for data, ext in held]
