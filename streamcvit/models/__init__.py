"""Base models: loading, collation, the frozen vision half, adapter snapshots.

The names below are loaded on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamcvit.models.base import Base, load_base
    from streamcvit.models.batch import Batch, ModelInputs
    from streamcvit.models.collate import Collator, UnusableSamples
    from streamcvit.models.pieces import Layout
    from streamcvit.models.snapshot import Snapshot, adapter_state, load_adapter_state, state_digest, take_snapshot
    from streamcvit.models.vision import Vision, encode_images, text_tensors, vision_dim

_HOME = {
    "Base": "base",
    "load_base": "base",
    "Batch": "batch",
    "ModelInputs": "batch",
    "Collator": "collate",
    "UnusableSamples": "collate",
    "Layout": "pieces",
    "adapter_state": "snapshot",
    "Snapshot": "snapshot",
    "load_adapter_state": "snapshot",
    "state_digest": "snapshot",
    "take_snapshot": "snapshot",
    "Vision": "vision",
    "encode_images": "vision",
    "text_tensors": "vision",
    "vision_dim": "vision",
}

__all__ = [
    "Base",
    "Batch",
    "Collator",
    "Layout",
    "ModelInputs",
    "Snapshot",
    "UnusableSamples",
    "Vision",
    "adapter_state",
    "encode_images",
    "load_base",
    "load_adapter_state",
    "state_digest",
    "take_snapshot",
    "text_tensors",
    "vision_dim",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
