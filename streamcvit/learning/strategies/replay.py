"""Experience replay from a small reservoir (He et al., "Continual Instruction Tuning for Large Multimodal Models")."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from streamcvit.data.sample import Picture, Sample
from streamcvit.errors import UserError
from streamcvit.learning.strategies.base import Sequential, number, whole_number
from streamcvit.models.batch import Batch


class Replay(Sequential):
    """Rehearse remembered samples beside every batch.

    The memory is a reservoir (Vitter 1985, algorithm R): after n samples each of them is in it with probability
    `memory / n`, without knowing tasks or chunk ends. Where a sample finds no room in `memory_bytes`, samples drawn at
    random make it, so that all are in it with the same probability still, which then depends on their sizes together.
    What is drawn from it is learned as the batch is; a variant keeps, or draws, by another rule.

    Args:
        seed: of memory and rehearsal.
        memory: samples kept at most.
        per_step: remembered samples learned beside each batch; 0: half the batch's size.
        share: the same as a share of all that is learned in a step, above 0 and below 1: 0.5 is as many as the batch
            has; 0: `per_step` says it.
        memory_bytes: bytes of the samples kept at most, texts and pictures in the form of their files; 0: no bound.

    Attributes:
        kept: the samples, as they came.
        notes: what a variant knows of each.
        held_bytes: of the samples kept, where `memory_bytes` bounds them.
        seen: samples offered so far, less those that `memory_bytes` could not hold alone.
        raised: of a batch's size, rehearsed where that is more than its own number; set while something is to be
            recovered.
    """

    def __init__(
        self, seed: int = 0, memory: int = 64, per_step: int = 0, share: float = 0.0, memory_bytes: int = 0
    ) -> None:
        super().__init__(seed)
        self.memory, self.per_step = whole_number("memory", memory, 1), whole_number("per_step", per_step)
        self.share, self.memory_bytes = number("share", share, 0, 1), whole_number("memory_bytes", memory_bytes)
        if self.share == 1:
            raise ValueError("share must be below 1, as nothing of the stream would be learned")
        if self.share and self.per_step:
            raise ValueError("per_step and share say the same thing: give one of them")
        self.rng = np.random.default_rng([seed, 2])
        self.kept: list[Sample] = []
        self.notes: list[Any] = []
        self.seen, self.held_bytes, self.raised = 0, 0, 0.0
        self.drawn: list[int] = []  # places of what was drawn last

    def wanted(self, count: int) -> int:
        """Samples that are rehearsed beside a batch of `count` in ordinary times, if so many are kept."""
        if self.share:
            return max(1, round(count * self.share / (1 - self.share)))
        return self.per_step or max(1, count // 2)

    def extend_batch(self, batch: Batch) -> Sequence[Sample]:
        """Draw from the memory as it stood before this batch."""
        count = len(batch.samples)
        return self.draw(max(self.wanted(count), math.ceil(self.raised * count)))

    def draw(self, want: int) -> Sequence[Sample]:
        """So many remembered samples, or all there are, without replacement."""
        want = min(want, len(self.kept))
        self.drawn = self.rng.choice(len(self.kept), want, replace=False, p=self.chances()).tolist() if want else []
        return [self.kept[i] for i in self.drawn]

    def chances(self) -> np.ndarray | None:
        """How likely each kept sample is drawn, [kept] that sum to 1; None: all alike."""
        return None

    def after_step(self, batch: Batch, model: torch.nn.Module) -> None:
        """Offer the batch's own samples to the memory, in stream order."""
        for sample, note in zip(batch.samples, self.notes_of(batch, model), strict=True):
            self.offer(sample, note)
        if batch.samples and not self.kept:
            least = min(_size(sample) for sample in batch.samples)
            raise UserError(
                f"memory_bytes: {self.memory_bytes} holds not one of the first samples: the smallest takes {least}",
                where="strategy_options.memory_bytes",
                fix="Raise it",
            )

    def notes_of(self, batch: Batch, model: torch.nn.Module) -> Sequence[Any]:
        """What the variant knows of the batch's samples, a JSON value each."""
        return [None] * len(batch.samples)

    def offer(self, sample: Sample, note: Any) -> None:
        """Keep a sample, in the place of another one where there is no room, or let it go."""
        if 0 < self.memory_bytes < _size(sample):  # alone too large
            return
        self.meet(note)
        if self.seen == len(self.kept) + 1 and self.fits(sample):  # none was let go yet
            self.keep(sample, note)
        else:
            self.admit(sample, note)

    def meet(self, note: Any) -> None:
        """Count a sample that could be kept."""
        self.seen += 1

    def admit(self, sample: Sample, note: Any) -> None:
        """The rule, from the first sample on that finds no room: keep a sample, or let it go."""
        slot = int(self.rng.integers(self.seen))
        if slot >= max(1, len(self.kept)):
            return
        if self.fits(sample):
            self.keep(sample, note)
        else:
            self.replace(slot, sample, note)

    def fits(self, sample: Sample) -> bool:
        """Whether there is room for one more."""
        room = not self.memory_bytes or self.held_bytes + _size(sample) <= self.memory_bytes
        return room and len(self.kept) < self.memory

    def keep(self, sample: Sample, note: Any) -> None:
        """Put a sample that fits at the end."""
        self.kept.append(sample)
        self.notes.append(note)
        self.held_bytes += _size(sample) if self.memory_bytes else 0

    def replace(self, place: int, sample: Sample, note: Any) -> None:
        """Put a sample where another one is; further ones go as long as there are too many bytes."""
        if self.memory_bytes:
            self.held_bytes += _size(sample) - _size(self.kept[place])
        self.kept[place], self.notes[place] = sample, note
        while self.held_bytes > self.memory_bytes:
            self.drop(self.spare())

    def spare(self) -> int:
        """The place of a sample that goes to make room."""
        return int(self.rng.integers(len(self.kept)))

    def drop(self, place: int) -> None:
        """Let go of a kept sample."""
        self.held_bytes -= _size(self.kept[place]) if self.memory_bytes else 0
        del self.kept[place], self.notes[place]

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The memory's texts and pictures, and the random state."""
        kept = [
            {
                "text": sample.text_bytes().decode(),
                "pictures": [[base64.b64encode(p.data).decode(), p.ext] for p in sample.pictures],
            }
            | ({} if note is None else {"note": note})
            for sample, note in zip(self.kept, self.notes, strict=True)
        ]
        return {}, {"seen": self.seen, "rng": self.rng.bit_generator.state, "kept": kept}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.seen = values["seen"]
        self.rng.bit_generator.state = values["rng"]
        self.kept = [Sample.from_bytes(row["text"].encode(), _pictures(row)) for row in values["kept"]]
        self.notes = [row.get("note") for row in values["kept"]]
        self.held_bytes = sum(map(_size, self.kept)) if self.memory_bytes else 0


def _size(sample: Sample) -> int:
    """Bytes of a sample's text and of its pictures' files."""
    return len(sample.text_bytes()) + sum(len(picture.data) for picture in sample.pictures)


def _pictures(row: dict[str, Any]) -> list[Picture]:
    held = row["pictures"] if "pictures" in row else [[row["image"], row["ext"]]]  # a sample had one picture once
    return [Picture(base64.b64decode(data), ext) for data, ext in held]
