"""The pool that a driver works with, as a protocol, and the one that is this process."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from streamcvit.config import RunConfig
from streamcvit.monitoring import traces
from streamcvit.monitoring.notify import Teller
from streamcvit.monitoring.store import RunStore
from streamcvit.run.evaluating import EvaluatorWorker
from streamcvit.run.feeding import Feeder
from streamcvit.run.guard import Stop
from streamcvit.run.loading import local_feed, traced
from streamcvit.run.messages import ChunkReport, Job, Progress, Restart, TaskScores
from streamcvit.run.workers import LearnerWorker


class Pool(Protocol):
    """Starts work and says when it is done."""

    evaluators: int
    learn_ahead: int
    base_digest: str
    url: str

    def learn(self, method: str, chunk: int) -> Hashable: ...

    def evaluate(self, job: Job) -> Hashable: ...

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, ChunkReport | TaskScores]]: ...

    def stop(self, pending: list[Any]) -> None: ...

    def latest(self) -> Progress | None: ...

    def restarts(self) -> list[Restart]: ...

    def folder_changed(self, folder: str) -> None: ...

    def faults(self) -> list[tuple[str, str]]: ...

    def farewell(self) -> None: ...


@dataclass(frozen=True, eq=False)
class _Done:
    value: ChunkReport | TaskScores


class LocalPool:
    """Everything in this process, at once: a plain loop without Ray."""

    evaluators = 1  # a job is done when it is given
    learn_ahead = 0  # learns when nothing else is to be done
    feeder: Feeder | None = None
    url = ""

    def __init__(self, config: RunConfig, stream: str, start: int, stop: Stop, progress: Any = lambda _: None) -> None:
        self.signals = stop
        traced(config, "local")
        feed = local_feed(config, stream)
        if config.monitor.sinks:
            self.feeder = Feeder(config)

        def tell(word: Progress) -> None:
            progress(word)
            if self.feeder is not None:
                self.feeder.word(copy.deepcopy(word))  # it holds counts that go on changing

        self.learner = LearnerWorker(config, stream, feed, tell, lambda: stop.requested, (start, 0))
        self.evaluator = EvaluatorWorker(config, stream)
        self.base_digest = self.learner.base.digest
        self.store = RunStore(config.folder(method) for method in config.methods)
        self.teller = Teller(self.store, config.monitor.notify) if config.monitor.notify else None

    def learn(self, method: str, chunk: int) -> Hashable:
        return _Done(self.learner.learn_chunk(method, chunk))

    def evaluate(self, job: Job) -> Hashable:
        with self.signals.patience(False):  # nothing is written here: a stop need not wait
            return _Done(self.evaluator.evaluate(job))

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, ChunkReport | TaskScores]]:
        return [(done, done.value) for done in pending]

    def stop(self, pending: list[Any]) -> None:
        pass  # between two calls nothing runs

    def latest(self) -> Progress | None:
        return None

    def restarts(self) -> list[Restart]:
        return []

    def folder_changed(self, folder: str) -> None:
        self.store.changed(Path(folder))
        if self.feeder is not None:
            self.feeder.changed(Path(folder))

    def faults(self) -> list[tuple[str, str]]:
        return self.feeder.faults if self.feeder is not None else []

    def farewell(self) -> None:
        if self.teller is not None:
            self.teller.close()
        if self.feeder is not None:
            self.feeder.close()
        traces.flush()
