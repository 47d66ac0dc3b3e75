"""What carries tensors between ranks (gloo or NCCL), and what it is called when it breaks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


class GroupBroken(RuntimeError):
    """A rank is gone, or out of reach: the group must be built anew, and goes on from the last commit."""


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """What fails inside, fails for want of another rank.

    Raises:
        GroupBroken: in place of what torch's wires and stores raise.
    """
    try:
        yield
    except GroupBroken:
        raise
    except (RuntimeError, OSError) as error:
        raise GroupBroken(" ".join(str(error).split())[:300]) from error


def await_all(works: Sequence[Any]) -> None:
    """Wait for what was begun.

    Raises:
        GroupBroken: a rank is gone.
    """
    with reaching():
        for work in works:
            work.wait()


def wire(store: Any, rank: int, ranks: int, device: torch.device, host: str, seconds: float) -> Any:
    """A process group of torch's over a store: NCCL for a CUDA device, else gloo.

    Not torch's default group, of which a process has one: a group that broke is let go of, and another is made.

    Args:
        store: that all ranks are connected to.
        rank, ranks: of the group.
        device: that the tensors are on.
        host: this machine's address, which gloo listens at.
        seconds: that it waits for a rank.

    Raises:
        GroupBroken: not every rank came.
    """
    with reaching():
        if device.type == "cuda":
            nccl = distributed.ProcessGroupNCCL.Options()
            nccl._timeout = timedelta(seconds=seconds)
            return distributed.ProcessGroupNCCL(store, rank, ranks, nccl)
        gloo = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._devices = [distributed.ProcessGroupGloo.create_device(hostname=host)]
        gloo._timeout = timedelta(seconds=seconds)
        return distributed.ProcessGroupGloo(store, rank, ranks, gloo)
