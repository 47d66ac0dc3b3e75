"""Run folders that grow while somebody looks, for tests of what watches them."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthetic_run import write_run

from streamcvit.run.guard import alone

METHODS = ("lora", "smolora")
FEW = ("shape", "count", "ocr")


def write_watched(folder: Path, methods: tuple[str, ...] = METHODS, done: int = 3, **options) -> Path:
    """A run's folder with its methods, each with some chunks learned and scored."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"name": folder.name, "methods": dict.fromkeys(methods, {})}))
    (folder / "lock.json").write_text("{}")
    for method in methods:
        advance(folder, method, done, **options)
    return folder


def advance(folder: Path, method: str, done: int, **options) -> float:
    """Let a method have learned and scored so many chunks; what there was before is a part of it.

    Returns:
        when its rows were written.
    """
    with tempfile.TemporaryDirectory() as beside:
        made = write_run(Path(beside) / method, method, done=done, **{"tasks": FEW, "answers": False, **options})
        shutil.copytree(made, folder / method, dirs_exist_ok=True, ignore=shutil.ignore_patterns("scores.parquet"))
        shutil.copyfile(made / "scores.parquet", folder / method / "scores.parquet")
        return time.time()


def pause(folder: Path, method: str, chunk: int = 2) -> None:
    """Let a method's guard have paused it after a chunk (counted from 0)."""
    told = {"event": "guard", "action": "pause", "what": "paused", "task": "ocr", "chunk": chunk, "best_chunk": 0}
    told |= {"points": 40.0, "low": 20.0, "high": 60.0, "time": "2026-01-01T12:00:00+00:00"}
    with open(folder / method / "events.jsonl", "a") as file:
        file.write(json.dumps(told) + "\n")


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """For a while a process runs in this folder: this one."""
    with alone(folder):
        yield
