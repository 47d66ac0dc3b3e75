"""Shards that arrive in a folder, as a stranger's program would put them there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streams import raw_tar

from streamcvit.config import RunConfig
from streamcvit.data.sample import Sample
from streamcvit.pipeline import load_config


def tar_of(path: Path, samples: Sequence[Sample]) -> Path:
    """A shard of these samples."""
    members: list[Any] = []
    for number, one in enumerate(samples):
        members.append((f"{number:06d}.json", one.text_bytes()))
        members += [(f"{number:06d}.{picture.ext}", picture.data) for picture in one.pictures]
    return raw_tar(path, members)


def arrive(folder: Path, name: str, samples: Sequence[Sample], mark: str = ".done") -> None:
    """Put a shard there, then what says that it is complete."""
    draft = tar_of(folder / f".{name}", samples)
    os.rename(draft, folder / name)
    complete(folder, name, mark)


def complete(folder: Path, name: str, mark: str = ".done") -> None:
    """Say that a shard is complete."""
    text = f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" if mark == ".sha256" else ""
    (folder / (name + mark)).write_text(text)


def announce(folder: Path, task: str, tests: Sequence[Sample], **rules: Any) -> None:
    """Put a task's test set and manifest there."""
    arrive(folder, f"{task}.test.tar", tests)
    (folder / f"{task}.task.json").write_text(json.dumps({"task": task, "test": f"{task}.test.tar", **rules}))


def following(out: Path, data: Path, *more: str) -> RunConfig:
    """A run of one method on a stream that arrives in `data`."""
    settings = ["stream.source=follow", f"stream.data={data}", "methods={lora: {adapter: lora}}"]
    return load_config(None, [*settings, *more], name="r", out=str(out))
