"""Who does the work: the actors of a Ray cluster, or this process. The driver cannot tell them apart."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from streamcvit.cluster.guard import Stop
from streamcvit.cluster.messages import ChunkReport, Job, Progress, TaskScores
from streamcvit.cluster.workers import EvaluatorWorker, LearnerWorker, local_feed
from streamcvit.config import RunConfig
from streamcvit.errors import UserError

STOP_SECONDS = 120  # that a stop waits for the learner's batch and commit; then the commit before is the newest
KEPT_SNAPSHOTS = 4  # newest ones held in the object store; older ones are read from their commits


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

    def latest(self) -> tuple[Progress | None, dict[str, int]]: ...

    def folder_changed(self, folder: str) -> None: ...


@dataclass(frozen=True, eq=False)
class _Done:
    value: ChunkReport | TaskScores


class LocalPool:
    """Everything in this process, at once: a plain loop without Ray."""

    evaluators = 10**6  # a job is done when it is given
    learn_ahead = 1
    url = ""

    def __init__(self, config: RunConfig, stream: str, stop: Stop, progress: Any = lambda _: None) -> None:
        self.signals = stop
        self.learner = LearnerWorker(config, stream, local_feed(config, stream), progress, lambda: stop.requested)
        self.evaluator = EvaluatorWorker(config, stream)
        self.base_digest = self.learner.base.digest

    def learn(self, method: str, chunk: int) -> Hashable:
        return _Done(self.learner.learn_chunk(method, chunk))

    def evaluate(self, job: Job) -> Hashable:
        with self.signals.patience(False):  # nothing is written here: a stop need not wait
            return _Done(self.evaluator.evaluate(job))

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, ChunkReport | TaskScores]]:
        return [(done, done.value) for done in pending]

    def stop(self, pending: list[Any]) -> None:
        pass  # between two calls nothing runs

    def latest(self) -> tuple[Progress | None, dict[str, int]]:
        return None, {}

    def folder_changed(self, folder: str) -> None:
        pass


class RayPool:
    """One set of actors for all methods of a run.

    Args:
        ray: the connected module.
        config: the run.
        stream: folder of shards and index, as every node sees it.

    Raises:
        UserError: an actor cannot start (missing model, busy port ...).
    """

    learn_ahead = 2  # the learner finds its next chunk waiting: it never waits for the driver

    def __init__(self, ray: Any, config: RunConfig, stream: str) -> None:
        from streamcvit.cluster import actors

        self.ray, self.evaluators = ray, config.cluster.evaluators
        restarts = config.cluster.restarts

        def start(cls: type, name: str, *args: Any, cpus: float, **options: Any) -> Any:
            remote = ray.remote(num_cpus=cpus, max_restarts=restarts, max_task_retries=-1, **options)(cls)
            return remote.options(name=name).remote(*args)

        gpus = _gpus(ray, config)
        self.monitor = start(actors.MonitorActor, actors.MONITOR, config, cpus=0.5)
        self.url = self._get(self.monitor.ready.remote())
        self.ingest = [
            start(actors.IngestActor, actors.ingest_name(i), config, stream, i, cpus=0.5)
            for i in range(config.cluster.ingest_actors)
        ]
        self.learner = start(actors.LearnerActor, "learner", config, stream, cpus=1, num_gpus=gpus)
        self.workers = [
            start(actors.EvaluatorActor, f"evaluator-{i}", config, stream, i, cpus=1, num_gpus=gpus)
            for i in range(self.evaluators)
        ]
        self.busy: dict[Any, Any] = {}
        self.snapshots: dict[tuple[str, str], Any] = {}
        self.base_digest = self._get(self.learner.ready.remote())
        for actor in [*self.ingest, *self.workers]:
            self._get(actor.ready.remote())

    def learn(self, method: str, chunk: int) -> Hashable:
        return self.learner.learn_chunk.remote(method, chunk)

    def evaluate(self, job: Job) -> Hashable:
        taken = set(self.busy.values())
        number = next(i for i in range(self.evaluators) if i not in taken)
        future = self.workers[number].evaluate.remote(job, self.snapshots.get((job.method, job.digest)))
        self.busy[future] = number
        return future

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, ChunkReport | TaskScores]]:
        done, _ = self.ray.wait(pending, num_returns=len(pending), timeout=seconds)
        results: list[tuple[Any, ChunkReport | TaskScores]] = []
        for future in done:
            value = self._get(future)
            self.busy.pop(future, None)
            if isinstance(value, tuple):
                value, snapshot = value
                if snapshot is not None:
                    self.snapshots[value.method, value.digest] = snapshot
                    for key in list(self.snapshots)[:-KEPT_SNAPSHOTS]:
                        del self.snapshots[key]
            results.append((future, value))
        return results

    def stop(self, pending: list[Any]) -> None:
        """Have the learner commit after the batch it is at, and wait for that; evaluations are asked again later."""
        learning = [future for future in pending if future not in self.busy]
        for future in reversed(learning):  # the waiting one first, so that it does not begin
            self.ray.cancel(future, recursive=False)
        if learning:
            self.ray.wait(learning, num_returns=len(learning), timeout=STOP_SECONDS)

    def latest(self) -> tuple[Progress | None, dict[str, int]]:
        return self._get(self.monitor.latest.remote())

    def folder_changed(self, folder: str) -> None:
        self.monitor.reload.remote(folder)

    def _get(self, reference: Any) -> Any:
        """The result; an actor that died for good is a clear error, a user's mistake in an actor is the user's."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayActorError as error:
            reason = " ".join(str(getattr(error, "error_msg", error)).split())[:300]
            raise UserError(
                f"an actor died and could not be restarted: {reason}", fix="Continue with --resume"
            ) from None
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, UserError) else error from None


def _gpus(ray: Any, config: RunConfig) -> float:
    """GPU share of each actor that holds the model: whole ones where there are enough, else the one is shared."""
    there = ray.cluster_resources().get("GPU", 0)
    if config.model.device == "cpu" or not there:
        return 0
    return 1 if there >= 1 + config.cluster.evaluators else there / (1 + config.cluster.evaluators)
