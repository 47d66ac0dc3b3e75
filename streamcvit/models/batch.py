"""What ingest hands to the learner."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from streamcvit.data.sample import Quarantined, Sample

TOWER_TEXT = "tower_text_ids"
"""Among `ModelInputs.tensors`, what a vision tower reads of the prompts beside the pictures: int64 [samples with a
picture, 2, Q], ids in a vocabulary of its own, right-padded, and 1 where they are. None for most models."""


@dataclass(frozen=True)
class ModelInputs:
    """Processor output for B samples, with the masks that learning and routing need.

    Attributes:
        tensors: keyword arguments of the model's forward: `input_ids` [B, S] int64, `attention_mask` [B, S],
            `pixel_values` (any layout the processor gives; none where no sample has a picture) and whatever else it
            gives.
        answer_mask: [B, S] bool, true at the answer tokens to learn (end-of-turn tokens included); all false for
            prompts.
        prompt_mask: [B, S] bool, true at text tokens of the prompt (no image or padding tokens, and none of an answer
            that is learned, be it of an earlier turn).
        image_mask: [B, S] bool, true at image placeholder tokens.
        instructions: the B texts that route by instruction; empty where a sample has none.
        pictures: image tokens of each picture of each sample; one number for all of a sample where the processor does
            not tell them apart.
    """

    tensors: dict[str, torch.Tensor]
    answer_mask: torch.Tensor
    prompt_mask: torch.Tensor
    image_mask: torch.Tensor
    instructions: tuple[str, ...]
    pictures: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device | str) -> ModelInputs:
        """The same inputs with every tensor on `device` (pixel dtype is left to the model)."""
        return ModelInputs(
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()},
            self.answer_mask.to(device, non_blocking=True),
            self.prompt_mask.to(device, non_blocking=True),
            self.image_mask.to(device, non_blocking=True),
            self.instructions,
            self.pictures,
        )

    def text(self) -> ModelInputs:
        """The same inputs without what belongs to no token: pixels, and whatever else a vision tower reads."""
        shape = self.image_mask.shape
        return replace(self, tensors={name: t for name, t in self.tensors.items() if t.shape == shape})

    def widened(self, width: int, pad_token_id: int) -> ModelInputs:
        """The same inputs, right-padded to `width` tokens a row."""
        shape = self.image_mask.shape
        more = width - shape[1]
        if not more:
            return self
        tensors = {
            name: F.pad(tensor, (0, more), value=pad_token_id if name == "input_ids" else 0)
            if tensor.shape == shape
            else tensor
            for name, tensor in self.tensors.items()
        }
        answer, prompt, image = (
            F.pad(mask, (0, more)) for mask in (self.answer_mask, self.prompt_mask, self.image_mask)
        )
        return ModelInputs(tensors, answer, prompt, image, self.instructions, self.pictures)


@dataclass(frozen=True)
class Batch:
    """A stretch of the stream: a pure function of (index, cursor, batch size, micro-batch size, processor).

    Attributes:
        cursor: position it starts at.
        next_cursor: position after it; positions in [cursor, next_cursor) are learned or quarantined.
        chunk: the chunk all of it belongs to (a batch never crosses a chunk's end).
        positions: position of each sample in `samples`.
        samples: the readable samples, in stream order.
        inputs: their processor output; None when every position is quarantined, and where it is in micro-batches.
        quarantined: the unreadable rest.
        micro: their processor output in micro-batches, in stream order; see `Collator.micro_batches`.
        trace: `traceparent` of the span that it was made in, where runs are traced.
    """

    cursor: int
    next_cursor: int
    chunk: int
    positions: tuple[int, ...]
    samples: tuple[Sample, ...]
    inputs: ModelInputs | None
    quarantined: tuple[Quarantined, ...] = ()
    micro: tuple[ModelInputs, ...] = ()
    trace: str = ""

    @property
    def parts(self) -> tuple[ModelInputs, ...]:
        """The processor output of all samples, whole or in micro-batches; empty where there is no sample."""
        return self.micro if self.inputs is None else (self.inputs,)

    def only(self, own: range) -> Batch:
        """The same batch, with what the model sees of pictures in some of its micro-batches only.

        Args:
            own: places of these micro-batches.
        """
        micro = tuple(part if place in own else part.text() for place, part in enumerate(self.micro))
        return replace(self, micro=micro)
