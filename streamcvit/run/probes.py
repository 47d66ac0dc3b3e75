"""Scores between chunk boundaries: which task is probed when, with which weights, and the rows that come of it.

A probe scores one task on a few of its test samples, with the weights that the learner held between two steps. Probes
take a share of the evaluators' time and only time that no boundary wants; they are rows of a file of their own and
never part of the matrix, so that nothing of a run's results depends on when they were taken.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.evaluation.interval import score_interval
from streamcvit.learning.durable import write_text
from streamcvit.monitoring.probes import PROBES
from streamcvit.run.folder import RunFolder, now
from streamcvit.run.loading import schedule_of
from streamcvit.run.local import Pool
from streamcvit.run.messages import Job, Probed, TaskScores, Weights
from streamcvit.run.scores import by_family

LIVE = "live"
"""Kind of a probe's rows."""
FRESH_SECONDS = 2.0
"""Weights older than that are not probed: newer ones are asked for."""


class Prober:
    """Probes of the method that is being learned, one task after another, those first whose last probe is oldest.

    The evaluators' share of time is kept by lanes: one lane holds one probe at a time, and rests after it so long that
    its work and rest are in proportion.

    Args:
        config: the run.
        pool: who does the work; where it offers no probing, there is none.
        folders: where rows go, a folder a method.
        say: told, once, why there will be no more probes.
        clock: seconds, steady; only a test needs another.
    """

    def __init__(
        self,
        config: RunConfig,
        pool: Pool,
        folders: Mapping[str, RunFolder],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        how = config.evaluation
        self.config, self.probing, self.folders, self.say, self.clock = config, pool.probing, folders, say, clock
        evaluators = how.probe_share * pool.evaluators if how.probe_samples and pool.probing else 0.0
        self.lanes = [-math.inf] * math.ceil(evaluators)  # when each may begin its next
        self.share = evaluators / len(self.lanes) if self.lanes else 0.0
        self.flying: dict[Job, tuple[int, int, float]] = {}  # lane, cursor, when it began
        self.first: dict[str, tuple[StreamIndex, dict[str, int]]] = {}  # method -> task -> cursor of its first sample
        self.turns: dict[tuple[str, str], int] = {}  # (method, task) -> number of its last probe
        self.versions: dict[tuple[str, str], int] = {}

    def next(self) -> Job | None:
        """What an evaluator with nothing else to do shall probe; None where that is nothing yet."""
        if self.probing is None or not self.lanes:
            return None
        lane = min(range(len(self.lanes)), key=self.lanes.__getitem__)
        if self.lanes[lane] > self.clock() or (weights := self.probing.newest(FRESH_SECONDS)) is None:
            return None
        method, version = weights.method, weights.version
        open_ = [task for task in self._seen(weights) if self.versions.get((method, task), -1) != version]
        if not open_:
            return None
        task = min(open_, key=lambda task: self.turns.get((method, task), -1))
        samples = self.config.evaluation.probe_samples
        job = Job(method, weights.chunk, task, version, weights.digest, "", probe=samples)
        self.turns[method, task], self.versions[method, task] = max(self.turns.values(), default=0) + 1, version
        self.flying[job], self.lanes[lane] = (lane, weights.cursor, self.clock()), math.inf
        return job

    def done(self, found: Probed) -> None:
        """Keep what came of a probe; after a fault there are no more."""
        lane, cursor, began = self.flying.pop(found.job)
        if found.fault and self.lanes:
            self.lanes = []
            self.say(f"no more probes between chunks: {found.fault}")
        if self.lanes:
            self.lanes[lane] = began + (self.clock() - began) / self.share
        if found.scores is None or self.probing is None:
            return
        folder = self.folders[found.job.method]
        rows = rows_of(found.scores, cursor, folder.index)
        append(folder.path / PROBES, rows)
        self.probing.probed(found.job.method, rows)

    def _seen(self, weights: Weights) -> Collection[str]:
        """Tasks of which the stream has brought a sample by then."""
        method = weights.method
        folder = self.folders[method]
        if method not in self.first or self.first[method][0] is not folder.index:
            order = self.config.methods[method].order
            task_of = folder.index.task_of[schedule_of(self.config, folder.index, order).order]
            here = {task: task_of == task for task in folder.tasks}
            firsts = {task: int(np.argmax(places)) for task, places in here.items() if places.any()}
            self.first[method] = folder.index, firsts
        return [task for task, first in self.first[method][1].items() if first < weights.cursor]


def rows_of(found: TaskScores, cursor: int, index: StreamIndex) -> list[dict[str, Any]]:
    """A probe as rows: the columns of `scores.parquet`, `cursor` (samples behind the weights) and `time`."""
    job, spec = found.job, index.tasks[found.job.task]
    families, differ = by_family((spec.scorer, found.points), (spec.strcvit, found.published))
    rows = []
    for family, (metric, points) in families.items():
        mean, low, high = score_interval(points)[0]
        rows.append(
            {
                "version": job.version,
                "digest": job.digest,
                "chunk": job.chunk,
                "task": job.task,
                "kind": LIVE,
                "metric": metric,
                "family": family,
                "score": mean,
                "following": float(np.mean(found.follows)),
                "n": len(points),
                "low": low,
                "high": high,
                "seconds": found.seconds,
                "disagreements": differ,
                "cursor": cursor,
                "time": now(),
            }
        )
    return rows


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows behind those that are there, in one piece."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def keep_until(path: Path, version: int) -> None:
    """Drop the probes of steps that a run which goes on takes again, and a last line that was not written whole."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _version(line) <= version]
    if kept != lines:
        write_text(path, "".join(kept))


def _version(line: str) -> float:
    """Of a row; infinite where it is none."""
    try:
        return float(json.loads(line)["version"])
    except (ValueError, KeyError, TypeError):
        return math.inf
