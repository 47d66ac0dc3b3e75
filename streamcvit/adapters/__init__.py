"""Mixture-of-experts adapters as stock PEFT tuners.

Importing this package makes them known to PEFT: `get_peft_model` takes their configurations, `save_pretrained` and
`PeftModel.from_pretrained` store and load them.
"""

from __future__ import annotations

from collections.abc import Callable
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
    "touched_before_language",
    "tuner_of",
    "uncompiled",
    "undo_step",
]

TargetModules = list[str] | str | None


def _builder(config_cls: type[PeftConfig], name: str) -> Callable[[dict[str, Any], TargetModules], PeftConfig]:
    def build(options: dict[str, Any], target_modules: TargetModules = None) -> PeftConfig:
        """The PEFT configuration with these options, for these modules."""
        check_options(config_cls, name, options)
        try:
            return config_cls(**{"target_modules": target_modules, **options})  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            said = f"a value of the wrong type ({error})" if isinstance(error, TypeError) else str(error)
            fix = "See docs/settings.md for its options"
            raise UserError(f"{name}: {said}", where="adapter options", fix=fix) from error

    return build


ADAPTERS = {
    "lora": _builder(LoraConfig, "lora"),
    "moelora": _builder(MoELoraConfig, "moelora"),
    "smolora": _builder(SMoLoraConfig, "smolora"),
    "strlora": _builder(StrLoraConfig, "strlora"),
    "eproj": _builder(EProjConfig, "eproj"),
}
"""Adapter name -> builder(options, target_modules) of its PEFT configuration."""
