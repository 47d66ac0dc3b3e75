"""Whether a run fits the device of this machine by estimate, and which settings make it smaller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamcvit.config import RunConfig
from streamcvit.memory import Memory, Row, memory_of, size, typical_row
from streamcvit.models.base import device_memory, device_of, fetch
from streamcvit.models.collate import Collator
from streamcvit.models.quantize import NONE
from streamcvit.run.loading import base_bytes

SMALL = 256 << 20
"""Bytes of weights below which nothing is said before a run."""
LOUD = 1.1
"""Times the device's whole memory, above which an estimate is a warning."""


@dataclass(frozen=True)
class Fit:
    """What a run needs beside what its device has.

    Attributes:
        memories: of every method, the largest first.
        device: name of the device.
        free, whole: bytes of it.
        row: the sample that the estimates are of.
        lower: settings that lower the largest method's need, and by how many bytes, the most first; known where it does
            not fit.
    """

    memories: tuple[Memory, ...]
    device: str
    free: int
    whole: int
    row: Row
    lower: tuple[tuple[str, int], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all of them fit into what is free."""
        return self.memories[0].total <= self.free

    def lines(self) -> Iterator[str]:
        """For people: the sample, a table a method, and the verdict."""
        yield (
            f"memory, estimated for rows of {self.row.tokens} tokens, {self.row.image} of them a picture's "
            "(another stream's rows may be longer):"
        )
        for memory in self.memories:
            yield from _table(memory)
        worst = self.memories[0]
        if self.ok:
            there = f"{size(self.free)} of {size(self.whole)} are free on {self.device}"
            yield f"fits: {size(worst.total)} at most, and {there}"
            return
        yield (
            f"does not fit: {worst.method} needs about {size(worst.total)}, and {size(self.free)} of "
            f"{size(self.whole)} are free on {self.device}. {_advice(self.lower)}"
        )


def fit(config: RunConfig, local: bool = False) -> Fit:
    """Estimate every method, and what would lower the largest where it does not fit.

    Raises:
        UserError: there is no such model or device, or an adapter cannot go where it is to go.
    """
    device = device_of(config.model.device)
    free, whole = device_memory(device)
    row = typical_row(config)
    memories = tuple(memory_of(config, local, row))
    found = Fit(memories, str(device), free, whole, row)
    return (
        found if found.ok else Fit(memories, str(device), free, whole, row, lowering(config, memories[0], local, row))
    )


def memory_lines(config: RunConfig, local: bool, collator: Collator | None = None) -> list[str]:
    """What is said of memory before a run: one line of the largest method, and a warning where it is far too much.

    Nothing where the base is so small that nobody asks, or is loaded elsewhere.

    Args:
        config: the run.
        local: whether it is one process.
        collator: the run's, where it was made already.
    """
    if not local and config.cluster.address != "local":
        return []
    if base_bytes(config, fetch(config.model.name_or_path, config.model.revision)) < SMALL:
        return []
    device = device_of(config.model.device)
    row = typical_row(config, collator)
    worst = memory_of(config, local, row)[0]
    whole = device_memory(device)[1]
    lines = [worst.line()]
    if worst.total > LOUD * whole:
        lines.append(
            f"WARNING: that is more than the {size(whole)} of {device}: the run will probably end for want of memory. "
            + _advice(lowering(config, worst, local, row))
        )
    return lines


def lowering(config: RunConfig, worst: Memory, local: bool, row: Row) -> tuple[tuple[str, int], ...]:
    """Settings that lower a method's need, and by how many bytes, the most first."""
    one = config.model_copy(update={"methods": {worst.method: config.methods[worst.method]}})
    found = []
    for key, value, changed, shorter in _changes(one, row):
        saved = worst.total - memory_of(changed, local, shorter)[0].total
        if saved > worst.total / 100:
            found.append((f"{key}={value}", saved))
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def _changes(config: RunConfig, row: Row) -> Iterator[tuple[str, Any, RunConfig, Row]]:
    """One setting changed at a time: its key, its value, the config with it, and the row under it."""
    model, learner, evaluation = config.model, config.learner, config.evaluation
    asked: list[tuple[str, str, Any]] = []
    if (learner.micro_batch or learner.batch_size) > 1:
        asked.append(("learner", "micro_batch", 1))
    if not learner.gradient_checkpointing:
        asked.append(("learner", "gradient_checkpointing", True))
    if model.quantize == NONE:
        asked.append(("model", "quantize", "4bit"))
    if model.dtype in ("auto", "float32"):
        asked.append(("model", "dtype", "bfloat16"))
    if evaluation.batch_size > 1:
        asked.append(("evaluation", "batch_size", max(1, evaluation.batch_size // 8)))
    for section, key, value in asked:
        part = getattr(config, section).model_copy(update={key: value})
        said = str(value).lower() if isinstance(value, bool) else value
        yield f"{section}.{key}", said, config.model_copy(update={section: part}), row
    if row.image > 256:
        tokens, share = 256, 256 / row.image
        less = Row(
            row.tokens - row.image + tokens, tokens, row.answers, round(row.patches * share), round(row.pixels * share)
        )
        yield "model.max_picture_tokens", tokens, config, less


def _advice(lower: tuple[tuple[str, int], ...]) -> str:
    if not lower:
        return "No setting lowers that much: take a smaller model"
    return "What lowers it most: " + ", ".join(f"{setting} (-{size(saved)})" for setting, saved in lower)


def _table(memory: Memory) -> Iterator[str]:
    names = list(dict.fromkeys(name for need in memory.needs for name in need.parts))
    cells = [["", *(need.who for need in memory.needs)]]
    for name in names:
        cells.append([name, *(size(need.parts[name]) if name in need.parts else "" for need in memory.needs)])
    cells.append(["together", *(size(need.total) for need in memory.needs)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    yield f"{memory.method}:"
    for cell in cells:
        first, *rest = (
            text.ljust(w) if k == 0 else text.rjust(w) for k, (text, w) in enumerate(zip(cell, widths, strict=True))
        )
        yield "  " + "  ".join([first, *rest])
    if any(need.rough for need in memory.needs):
        yield "  activations by a rule of thumb: this model does not run without data"
