"""Adapter weights as plain tensors: out of a model, into a model, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Snapshot:
    """An adapter at one moment.

    Attributes:
        tensors: name -> weights, on the CPU, as PEFT saves them.
        version: optimizer steps taken.
        cursor: position of the next sample to learn from.
        chunk: the chunk learned last.
        digest: `state_digest` of the tensors.
    """

    tensors: Mapping[str, torch.Tensor]
    version: int
    cursor: int
    chunk: int
    digest: str

    def __reduce__(self) -> tuple:
        # As arrays: between processes these travel out of band, where torch tensors are copied through the pickle.
        odd = {n: str(t.dtype).removeprefix("torch.") for n, t in self.tensors.items() if t.dtype in _VIEWS}
        arrays = {n: t.view(_VIEWS.get(t.dtype, t.dtype)).numpy() for n, t in self.tensors.items()}
        return (_unpack, (arrays, odd, self.version, self.cursor, self.chunk, self.digest))


# Types that numpy does not know, and what their bits pass for.
_VIEWS = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


def _unpack(arrays: dict[str, np.ndarray], odd: dict[str, str], *rest: Any) -> Snapshot:
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return Snapshot({n: t.view(getattr(torch, odd[n])) if n in odd else t for n, t in tensors.items()}, *rest)


def take_snapshot(peft_model: Any, version: int, cursor: int, chunk: int) -> Snapshot:
    """The adapter of `peft_model` as it is now; later steps do not change it."""
    tensors = adapter_state(peft_model)
    return Snapshot(tensors, version, cursor, chunk, state_digest(tensors))


def adapter_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights as PEFT saves them: name -> tensor on the CPU, a copy that later steps do not change."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(peft_model)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def load_adapter_state(peft_model: Any, weights: Snapshot | Mapping[str, torch.Tensor | np.ndarray]) -> str:
    """Sets the adapter's weights in place and says what the model now holds.

    Args:
        peft_model: a PEFT model with an adapter of the same layout.
        weights: a snapshot, or what `adapter_state` gave, as torch tensors or numpy arrays.

    Returns:
        The digest recomputed from the model's own adapter state: proof of delivery, to be compared with the
        snapshot's digest.

    Raises:
        ValueError: names or shapes are not those of the model's adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    tensors = weights.tensors if isinstance(weights, Snapshot) else weights
    # Read-only arrays (shared memory) are copied: torch cannot mark a tensor read-only.
    state = {
        name: tensor if isinstance(tensor, torch.Tensor) else torch.from_numpy(np.array(tensor))
        for name, tensor in tensors.items()
    }
    held = get_peft_model_state_dict(peft_model)
    wrong = sorted(held.keys() ^ state.keys()) or [n for n in sorted(state) if held[n].shape != state[n].shape]
    if wrong:
        raise ValueError(
            f"the snapshot does not fit the model's adapter: {len(wrong)} tensors differ, {wrong[0]} first"
        )
    set_peft_model_state_dict(peft_model, state)
    return state_digest(adapter_state(peft_model))


def state_digest(tensors: Mapping[str, torch.Tensor | np.ndarray]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and raw bytes (hex); the same for torch tensors and numpy arrays."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        tensor = tensor.detach().to("cpu").contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0".encode())
        # Through bytes, since numpy knows no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
