"""The pool that a driver works with, as a protocol, and the one that is this process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from streamcvit.config import RunConfig
from streamcvit.monitoring import traces
from streamcvit.monitoring.notify import Teller
from streamcvit.monitoring.store import RunStore
from streamcvit.run.evaluating import EvaluatorWorker
from streamcvit.run.feeding import Feeder
from streamcvit.run.guard import Stop
from streamcvit.run.loading import local_feed, traced
from streamcvit.run.messages import ChunkReport, Job, Order, Probed, Progress, Restart, TaskScores, Weights
from streamcvit.run.workers import LearnerWorker

Answer = ChunkReport | TaskScores | Probed


class Probing(Protocol):
    """What a pool offers whose evaluators can work beside the learner; a probe is a job of theirs."""

    def newest(self, seconds: float) -> Weights | None: ...

    def probed(self, method: str, rows: list[dict[str, Any]]) -> None: ...


class Pool(Protocol):
    """Starts work and says when it is done."""

    evaluators: int
    learn_ahead: int
    probing: Probing | None
    base_digest: str
    url: str

    def learn(self, method: str, chunk: int, orders: Mapping[int, Order] | None = None) -> Hashable: ...

    def evaluate(self, job: Job) -> Hashable: ...

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, Answer]]: ...

    def stop(self, pending: list[Any]) -> None: ...

    def latest(self) -> Progress | None: ...

    def restarts(self) -> list[Restart]: ...

    def folder_changed(self, folder: str) -> None: ...

    def faults(self) -> list[tuple[str, str]]: ...

    def farewell(self) -> None: ...


@dataclass(frozen=True)
class Watcher:
    """Who looks on at a run in this process, and may stop it.

    Attributes:
        stop: asks for its end.
        progress: told the learner's newest word.
        loaded: told of a base model, each time one is loaded.
    """

    stop: Stop
    progress: Callable[[Progress], None]
    loaded: Callable[[nn.Module], None]


@dataclass(frozen=True, eq=False)
class _Done:
    value: ChunkReport | TaskScores


class LocalPool:
    """Everything in this process, at once: a plain loop without Ray."""

    evaluators = 1  # a job is done when it is given
    learn_ahead = 0  # learns when nothing else is to be done
    probing: Probing | None = None  # a probe would take its time from learning
    feeder: Feeder | None = None
    url = ""

    def __init__(
        self,
        config: RunConfig,
        stream: str,
        start: int,
        stop: Stop,
        progress: Callable[[Progress], None] = lambda _: None,
        loaded: Callable[[nn.Module], None] = lambda _: None,
    ) -> None:
        self.signals = stop
        traced(config, "local")
        feed = local_feed(config, stream)
        if config.monitor.sinks:
            self.feeder = Feeder(config)

        def tell(word: Progress) -> None:
            progress(word)
            if self.feeder is not None:
                self.feeder.word(copy.deepcopy(word))  # it holds counts that go on changing

        self.learner = LearnerWorker(config, stream, feed, tell, lambda: stop.requested, (start, 0), loaded)
        self.evaluator = EvaluatorWorker(config, stream, loaded)
        self.base_digest = self.learner.base.digest
        self.store = RunStore(config.folder(method) for method in config.methods)
        self.teller = Teller(self.store, config.folder(), config.monitor.notify)

    def learn(self, method: str, chunk: int, orders: Mapping[int, Order] | None = None) -> Hashable:
        return _Done(self.learner.learn_chunk(method, chunk, orders))

    def evaluate(self, job: Job) -> Hashable:
        with self.signals.patience(False):  # nothing is written here: a stop need not wait
            return _Done(self.evaluator.evaluate(job))

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, Answer]]:
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
        self.close()
        if self.feeder is not None:
            self.feeder.close()
        traces.flush()

    def close(self) -> None:
        """Tell alerts no more."""
        self.teller.close()
