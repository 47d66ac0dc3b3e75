"""The driver's part of a stream that goes on: run folders that grow with it, and what there is to do for that."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.learning import Schedule
from streamcvit.monitoring.terminal import LiveView
from streamcvit.run.folder import RunFolder
from streamcvit.run.following import Following
from streamcvit.run.messages import ChunkReport
from streamcvit.run.scores import ZERO

SAID = 20
"""Arrivals that were set aside which a person is told of one by one; events and metrics tell of all."""


def task_counts(config: RunConfig, index: StreamIndex, method: str) -> np.ndarray:
    """[T, tasks] samples of each task in each chunk as a method reads the stream; T is 0 where it learns nothing."""
    settings = config.methods[method]
    tasks = list(index.tasks)
    if settings.adapter == "none":
        return np.zeros((0, len(tasks)), int)
    if not len(index):
        raise UserError(
            "the stream has no samples to learn", where=f"methods.{method}", fix="Give it some, or run zero-shot alone"
        )
    schedule = Schedule.of(index, config.learner.batch_size, settings.order, config.seed)
    counts = np.zeros((schedule.n_chunks, len(tasks)), int)
    chunk_of = np.searchsorted(schedule.stops, np.arange(len(schedule)), side="right")
    number = {task: i for i, task in enumerate(tasks)}
    column = np.array([number[task] for task in index.task_of[schedule.order]], int)
    np.add.at(counts, (chunk_of, column), 1)
    return counts


class Growth:
    """Run folders that grow.

    Args:
        config: the run.
        folders: of its methods.
        view: what a person sees meanwhile.
        following: what arrives; None: the stream is whole.
    """

    def __init__(
        self, config: RunConfig, folders: Mapping[str, RunFolder], view: LiveView, following: Following | None
    ) -> None:
        self.config, self.folders, self.view, self.following = config, folders, view, following
        self.index = next((folder.index for folder in folders.values()), None)
        self.open = self.index is not None and self.index.follows
        """Whether chunks, or the word that none follows, may still come."""
        self.again: dict[tuple[str, int], ChunkReport | None] = {}  # boundaries of which more is to be scored
        self.newest: dict[str, ChunkReport] = {}
        self.said = 0
        if following is not None:
            for event in following.past:
                self._note(event)
            for folder in folders.values():
                if folder.n_chunks and folder.finished():  # an earlier life has learned it
                    following.learned(folder.method, folder.n_chunks - 1)

    def learned(self, report: ChunkReport) -> None:
        """Hear of a learned chunk."""
        if self.following is not None:
            self.following.learned(report.method, report.chunk)
            self.newest[report.method] = replace(report, info={}, quarantined=[], damaged=())

    def awaits(self, folder: RunFolder) -> bool:
        """Whether a method with nothing left to do is not done."""
        return folder.goes_on or any(method == folder.method for method, _ in self.again)

    def look(self) -> Iterator[tuple[RunFolder, list[int]]]:
        """The folders of methods for which something arrived, with the numbers of chunks that are new to them."""
        following = self.following
        if following is None:
            return
        following.step()
        news, following.news = following.news, []
        for event in news:
            self._note(event)
            self.said += 1
            if self.said <= SAID:
                self.view.message(f"set aside: {event['what']} ({event['reason']}): {event['why']}")
        index = following.index()
        if index is self.index:
            if following.changed:
                following.changed = False
                yield from ((folder, []) for folder in self.folders.values())
            return
        self.index, following.changed = index, False
        if not index.follows:
            self.open = False
            self.view.message(f"the stream has ended: {len(index)} samples in {index.n_chunks} chunks")
        for name, folder in self.folders.items():
            before = folder.n_chunks
            folder.grow(index, task_counts(self.config, index, name))
            self.view.grow(name, len(index), max(1, folder.n_chunks))
            if folder.missing(None):
                self.again[name, ZERO] = None
            last = self.newest.get(name)
            if last is not None and last.chunk == folder.n_chunks - 1 and not index.follows and folder.missing(last):
                self.again[name, last.chunk] = last
            yield folder, list(range(before, folder.n_chunks))

    def to_score_again(
        self, scoring: Collection[tuple[str, int]], queued: Collection[tuple[RunFolder, ChunkReport | None]]
    ) -> Iterator[tuple[RunFolder, ChunkReport | None]]:
        """Boundaries that have been queued before, and of which more is to be scored since.

        Args:
            scoring: method and chunk of those that are being scored: they have to be done first.
            queued: those that wait; what is to be scored of them is looked up when it is their turn.
        """
        waiting = {(folder.method, ZERO if report is None else report.chunk) for folder, report in queued}
        for (method, chunk), report in list(self.again.items()):
            if (method, chunk) in scoring:
                continue
            del self.again[method, chunk]
            if (method, chunk) not in waiting:
                yield self.folders[method], report

    def _note(self, event: Mapping[str, str]) -> None:
        for folder in self.folders.values():
            folder.event("set_aside", **event)
