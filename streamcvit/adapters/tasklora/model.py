"""One LoRA a task as a PEFT tuner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from streamcvit.adapters.routing import RoutingCall, RoutingInputs
from streamcvit.adapters.tasklora.layer import TaskLoraLayer
from streamcvit.adapters.tuner import ExpertTuner
from streamcvit.adapters.usage import Bank
from streamcvit.errors import UserError


class TaskLoraModel(ExpertTuner):
    """Adapts a model's linears with one LoRA a task; `RoutingInputs.task` says which each sample uses."""

    prefix = "tasklora_"
    tuner_layer_cls = TaskLoraLayer
    needs_task: ClassVar[bool] = True

    def _begin(self, call: RoutingCall) -> None:
        inputs = call.inputs  # not the call, which would hold itself
        call.late = lambda name: self.decide(inputs)
        for name in self.active_adapters:
            call.shared[name] = self.decide(inputs)

    def decide(self, inputs: RoutingInputs) -> torch.Tensor:
        """Routes [B, 1]: the tasks."""
        if inputs.task is None:
            raise UserError(
                "one LoRA a task must be told the task of each sample",
                fix="Pass routing=RoutingInputs(task=...), its numbers by `told_tasks(model, names)`",
            )
        return inputs.task.unsqueeze(1)

    def numbers(self, tasks: Sequence[str]) -> torch.Tensor:
        """Numbers [B] int64 of tasks by name.

        Raises:
            UserError: there is none of such a name.
        """
        config: Any = self.peft_config[self.active_adapters[0]]
        number = {task: place for place, task in enumerate(config.tasks)}
        unknown = next((task for task in tasks if task not in number), None)
        if unknown is not None:
            said = f"is {unknown!r}, of which it has none" if unknown else "is not told"
            raise UserError(
                f"one LoRA a task needs the task of each sample, and that of one {said}",
                fix=f"Name one of {', '.join(config.tasks)}",
            )
        return torch.tensor([number[task] for task in tasks], dtype=torch.int64)

    def banks(self, config: Any) -> dict[str, Bank]:
        """One column: the task."""
        return {"task": Bank(slice(0, 1), 0, config.total_experts)}
