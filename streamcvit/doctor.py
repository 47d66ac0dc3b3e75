"""What a machine has and lacks for a run."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from streamcvit.cluster.session import needed_mib
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.run.folder import MISSING, machine, versions


@dataclass(frozen=True)
class Finding:
    """One line of `streamcvit doctor`.

    Attributes:
        what: the thing and its state.
        ok: whether it is as it should be.
        fix: how to mend it.
        needed: whether a run fails without it.
    """

    what: str
    ok: bool = True
    fix: str = ""
    needed: bool = True


def findings() -> Iterator[Finding]:
    """Look at this machine, cheapest things first."""
    import torch

    yield Finding(f"machine: {machine()}")
    yield Finding(
        f"system: {platform.system()}",
        sys.platform == "linux",
        "Only Linux is tested; expect rough edges",
        needed=False,
    )
    yield Finding(
        f"Python {sys.version.split()[0]}",
        sys.version_info >= (3, 11),
        "Install Python 3.11 or newer, then `make setup`",
    )
    for name, version in versions().items():
        if name not in ("streamcvit", "python"):
            yield Finding(f"{name} {version}", version != MISSING, f"Run `make setup`, or pip install {name}")
    if torch.cuda.is_available():
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        free, total = torch.cuda.mem_get_info()
        yield Finding(f"CUDA: {torch.cuda.get_device_name()}, {free >> 30} of {total >> 30} GiB free, runs in {bf16}")
    else:
        built = torch.version.cuda or "none"
        yield Finding(
            f"CUDA: no device (torch built for CUDA: {built}); runs go on the CPU", False, _CUDA, needed=False
        )
    free = psutil.virtual_memory().available // 2**20
    need = needed_mib(RunConfig(), 5 << 20)
    yield Finding(
        f"memory: {free} MiB free, the demo needs about {need}", free >= need, "Close programs, or use --local"
    )
    disk = shutil.disk_usage(os.getcwd()).free // 2**20
    yield Finding(f"disk: {disk} MiB free here", disk > 500, "Free some space: a demo run leaves about 100 MiB")
    yield _ray()
    yield _optional("sentence_transformers", "instruction embeddings of the papers (all-MiniLM-L6-v2)")
    yield _optional("bitsandbytes", "model.quantize: bases in 8 and 4 bits")
    for tool, use in (
        ("promtool", "checks of the metrics in the tests"),
        ("chromium", "checks of the report in the tests"),
    ):
        there = shutil.which(tool) is not None
        yield Finding(
            f"{tool}: {'found' if there else 'not found'} ({use})", there, f"Install it: {tool}", needed=False
        )


_CUDA = "For a GPU: a driver, and `pip install torch` from the index of its CUDA version"


def _optional(module: str, use: str) -> Finding:
    there = importlib.util.find_spec(module) is not None
    name = module.replace("_", "-")
    return Finding(f"{name}: {'found' if there else 'not found'} ({use})", there, f"pip install {name}", needed=False)


def _ray() -> Finding:
    """Start a private Ray and stop it: the only proof that it works here."""
    from streamcvit.cluster.session import session

    try:
        with session(RunConfig()) as ray:
            nodes, cpus = len(ray.nodes()), int(ray.cluster_resources().get("CPU", 0))
            return Finding(f"Ray starts here: {nodes} node, {cpus} CPU slots")
    except UserError as error:
        return Finding(f"Ray: {error.what}", False, error.fix)
