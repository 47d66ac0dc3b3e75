"""Gradients summed over ranks by all-reduces of buckets, which begin while the backward pass still runs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from streamcvit.learning.ordered import by_dtype, flattened, give_back
from streamcvit.learning.wires import await_all

if TYPE_CHECKING:
    from streamcvit.learning.group import Group

BUCKET_BYTES = 4 << 20


class BucketSum:
    """Adds up the gradients of step after step.

    Parameters stand in buckets in the order in which a backward pass reaches them, about the reverse of the model's. In
    a rank's last backward pass of a step a bucket is on its way as soon as it and those before it are complete, so that
    all ranks send them in one order (as torch's DistributedDataParallel does: Li et al., VLDB 2020).

    Args:
        group: who sums.
        parameters: whose gradients.
        size: bytes of a bucket, about.
    """

    def __init__(self, group: Group, parameters: Sequence[torch.nn.Parameter], size: int = BUCKET_BYTES) -> None:
        self.group, self.parameters = weakref.proxy(group), list(parameters)
        self.buckets: list[list[int]] = []
        for places in by_dtype(parameters).values():
            room = 0
            for place in reversed(places):
                if room <= 0:
                    self.buckets.append([])
                    room = size
                self.buckets[-1].append(place)
                room -= parameters[place].nbytes
        self._bucket_of = {place: number for number, bucket in enumerate(self.buckets) for place in bucket}
        self._open, self.overlapped = False, 0.0
        self._flats: list[torch.Tensor] = []
        self._works: list[Any] = []
        self._reset()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._hook(place))
            for place, parameter in enumerate(self.parameters)
        ]

    def of(self, parameters: Sequence[torch.nn.Parameter]) -> bool:
        """Whether it sums the gradients of these parameters."""
        return len(parameters) == len(self.parameters) and all(map(lambda a, b: a is b, parameters, self.parameters))

    def begin(self, last: bool) -> None:
        """Called before each of this rank's backward passes; after the `last` one its gradients are complete."""
        if last:
            self._reset()
            self._open = True

    def take(self) -> None:
        """Called after each: gradients add up where they are."""

    def finish(self, notes: torch.Tensor) -> torch.Tensor:
        """Set the gradients of the whole batch; as `OrderedSum.finish`."""
        if not self._open:  # a rank without a micro-batch
            self._reset()
        self._open = False
        self.overlapped = self._next / max(1, len(self.buckets))
        while self._next < len(self.buckets):
            self._send()
        notes = torch.cat([notes, notes.new_tensor([p.grad is not None for p in self.parameters])])
        await_all([*self._works, self.group.add_up(notes)])
        self.group.exchanges += 1
        notes, met = notes.split([len(notes) - len(self.parameters), len(self.parameters)])
        there = met.tolist()
        for bucket, flat in zip(self.buckets, self._flats, strict=True):
            give_back([self.parameters[place] for place in bucket], flat, [there[place] > 0 for place in bucket])
        self._flats, self._works = [], []
        return notes

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _reset(self) -> None:
        self._left = [len(bucket) for bucket in self.buckets]
        self._next = 0
        self._flats, self._works = [], []

    def _hook(self, place: int) -> Any:
        own = weakref.ref(self)

        def ready(_: torch.Tensor) -> None:
            sum_ = own()
            if sum_ is None or not sum_._open:
                return
            sum_._left[sum_._bucket_of[place]] -= 1
            while sum_._next < len(sum_.buckets) and not sum_._left[sum_._next]:
                sum_._send()

        return ready

    def _send(self) -> None:
        flat = flattened([self.parameters[place] for place in self.buckets[self._next]])
        if flat.device.type == "cpu" and flat.dtype.itemsize < 4:  # gloo adds few of the small types
            flat = flat.float()
        self._flats.append(flat)
        self._works.append(self.group.add_up(flat))
        self._next += 1
