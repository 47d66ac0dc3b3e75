"""Base models: loading, collation, the frozen vision half, adapter snapshots.

The names below are loaded on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamcvit.models.base import Base, load_base, target_modules
    from streamcvit.models.batch import Batch, ModelInputs
    from streamcvit.models.collate import Collator, UnusableSamples
    from streamcvit.models.snapshot import adapter_state, load_snapshot, state_digest
    from streamcvit.models.vision import Vision, encode_images, join_features, text_tensors, vision_dim

_HOME = {
    "Base": "base",
    "load_base": "base",
    "target_modules": "base",
    "Batch": "batch",
    "ModelInputs": "batch",
    "Collator": "collate",
    "UnusableSamples": "collate",
    "adapter_state": "snapshot",
    "load_snapshot": "snapshot",
    "state_digest": "snapshot",
    "Vision": "vision",
    "encode_images": "vision",
    "join_features": "vision",
    "text_tensors": "vision",
    "vision_dim": "vision",
}

__all__ = [
    "Base",
    "Batch",
    "Collator",
    "ModelInputs",
    "UnusableSamples",
    "Vision",
    "adapter_state",
    "encode_images",
    "join_features",
    "load_base",
    "load_snapshot",
    "state_digest",
    "target_modules",
    "text_tensors",
    "vision_dim",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
