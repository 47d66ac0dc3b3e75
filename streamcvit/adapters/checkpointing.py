"""Gradient checkpointing in which what is frozen stays in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.checkpoint import checkpoint

from streamcvit.adapters.calls import checkpointing_kwargs
from streamcvit.errors import UserError


def checkpoint_layers(peft_model: PeftModel) -> None:
    """Let the layers of an adapted model compute their activations again in backward; to be called anew per adapter.

    Transformers' layers do so in training mode only, so `learning_mode` puts the layers themselves into it. Each is in
    eval mode while it runs, so that a dropout of its own does not act, unless it is trained whole. Gradients are the
    same to the bit as without.

    Raises:
        UserError: the model's layers cannot be checkpointed.
    """
    model: Any = peft_model.get_base_model()
    kwargs = checkpointing_kwargs(peft_model)
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"{type(model).__name__} has no gradient checkpointing",
            where="learner.gradient_checkpointing",
            fix="Set it to false, or learn in smaller micro-batches (learner.micro_batch)",
        )
    _switch(model, True, kwargs)
    wrappers = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    whole = {id(inner) for wrapper in wrappers for inner in wrapper.modules()}
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) and id(module) not in whole:
            module._gradient_checkpointing_func = _run_frozen(module, kwargs)


def keep_activations(model: nn.Module) -> None:
    """Undo `checkpoint_layers`, on the base model."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        _switch(model, False, None)


def _switch(model: Any, on: bool, kwargs: dict[str, Any] | None) -> None:
    for name in ("activation_checkpointing", "gradient_checkpointing"):  # the latter's older name
        call = getattr(model, f"{name}_{'enable' if on else 'disable'}", None)
        if call is not None:
            call(kwargs) if on else call()
            return


def _run_frozen(module: nn.Module, kwargs: dict[str, Any]) -> Callable[..., Any]:
    """What a layer calls to run under a checkpoint, in eval mode both times."""

    def run(function: Callable[..., Any], *args: Any) -> Any:
        def frozen(*args: Any) -> Any:
            before, module.training = module.training, False
            try:
                return function(*args)
            finally:
                module.training = before

        return checkpoint(frozen, *args, **kwargs)

    return run
