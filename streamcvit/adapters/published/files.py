"""Read the files of a published checkpoint as data: nothing in them is run, and whatever is wrong is said at once."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from streamcvit.errors import UserError

CONFIG, ADAPTER, AVERAGES, PROJECTOR = (
    "adapter_config.json",
    "adapter_model",
    "router_distill_ema",
    "non_lora_trainables",
)
PREFIX = "base_model.model."

# SMoLoRA keeps the embedding of every training instruction in its configuration: tens of megabytes are in order.
_LARGEST_CONFIG = 256 * 2**20
_LISTED = 12
_REFUSED = re.compile(r"unsupported \w+:? ?(?:GLOBAL )?([\w.]*)", re.IGNORECASE)


class Problems:
    """What is wrong with a checkpoint, gathered so that one message names all of it.

    Args:
        folder: the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, list[str]] = {}

    def add(self, what: str, name: str = "") -> None:
        """Note one fault; faults of the same kind are told together."""
        self.found.setdefault(what, []).append(name)

    def check(self, fix: str = "") -> None:
        """Raise a `UserError` that names every fault noted so far, if any."""
        if self.found:
            told = [_told(what, [name for name in names if name]) for what, names in self.found.items()]
            raise UserError("; ".join(told), where=str(self.folder), fix=fix)


def _told(what: str, names: list[str]) -> str:
    if not names:
        return what
    shown = patterns(names)
    rest = len(shown) - _LISTED
    listed = [f"{name} (x{count})" if count > 1 else name for name, count in list(shown.items())[:_LISTED]]
    return f"{what} ({len(names)}): {', '.join(listed)}" + (f" and {rest} more patterns" if rest > 0 else "")


def pattern_of(name: str) -> str:
    """A dotted name with # for the parts that are numbers, the same for all layers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


def patterns(names: list[str]) -> dict[str, int]:
    """Names that differ in numbers only as one pattern with how many there are; a name that stands alone stays."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(pattern_of(name), []).append(name)
    return {pattern if len(found) > 1 else found[0]: len(found) for pattern, found in groups.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`; raises `UserError` where it is missing, unreadable, huge or no mapping."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise UserError(
                f"{CONFIG} has {path.stat().st_size >> 20} MiB, more than any configuration",
                where=str(folder),
                fix="Give the folder that holds adapter_config.json and adapter_model",
            )
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"no readable {CONFIG}: {_short(error)}", where=str(folder), fix="Give the folder of a published adapter"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{CONFIG} holds a {type(config).__name__}, not settings", where=str(folder))
    return config


def find(folder: Path, stem: str) -> Path | None:
    """The file that holds `stem`, safetensors first; None where there is none."""
    return next((path for end in (".safetensors", ".bin") if (path := folder / f"{stem}{end}").is_file()), None)


def read_tensors(path: Path, problems: Problems) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` or `.bin` file as float32; a mapping inside the mapping is joined with dots.

    What is no plain tensor of finite floating-point numbers is noted in `problems` and left out.

    Raises:
        UserError: the file is damaged, or is a pickle that asks for anything but tensors.
    """
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with a foreign file, its name is what the user needs
        raise UserError(
            f"no readable {path.name}: {_short(error)}", where=str(path.parent), fix="Download or copy it again"
        ) from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path.name} holds a {type(found).__name__}, not named tensors", where=str(path.parent))
    tensors: dict[str, torch.Tensor] = {}
    for name, value in _flat(found):
        fault = _fault(value)
        if fault:
            problems.add(f"{path.name} holds {fault}", name)
        else:
            tensors[name] = value.detach().float()
    return tensors


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, torch's and others for whatever bytes are there
        refused = _REFUSED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        # torch's own message advises to trust the file; ours does not.
        what = "it is damaged, or no file of torch.save"
        if refused is not None:
            what = f"it holds more than tensors ({refused[1] or 'code'}), and nothing in it is run"
        raise UserError(
            f"no readable {path.name}: {what}",
            where=str(path.parent),
            fix="Download it again, or ask its authors for a .safetensors file",
        ) from None


def _flat(found: Mapping, depth: int = 0) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in found.items():
        if isinstance(value, Mapping) and depth < 1:
            flat += [(f"{name}.{inner}", v) for inner, v in _flat(value, depth + 1)]
        else:
            flat.append((str(name), value))
    return flat


def _fault(value: Any) -> str:
    """Why a value is no plain tensor of finite numbers; "" where it is one."""
    if not isinstance(value, torch.Tensor):
        return f"values that are no tensors but {type(value).__name__}"
    if value.layout is not torch.strided or value.device.type != "cpu" or not value.is_floating_point():
        return f"tensors of type {str(value.dtype).removeprefix('torch.')}, {value.layout}, not of plain numbers"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "tensors larger than what is stored of them"
    if not bool(torch.isfinite(value).all()):
        return "tensors with NaN or infinity"
    return ""


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
