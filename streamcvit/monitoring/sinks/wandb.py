"""Weights & Biases: one of its runs a method, online or kept in the run's folder for `wandb sync`."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamcvit.errors import UserError
from streamcvit.monitoring.sinks.base import Point, Sink, Target

STEP = "optimizer_step"
"""The axis of every chart: scores of a boundary come after later steps were told, which W&B's own counter cannot."""
MODES = ("", "online", "offline")
WRITE_SECONDS = 5.0
_BLOCK, _FILE_HEAD, _HEAD = 32768, 7, struct.Struct("<IHB")


class WeightsAndBiases(Sink):
    """Runs named run/method; who pays, and with which key, is said in W&B's own way (WANDB_API_KEY, `wandb login`).

    Args:
        project: that the runs go to.
        entity: whose project; empty: the default of the account.
        mode: `online`, or `offline` for `wandb sync` later; empty: WANDB_MODE, or online.
    """

    package = "wandb"

    def __init__(self, project: str = "streamcvit", entity: str = "", mode: str = "") -> None:
        if not isinstance(project, str) or not project or not isinstance(entity, str):
            raise ValueError("project and entity are texts")
        if mode not in MODES:
            raise ValueError("mode is online or offline")
        self.project, self.entity, self.mode = project, entity, mode

    def check(self) -> None:
        if (self.mode or os.environ.get("WANDB_MODE") or "online") != "online" or os.environ.get("WANDB_API_KEY"):
            return
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        with contextlib.suppress(OSError, NetrcParseError):
            if netrc(os.environ.get("NETRC")).authenticators(host):
                return
        fix = "Set WANDB_API_KEY, run `wandb login`, or set monitor.sink_options.wandb.mode=offline"
        raise UserError(f"nobody is logged in to Weights & Biases ({host})", where="monitor.sinks", fix=fix)

    def held(self, target: Target) -> dict[str, int]:
        held: dict[str, int] = {}
        for path in sorted((target.folder.parent / "wandb").glob(f"*/run-{target.key}.wandb")):
            for row in rows(path):
                step = int(row.pop(STEP, -1))
                held |= {tag: max(step, held.get(tag, -1)) for tag in row if not tag.startswith("_")}
        return held

    def open(self, target: Target) -> None:
        import wandb

        self.target = target
        self.run = wandb.init(
            project=self.project,
            entity=self.entity or None,
            mode=self.mode or None,  # type: ignore[arg-type]
            id=target.key,
            name=target.name,
            group=target.source.run,
            job_type=target.source.method,
            config=dict(target.config),
            dir=str(target.folder.parent),
            resume="allow",
            reinit="create_new",  # methods side by side in one process
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                init_timeout=60,
            ),
        )
        self.run.define_metric(STEP, hidden=True)
        self.run.define_metric("*", step_metric=STEP)

    def write(self, points: Sequence[Point]) -> None:
        for step, group in groupby(points, key=lambda point: point.step):
            self.run.log({STEP: step, **{point.tag: point.value for point in group}})
        self.last = points[-1]

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)
        until = time.monotonic() + WRITE_SECONDS  # W&B's own process writes the end of its record after that
        while time.monotonic() < until and self.held(self.target).get(self.last.tag, -1) < self.last.step:
            time.sleep(0.1)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """What was logged, a row a call, from W&B's own record of a run (LevelDB's log format, protobuf within)."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a log: each is in one piece (1), or in a first (2), middle (3) and last (4) one, which do not go
    over the end of a block; what a kill cut short is left out."""
    at, parts = _FILE_HEAD, b""
    while at + _HEAD.size <= len(data):
        if _BLOCK - at % _BLOCK < _HEAD.size:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if kind == 0 or at + length > len(data):
            return
        parts = data[at : at + length] if kind in (1, 2) else parts + data[at : at + length]
        at += length
        if kind in (1, 4):
            yield parts
