"""When each task was learned, as the metrics read it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Plan:
    """When each task was learned.

    Args:
        trained: int [T, tasks], samples learned of a task in a chunk.

    Attributes:
        seen: bool [T, tasks].
        first: int [tasks], T where the task never came.
        last: int [tasks], -1 where the task never came.
    """

    trained: np.ndarray
    seen: np.ndarray = field(init=False)
    first: np.ndarray = field(init=False)
    last: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        came = np.asarray(self.trained) > 0
        chunks = len(came)
        object.__setattr__(self, "seen", np.cumsum(came, axis=0) > 0)
        object.__setattr__(self, "first", np.where(came.any(axis=0), came.argmax(axis=0), chunks))
        object.__setattr__(self, "last", np.where(came.any(axis=0), chunks - 1 - came[::-1].argmax(axis=0), -1))


def mean_of(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the entries marked in `among`; nan where none is, or where a marked one is nan."""
    count = among.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(among, values, 0.0).sum(axis=-1) / np.where(count, count, np.nan)


def at(scores: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """A[chunk(i), i], [..., tasks] of [..., T, tasks]; nan where a task has no such chunk."""
    chunks = scores.shape[-2]
    inside = (chunk >= 0) & (chunk < chunks)
    taken = scores[..., np.where(inside, chunk, 0), np.arange(scores.shape[-1])]
    return np.where(inside, taken, np.nan)
