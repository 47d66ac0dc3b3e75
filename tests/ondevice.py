"""A device of which every read is counted: tensors on it compute on the CPU.

To torch they lie on the meta device, whose values a host cannot see; what mixes devices fails as on an accelerator.
`Device` is the mode under which they are made and used.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

META = torch.device("meta")
aten = torch.ops.aten
READS = (
    aten._local_scalar_dense, aten.item, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select,
    aten.unique_consecutive, aten._unique, aten._unique2, aten.unique_dim, aten.bincount,
)  # fmt: skip
"""Operations whose result is a value, or has a size that is in the data: the host has to wait for it."""
PICKS = (aten.index, aten.index_put, aten.index_put_)
MIXING = (*PICKS, aten.copy_, aten._to_copy)
"""Operations that take tensors of several devices: indices may lie on the host."""


class OnDevice(torch.Tensor):
    """A tensor on the device; `held` holds its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=META, requires_grad=held.requires_grad,
        )  # fmt: skip

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function} was called outside of the device's mode")

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> OnDevice:
        return OnDevice(inner["held"])


class Device(TorchDispatchMode):
    """Runs what is on the device, and notes what the host waits for.

    Attributes:
        reads: for every value that the host read, and every result whose size the host had to learn, the operation and
            the lines of code that asked for it, innermost first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __enter__(self) -> Device:
        # On the meta device torch leaves the values of data that it is given out.
        self._tensor = torch.tensor

        def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
            made = self._tensor(data, **options)
            return made if device is None else made.to(device)

        torch.tensor = tensor  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.tensor = self._tensor
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = dict(kwargs or {}), function.overloadpacket
        flat, form = tree_flatten((args, kwargs))
        there = any(isinstance(value, OnDevice) for value in flat)
        wanted = kwargs.get("device")
        on_device = wanted == META or (there and wanted is None)
        if not on_device and not there:
            return function(*args, **kwargs)
        hosts = [t for t in flat if isinstance(t, torch.Tensor) and not isinstance(t, OnDevice) and t.dim()]
        if there and hosts and packet not in MIXING:
            raise RuntimeError(f"{function} mixes tensors of the device with others")
        masked = packet in PICKS and any(isinstance(i, OnDevice) and i.dtype == torch.bool for i in args[1])
        to_host = packet is aten.copy_ and not isinstance(args[0], OnDevice)
        if there and (packet in READS or masked or to_host or not on_device):
            self._note(function)
        inner_args, inner = tree_unflatten([v.held if isinstance(v, OnDevice) else v for v in flat], form)
        if wanted is not None:
            inner["device"] = torch.device("cpu")
        with _disable_current_modes():
            out = function(*inner_args, **inner)
        if to_host or not on_device:
            return args[0] if to_host else out
        return return_and_correct_aliasing(function, args, kwargs, tree_map_only(torch.Tensor, OnDevice, out))

    def _note(self, function: Any) -> None:
        frames = [f for f in reversed(traceback.extract_stack()) if "ondevice" not in f.filename]
        ours = [f"{f.filename.rpartition('site-packages/')[2]}:{f.lineno} {f.line}" for f in frames[:60]]
        own = [line for line in ours if not line.startswith("torch/")][:3]
        self.reads.append(f"{function} from {' < '.join(own)}")
