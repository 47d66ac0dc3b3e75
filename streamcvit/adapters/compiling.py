"""Layers of an adapted model that learn compiled (`torch.compile`), one by one, so that alike layers share a graph."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from streamcvit.adapters.targets import inside, language_model
from streamcvit.errors import UserError

_KEY = "model.compile"
_OR = "or set it to false"
KINDS = 8
"""Graphs that are made for each layer at most: of a first and a changing length, with and without gradients ..."""


def compile_layers(peft_model: PeftModel, backend: str = "inductor") -> None:
    """Compile the layers of the language model where they stand; to be called anew per adapter.

    To be called after `checkpoint_layers`, under which a layer is compiled inside its checkpoint. Layers whose adapter
    notes something of its own (MoELoRA's and StrLoRA's weights of experts) are compiled each; those of others share
    their graphs. Lengths may change from batch to batch. A layer that is trained whole stays as it is.
    """
    layers: list[Any] = list(_layers(peft_model.get_base_model()))
    # Of two graphs for a first and a changing length, the recomputation under a checkpoint may take the other one.
    # Scalings are numbers, not shapes.
    torch._dynamo.config.specialize_float = True  # type: ignore[attr-defined]
    options: dict[str, Any] = {"backend": backend, "dynamic": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = KINDS * max(1, len(layers))
    # The first that is adapted brings the routes that all share into form: recomputed under a checkpoint, it finds
    # them so.
    first = next((k for k, layer in enumerate(layers) if any(map(_adapts, layer.modules()))), 0)
    for layer in layers[first + 1 :]:
        if getattr(layer, "gradient_checkpointing", False):
            run = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = _inside(run, torch.compile(layer.forward, **options))
        else:
            layer.compile(**options)


def _inside(run: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Run under a checkpoint what was compiled, in place of what a layer gives: its forward, with the keywords."""

    def both(function: partial[Any], *args: Any) -> Any:
        return run(partial(compiled, **function.keywords), *args)

    return both


def check_compiler(device: torch.device) -> None:
    """Raises a UserError where what `torch.compile` writes cannot be built."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:  # torch's own
            raise UserError("there is no C++ compiler here", where=_KEY, fix=f"Install g++, {_OR}") from error
    elif importlib.util.find_spec("triton") is None:
        raise UserError("the package triton is not installed", where=_KEY, fix=f"pip install triton, {_OR}")


def plain_layers(model: nn.Module) -> None:
    """Undo `compile_layers`, on the base model."""
    for layer in _layers(model):
        layer._compiled_call_impl = None


def _adapts(module: nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists of modules in the language model."""
    seen: list[str] = []
    for name, module in language_model(model)[1].named_modules():
        if isinstance(module, nn.ModuleList) and not inside(name, seen):
            seen.append(name)
            yield from (layer for layer in module if not isinstance(layer, AuxiliaryTrainingWrapper))
