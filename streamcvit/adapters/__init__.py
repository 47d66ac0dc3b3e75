"""Mixture-of-experts adapters as stock PEFT tuners.

Importing this package makes them known to PEFT: `get_peft_model` takes their configurations, `save_pretrained` and
`PeftModel.from_pretrained` store and load them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftConfig

from streamcvit.adapters.build import adapter_config, attach
from streamcvit.adapters.calls import (
    after_step,
    auxiliary_loss,
    begin_chunk,
    by_samples,
    checkpointing_kwargs,
    cluster_assignments,
    decide_routes,
    expert_parameters,
    expert_usage,
    learning_mode,
    routing_kwargs,
    shares_routes,
    told_tasks,
    tuner_of,
    uncompiled,
    undo_step,
)
from streamcvit.adapters.checkpointing import checkpoint_layers, keep_activations
from streamcvit.adapters.compiling import check_compiler, compile_layers, plain_layers
from streamcvit.adapters.eproj import EProjConfig, choosing_projectors
from streamcvit.adapters.instruction import InstructionEncoder
from streamcvit.adapters.moelora import MoELoraConfig
from streamcvit.adapters.options import check_options
from streamcvit.adapters.published import load_published
from streamcvit.adapters.reach import Reach
from streamcvit.adapters.routing import RoutingInputs
from streamcvit.adapters.smolora import SMoLoraConfig
from streamcvit.adapters.strlora import StrLoraConfig
from streamcvit.adapters.targets import target_modules, touched_before_language
from streamcvit.adapters.tasklora import TaskLoraConfig, TaskLoraModel
from streamcvit.adapters.usage import ExpertUsage
from streamcvit.errors import UserError

__all__ = [
    "ADAPTERS",
    "EProjConfig",
    "ExpertUsage",
    "InstructionEncoder",
    "MoELoraConfig",
    "Reach",
    "RoutingInputs",
    "SMoLoraConfig",
    "StrLoraConfig",
    "TaskLoraConfig",
    "adapter_config",
    "after_step",
    "attach",
    "auxiliary_loss",
    "begin_chunk",
    "by_samples",
    "check_compiler",
    "checkpoint_layers",
    "checkpointing_kwargs",
    "choosing_projectors",
    "cluster_assignments",
    "compile_layers",
    "decide_routes",
    "expert_parameters",
    "expert_usage",
    "keep_activations",
    "learning_mode",
    "load_published",
    "plain_layers",
    "routing_kwargs",
    "shares_routes",
    "target_modules",
    "told_tasks",
    "touched_before_language",
    "tuner_of",
    "uncompiled",
    "undo_step",
]

TargetModules = list[str] | str | None


@dataclass(frozen=True)
class Adapter:
    """A kind of adapter: gives the PEFT configuration with some options, for some modules.

    Attributes:
        config: class of its PEFT configurations.
        name: its own.
        needs_task: it is told the task of samples, to train and to answer, which reports say of what it learned.
    """

    config: type[PeftConfig]
    name: str
    needs_task: bool = False

    def __call__(self, options: dict[str, Any], target_modules: TargetModules = None) -> PeftConfig:
        """The configuration; UserError where an option is unknown or cannot have its value."""
        check_options(self.config, self.name, options)
        try:
            return self.config(**{"target_modules": target_modules, **options})  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            said = f"a value of the wrong type ({error})" if isinstance(error, TypeError) else str(error)
            fix = "See docs/settings.md for its options"
            raise UserError(f"{self.name}: {said}", where="adapter options", fix=fix) from error


ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        Adapter(LoraConfig, "lora"),
        Adapter(MoELoraConfig, "moelora"),
        Adapter(SMoLoraConfig, "smolora"),
        Adapter(StrLoraConfig, "strlora"),
        Adapter(EProjConfig, "eproj"),
        Adapter(TaskLoraConfig, "tasklora", needs_task=TaskLoraModel.needs_task),
    )
}
"""Adapter name -> builder(options, target_modules) of its PEFT configuration."""
