"""Whether a model can have an attention implementation, said in one line where it cannot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from streamcvit.errors import UserError

ANYWHERE = ("sdpa", "eager")
"""Implementations that every device and dtype has."""
_KEY = "model.attention"


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """What device and dtype say of an implementation; see `with_attention` for what the model says.

    Raises:
        UserError: it has no kernel there, or none for learning.
    """
    flash = "flash" in name
    if device.type == "cpu" and (flash or "flex" in name):
        raise UserError(f"{name} learns on a GPU only, and the model is on the CPU", where=_KEY, fix=_choice(ANYWHERE))
    if flash and dtype == torch.float32:
        fix = f"Set model.dtype to bfloat16, or {_KEY} to sdpa"
        raise UserError(f"{name} has no kernel for float32", where=_KEY, fix=fix)


def with_attention(build: Callable[[str | None], nn.Module], name: str | None) -> nn.Module:
    """A model built with an implementation.

    Args:
        build: makes the model with one; it is called again with others where that fails.
        name: as transformers takes it; None: the model's own default.

    Raises:
        UserError: the model cannot have it, or a package that it needs is not installed.
    """
    try:
        return build(name)
    except (ValueError, ImportError) as error:
        possible = [other for other in ANYWHERE if name not in (None, other) and _builds(build, other)]
        if not possible:
            raise
        said = " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:200]
        raise UserError(f"the model cannot have {name!r} here: {said}", where=_KEY, fix=_choice(possible)) from error


def _builds(build: Callable[[str | None], nn.Module], name: str) -> bool:
    try:
        build(name)
    except (ValueError, ImportError):
        return False
    return True


def _choice(names: tuple[str, ...] | list[str]) -> str:
    return f"Set it to {' or '.join(names)}"
