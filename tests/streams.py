"""Small streams and damaged shards for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from streamcvit.data.sample import Picture, Sample, TaskSpec

T = TypeVar("T")
TASKS = {name: TaskSpec(name, "exact", "single_word") for name in ("colour", "shape")}


def picture(seed: int, size: int = 8, format: str = "PNG", mode: str = "RGB") -> bytes:
    """An encoded picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, format)
    return buffer.getvalue()


def sample(number: int, task: str = "colour", **changes) -> Sample:
    """A sample whose picture and question depend on its number."""
    fields = {
        "sample_id": f"{task}-{number}",
        "task": task,
        "question": f"Größe {number}?",
        "instruction": "Answer with one word.",
        "answers": ("red", "rot"),
        "pictures": (Picture(picture(number)),),
        "meta": {"box": [0.5, number]},
    }
    return Sample(**{**fields, **changes})


def stream_samples(count: int = 40, per_chunk: int = 10) -> list[tuple[int, Sample]]:
    """(chunk, sample) of a stream where `shape` begins in the third chunk."""
    names = ["colour" if number < 2 * per_chunk else ("colour", "shape")[number % 2] for number in range(count)]
    return [(number // per_chunk, sample(number, task)) for number, task in enumerate(names)]


def test_sets(count: int = 3) -> dict[str, list[Sample]]:
    """A test set for each of `TASKS`."""
    return {task: [sample(1000 + number, task) for number in range(count)] for task in TASKS}


def raw_tar(
    path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.USTAR_FORMAT
) -> Path:
    """A tar of given members, whatever they are called."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(key: str, number: int) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    """The two members of a whole sample."""
    one = sample(number)
    return [(f"{key}.json", one.text_bytes()), (f"{key}.png", one.pictures[0].data)]


def only(kind: type[T], found: Iterable[object]) -> list[T]:
    """Those of one kind, such as `Quarantined`."""
    return [one for one in found if isinstance(one, kind)]


test_sets.__test__ = False  # type: ignore[attr-defined]
