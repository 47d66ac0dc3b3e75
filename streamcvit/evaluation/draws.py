"""Draws of the bootstrap for all tasks of a run at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from streamcvit.evaluation.bootstrap import Resampler
from streamcvit.evaluation.forgetting import halves
from streamcvit.evaluation.plan import Plan


class Draws:
    """Resampled means of every task, float64 [size, ..., T, tasks] a time; task k draws from its own stream of `seed`.

    Two of the same seed, tasks and sizes draw the same samples. With `cut`, means of halves of the samples come too;
    `edges` by task, as in `Resampler`.
    """

    def __init__(
        self,
        by_task: Mapping[str, Any],
        seed: int,
        cut: bool = False,
        edges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        arrays = [np.atleast_2d(np.asarray(points, dtype=np.float64)) for points in by_task.values()]
        self.shape = arrays[0].shape[:-1]
        self.tasks = [
            Resampler(
                points.reshape(int(np.prod(self.shape)), points.shape[-1]),
                np.random.default_rng((seed, number)),
                halves(points.shape[-1], np.random.default_rng((seed, number, 1))) if cut else None,
                (edges or {}).get(task),
            )
            for number, (task, points) in enumerate(zip(by_task, arrays, strict=True))
        ]
        whole = self._shaped(np.stack([task.plain for task in self.tasks], axis=-1)[None])
        self.plain, self.parts = whole[0, 0], whole[1:, 0]
        self.numbers = max(whole.size, *(task.n for task in self.tasks))

    def _shaped(self, means: np.ndarray) -> np.ndarray:
        """[size, parts, rows, tasks] to [parts, size, ..., T, tasks]."""
        return np.moveaxis(means.reshape(*means.shape[:2], *self.shape, means.shape[-1]), 1, 0)

    def draw(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The means as measured, then the next `size` draws, [1 + size, ..., T, tasks]; the same of each half."""
        drawn = self._shaped(np.stack([task.draw(size) for task in self.tasks], axis=-1))
        return np.concatenate([self.plain[None], drawn[0]]), np.concatenate([self.parts[:, None], drawn[1:]], axis=1)


def edges_of(tasks: Collection[str], plan: Plan) -> dict[str, tuple[float, float]]:
    """The two points that an answer can get, of the tasks whose draws need them (`Resampler`): those never learned."""
    return {task: (0.0, 100.0) for task, seen in zip(tasks, plan.seen[-1], strict=True) if not seen}
