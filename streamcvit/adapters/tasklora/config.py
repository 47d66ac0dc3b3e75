"""Configuration of one LoRA a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from streamcvit.adapters.config import ExpertConfig
from streamcvit.errors import UserError


@dataclass
class TaskLoraConfig(ExpertConfig):
    """A LoRA for each task, and every sample is told which is its own: the oracle of routing, not a method to use.

    Each starts as stock PEFT's LoRA of the same seed and options would, and is moved by samples of its task alone.

    Args:
        r: rank of each task's LoRA.
        lora_alpha: scaling times r, as in PEFT's LoRA; None for a scaling of 2, as other experts have it.
        tasks: names of the tasks, in the order of their LoRAs; a run takes them from its stream.
    """

    lora_alpha: float | None = field(default=8, metadata={"help": "Scaling times r; None for scaling 2"})
    tasks: list[str] = field(default_factory=list, metadata={"help": "Names of the tasks"})

    type_name: ClassVar[str] = "TASKLORA"

    def __post_init__(self) -> None:
        if not self.tasks or not all(isinstance(task, str) for task in self.tasks):
            raise UserError("one LoRA a task needs the names of the tasks", where="TaskLoraConfig", fix="Set tasks")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError("a task is named twice", where="TaskLoraConfig", fix="Name each task once")
        super().__post_init__()

    @property
    def total_experts(self) -> int:
        """Number of tasks."""
        return len(self.tasks)

    @property
    def scaling(self) -> float:
        """Factor on a LoRA's output: lora_alpha over its rank."""
        return 2.0 if self.lora_alpha is None else self.lora_alpha / self.r
