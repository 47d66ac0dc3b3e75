"""Where the parts of a published checkpoint stand in a model whose modules may be nested otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from streamcvit.adapters.published.files import PREFIX, Problems

# The projectors of the trained models under their authors' names, and as transformers' own classes call them.
_PROJECTORS = {
    r"mm_projector\.0": "multi_modal_projector.linear_1",
    r"mm_projector\.2": "multi_modal_projector.linear_2",
    r"mlp1\.0": "multi_modal_projector.layer_norm",
    r"mlp1\.1": "multi_modal_projector.linear_1",
    r"mlp1\.3": "multi_modal_projector.linear_2",
}


def place(sizes: Mapping[str, tuple[int, int]], model: nn.Module, problems: Problems) -> dict[str, str]:
    """Published module path -> the path of that linear in `model`.

    By name, or by the longest common end of the paths outside the vision tower.

    Args:
        sizes: features in and out of each published module.
        model: the model, of which only names and shapes are read.
        problems: takes modules that fit none of the model's, several, one that another fits, or one of another size.
    """
    linears: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    places: dict[str, str] = {}
    for module, size in sizes.items():
        found = _matches(module, linears)
        if len(found) != 1:
            problems.add(f"modules that fit {len(found) or 'none'} of the model's", module)
            continue
        linear = linears[found[0]]
        has = (linear.in_features, linear.out_features)
        if has != size:
            problems.add("modules of another size than the model's", f"{module} {list(size)}, not {list(has)}")
        if found[0] in places.values():
            problems.add("modules that fit the same one of the model's", module)
        places[module] = found[0]
    return places


def _matches(module: str, names: Iterable[str]) -> list[str]:
    """Names that `module` may stand for: itself, else those with the longest common end."""
    if module in names:
        return [module]
    for theirs, ours in _PROJECTORS.items():
        if re.search(rf"(^|\.){theirs}$", module):
            return [name for name in names if name == ours or name.endswith(f".{ours}")]
    scores = {n: _common_end(module, n) for n in names if "vision" not in n and "visual" not in n}
    best = max(scores.values(), default=0)
    return [name for name, score in scores.items() if score == best] if best else []


def _common_end(a: str, b: str) -> int:
    count = 0
    for left, right in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if left != right:
            break
        count += 1
    return count


def projector(
    tensors: Mapping[str, torch.Tensor], model: nn.Module, adapted: Iterable[str], problems: Problems
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Carry other trained weights over: paths of the model's modules to save whole, and their state.

    Args:
        tensors: what `non_lora_trainables` holds.
        model: the model, of which only names and shapes are read.
        adapted: paths in the model of adapted modules, which cannot also be saved whole.
        problems: takes tensors that fit no parameter of the model, or one of another shape.
    """
    own: dict[str, Any] = dict(model.named_parameters())
    modules = sorted({name.rpartition(".")[0] for name in own})
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        path, _, kind = name.removeprefix(PREFIX).rpartition(".")
        found = _matches(path, modules)
        key = f"{found[0]}.{kind}" if len(found) == 1 else ""
        if key not in own:
            problems.add("projector tensors that fit no parameter of the model", name)
        elif own[key].shape != tensor.shape:
            have = f"{name} {list(tensor.shape)}, not {list(own[key].shape)}"
            problems.add("projector tensors of another shape than the model's", have)
        elif found[0] in adapted:
            problems.add("projector tensors of a module that is adapted", name)
        else:
            state[key] = tensor
    saved = sorted({key.rpartition(".")[0] for key in state})
    for key in own:
        if key.rpartition(".")[0] in saved and key not in state:
            problems.add("projector tensors that are missing, where PEFT saves modules whole", key)
    return saved, state
