"""Whether a model still holds the weights it was loaded with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

_WIDTH = 1 << 20  # 64-bit words summed at a time: 8 MiB, and as much again for products


@torch.no_grad()
def checksum(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and a sum of the bits of each tensor, computed where the tensors are.

    The sum weighs every 64-bit word of a tensor by its place, modulo 2^64, and so is the same on every device, in
    whatever order it is taken. It reads each weight once and waits for the device once: SHA-256 over all bytes of a
    7 B model would take a processor tens of seconds. It tells apart what happens by mistake, not what is forged.

    Args:
        tensors: a state dict; values that are no tensors are left out.
    """
    held = {name: tensor for name, tensor in sorted(tensors.items()) if isinstance(tensor, torch.Tensor)}
    by_device: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, tensor in held.items():
        by_device.setdefault(tensor.device, {})[name] = _sum_of_bits(tensor.detach())
    sums: dict[str, int] = {}
    for found in by_device.values():
        sums |= dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))
    digest = hashlib.sha256()
    for name, tensor in held.items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0{sums[name]}\0".encode())
    return digest.hexdigest()


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """A 0-dim int64."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    if spare := len(data) % 8:
        data = torch.cat([data, data.new_zeros(8 - spare)])
    words = data.view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    places = _places(min(len(words), _WIDTH), tensor.device)
    for number, block in enumerate(words.split(_WIDTH)):
        total = total * 0x9E3779B1 + (block * places[: len(block)]).sum() + number
    return total


def _places(count: int, device: torch.device) -> torch.Tensor:
    """Odd factors, no two alike."""
    return torch.arange(count, device=device) * 0x5851F42D4C957F2E + 1
