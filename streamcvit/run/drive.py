"""The run: chunks are learned in order, every boundary is scored on every seen task, nothing waits for the rest."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.errors import Stopped, UserError
from streamcvit.learning import commit as commits
from streamcvit.learning.epochs import newest_epoch
from streamcvit.monitoring.liverows import Change
from streamcvit.monitoring.probes import PROBES
from streamcvit.monitoring.terminal import LiveView
from streamcvit.run import audits
from streamcvit.run.boundaries import boundary_reports
from streamcvit.run.folder import RunFolder
from streamcvit.run.following import Following
from streamcvit.run.forgetting import Guard
from streamcvit.run.growth import Growth, task_counts
from streamcvit.run.guard import Stop
from streamcvit.run.local import Pool
from streamcvit.run.messages import ChunkReport, Job, Probed, Progress, TaskScores
from streamcvit.run.probes import Prober, keep_until
from streamcvit.run.scores import ZERO
from streamcvit.screen import about

POLL_SECONDS = 0.3
__all__ = ["Driver", "task_counts"]


class Driver:
    """Keeps the learner and the evaluators of a pool busy until every method is learned and scored.

    Args:
        config: the run.
        pool: who does the work.
        folders: where results go, a folder a method.
        view: what a person sees meanwhile.
        stop: whether someone asked the run to stop.
        following: what arrives, where the stream goes on.
    """

    def __init__(
        self,
        config: RunConfig,
        pool: Pool,
        folders: dict[str, RunFolder],
        view: LiveView,
        stop: Stop,
        following: Following | None = None,
    ) -> None:
        self.config, self.pool, self.folders, self.view, self.stop = config, pool, folders, view, stop
        self.left: dict[str, set[int]] = {}  # method -> boundaries that are not scored on every task yet
        self.boundaries: deque[tuple[RunFolder, ChunkReport | None]] = deque()  # learned, to be scored
        self.open: dict[tuple[str, int], set[str]] = {}  # boundary being scored -> tasks not scored yet
        self.jobs: deque[Job] = deque()  # of the boundary being scored
        self.told_idle: set[str] = set()  # methods of which modules without a gradient were named
        self.told_left: set[str] = set()  # tasks with test samples that cannot be used
        self.told_notes: set[str] = set()
        self.pending: dict[Any, Job | None] = {}  # future -> its job (None: a chunk being learned)
        self.growth = Growth(config, folders, view, following)
        self.prober = Prober(config, pool, folders, view.message)
        self.guard = Guard(config, folders, view, stop)

    def run(self) -> None:
        """Until all is done.

        Raises:
            UserError: an actor is lost for good, a shard stays unreadable, or a method that is learned and scored has a
                damaged ledger; the run can be resumed.
            Stopped: someone asked for it; what was learned is committed.
        """
        try:
            self._run()
        except Stopped:
            for folder in self.folders.values():
                if not folder.finished():
                    folder.event("stopped")
            raise
        except UserError as error:
            self._under_way().event("failed", what=str(error))
            raise

    def _run(self) -> None:
        try:
            self._loop(self._chunks_to_learn())
        finally:
            self._note_restarts()

    def _loop(self, chunks: deque[tuple[str, int]]) -> None:
        learning = 0
        while chunks or self.pending or self.jobs or self.boundaries or self.growth.open:
            self._grow(chunks)
            if self.stop.requested:
                self.pool.stop(list(self.pending))
                raise Stopped
            while self._evaluating() < self.pool.evaluators and (job := self._next_job()):
                self.pending[self.pool.evaluate(job)] = job
            while learning and self._evaluating() < self.pool.evaluators and (job := self.prober.next()):
                self.pending[self.pool.evaluate(job)] = job
            while chunks and (learning < self.pool.learn_ahead or not self.pending):
                if not self.guard.may_learn(*chunks[0]):
                    break
                method, chunk = chunks.popleft()
                self.pending[self.pool.learn(method, chunk, *self.guard.given(method))] = None
                learning += 1
            if (self.guard.standing or self.growth.open) and not self.pending:
                time.sleep(POLL_SECONDS)
            for future, result in self.pool.wait(list(self.pending), POLL_SECONDS):
                del self.pending[future]
                if isinstance(result, ChunkReport):
                    learning -= 1
                    if self._fenced(result):
                        again = self.pool.learn(result.method, result.chunk, *self.guard.given(result.method))
                        self.pending[again] = None
                        learning += 1
                    else:
                        with about(method=result.method, actor="learner", step=result.version):
                            self._learned(result)
                elif isinstance(result, Probed):
                    self.prober.done(result)
                else:
                    with about(method=result.job.method, actor="evaluator", step=result.job.version):
                        self._scored(result)
            self._watch()

    def _chunks_to_learn(self) -> deque[tuple[str, int]]:
        """All (method, chunk) that have no commit yet; evaluations that a former life left open are queued first."""
        todo: list[tuple[str, int]] = []
        for name, folder in self.folders.items():
            if folder.finished():
                self.view.progress(name, int(folder.counts.sum()))
                self.view.done(name)
                continue
            folder.event("started")
            zero = bool(folder.to_score(ZERO))
            self.left[name] = set(range(ZERO if zero else 0, folder.n_chunks))
            newest = commits.newest_resumable(folder.path / "commits")
            for what in newest[2] if newest else ():
                folder.event("damaged", what=what)
                self.view.message(f"{name}: {what}")
            # Boundaries behind the commit that the learner goes on from are learned again.
            last = newest[1]["step"] if newest else 0
            keep_until(folder.path / PROBES, last)
            done = {c: r for c, r in boundary_reports(folder.path, name).items() if r.version <= last}
            for report in done.values():
                for what in report.damaged:
                    self.view.message(f"{name}: {what}")
                self._chunk_done(folder, report)
            if done:
                self.view.progress(name, int(folder.counts[: max(done) + 1].sum()))
            if zero:
                self.boundaries.append((folder, None))
            todo += [(name, chunk) for chunk in range(folder.n_chunks) if chunk not in done]
        return deque(todo)

    def _grow(self, chunks: deque[tuple[str, int]]) -> None:
        """Go on with what has arrived: chunks to learn, tasks to score before learning, answers to audit at the end."""
        for folder, new in self.growth.look():
            self.left.setdefault(folder.method, set()).update(new)
            chunks.extend((folder.method, chunk) for chunk in new)
            self._finish_if_done(folder)
            self.pool.folder_changed(str(folder.path))
        for folder, report in self.growth.to_score_again(self.open, self.boundaries):
            self.left[folder.method].add(ZERO if report is None else report.chunk)
            self.boundaries.append((folder, report))

    def _chunk_done(self, folder: RunFolder, report: ChunkReport) -> None:
        folder.chunk_done(report)
        self.growth.learned(report)
        self.guard.learned(folder, report)
        # Many may wait, where learning is faster than scoring: only what scoring needs is kept.
        self.boundaries.append((folder, replace(report, info={}, quarantined=[], damaged=())))

    def _evaluating(self) -> int:
        return sum(job is not None for job in self.pending.values())

    def _next_job(self) -> Job | None:
        while not self.jobs and self.boundaries:
            folder, report = self.boundaries.popleft()
            chunk = ZERO if report is None else report.chunk
            self.jobs.extend(folder.missing(report))
            self.open[folder.method, chunk] = {job.task for job in self.jobs}
            if self._close_if_scored(folder.method, chunk):
                self.guard.scored(folder, chunk)
                self._finish_if_done(folder)
        return self.jobs.popleft() if self.jobs else None

    def _close_if_scored(self, method: str, chunk: int) -> bool:
        if self.open[method, chunk]:
            return False
        del self.open[method, chunk]
        self.left[method].discard(chunk)
        return True

    def _fenced(self, report: ChunkReport) -> bool:
        """Whether a report comes from a learner that a newer one has replaced: its commit need not count."""
        folder = self.folders[report.method]
        newest = newest_epoch(folder.path)
        if report.epoch >= newest:
            return False
        folder.event("fenced", chunk=report.chunk, epoch=report.epoch, newest=newest)
        return True

    def _learned(self, report: ChunkReport) -> None:
        folder = self.folders[report.method]
        self._chunk_done(folder, report)
        if report.progress is not None:
            self._progress(report.progress)
        if (idle := report.info.get("idle")) and report.method not in self.told_idle:
            self.told_idle.add(report.method)
            self.view.message(
                f"{report.method}: no gradient reached {', '.join(idle[:5])}{' ...' if len(idle) > 5 else ''} so far: "
                "modules that the model does not call learn nothing (exclude_modules leaves them out)"
            )
        self.view.chunk_done(report.method, report.chunk, report.info, report.quarantined)
        self.pool.folder_changed(str(folder.path))

    def _scored(self, found: TaskScores) -> None:
        job = found.job
        folder = self.folders[job.method]
        folder.add(found)
        if found.left_out and job.task not in self.told_left:
            self.told_left.add(job.task)
            name, reason = next(iter(found.left_out.items()))
            self.view.message(f"{job.task}: {len(found.left_out)} test samples left out, the first: {name}: {reason}")
        for what in found.notes:
            if what not in self.told_notes:
                self.told_notes.add(what)
                self.view.message(what)
        self.open[job.method, job.chunk].discard(job.task)
        if not self._close_if_scored(job.method, job.chunk):
            return
        folder.write_scores(always=False)
        self._show_scores(folder, job.chunk)
        self.guard.scored(folder, job.chunk)
        self._finish_if_done(folder)
        self.pool.folder_changed(str(folder.path))

    def _show_scores(self, folder: RunFolder, chunk: int) -> None:
        scores = folder.scores
        points = scores.means(chunk)
        counted = [value for task, value in points.items() if task in scores.in_average]
        moved = {task: Change(gap.estimate.value, gap.decided) for task, gap in scores.changes(chunk).items()}
        doubtful = [task for task, gap in scores.losses(chunk).items() if not gap.decided]
        ap = float(np.mean(counted)) if counted else None
        self.view.scores(folder.method, chunk, points, folder.forgetting, moved, doubtful, ap)

    def _finish_if_done(self, folder: RunFolder) -> None:
        """Mark a run whose last boundary, and every one before it, is scored."""
        if not self.left[folder.method] and not self.growth.awaits(folder) and not folder.finished():
            folder.write_scores()
            folder.check_ledger()
            folder.finish()
            self.view.done(folder.method)
            if folder.audit:
                self.view.message(f"{folder.method}: {audits.line(folder.audit)}")

    def _watch(self) -> None:
        """Pass the learner's newest word on to the person watching, and note restarts."""
        progress = self.pool.latest()
        if progress is not None:
            self._progress(progress)
        self._note_restarts()
        self.note_faults()

    def note_faults(self) -> None:
        """Note and say, once, what went wrong on the way of the numbers to those who watch."""
        for method, what in self.pool.faults():
            self.folders[method].event("note", what=what)
            if what not in self.told_notes:
                self.told_notes.add(what)
                with about(method=method, actor="monitor"):
                    self.view.message(what)

    def _progress(self, word: Progress) -> None:
        with about(method=word.run, actor="learner", step=word.step):
            self.view.progress(word.run, word.cursor, word.loss, word.samples_per_second, word.skipped, word.step)

    def _under_way(self) -> RunFolder:
        """The folder of the first method that is not finished, or of the last."""
        folders = list(self.folders.values())
        return next((folder for folder in folders if not folder.finished()), folders[-1])

    def _note_restarts(self) -> None:
        """In the folder of the method that is under way."""
        for restart in self.pool.restarts():
            folder = self._under_way()
            folder.event("restart", actor=restart.actor, cause=restart.cause, detail=restart.detail)
            with about(method=folder.method, actor=restart.actor):
                self.view.message(f"{restart.actor} is replaced ({restart.cause})")
            self.pool.folder_changed(str(folder.path))
