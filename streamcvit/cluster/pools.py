"""The actors of a Ray cluster as a pool: the driver cannot tell them from this process (`streamcvit.run.local`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from streamcvit.cluster.head import Head
from streamcvit.cluster.mail import Mail
from streamcvit.cluster.placing import gpu_shares
from streamcvit.cluster.supervise import Call, Post, Supervisor
from streamcvit.config import RunConfig
from streamcvit.run.folder import build_labels
from streamcvit.run.local import Answer, Probing
from streamcvit.run.messages import ChunkReport, Job, Order, Progress, Restart

STOP_SECONDS = 120  # that a stop waits for the learner's batch and commit; then the commit before is the newest
FAREWELL_SECONDS = 120
FLUSH_SECONDS = 10
KEPT_SNAPSHOTS = 4  # newest ones held in the object store; older ones are read from their commits


class RayPool:
    """One set of actors for all methods of a run, kept alive; they start at once, and may be used when `ready`.

    Args:
        ray: the connected module.
        config: the run.
        stream: folder of shards and index, as every node sees it.
        start: which start of the run this is, from 1.
        head: told what there must be, asked whether it is there.
        token: what a reader of the metrics must show; empty: nothing.
    """

    url, base_digest = "", ""
    probing: Probing | None
    learn_ahead = 2  # the learner finds its next chunk waiting: it never waits for the driver

    def __init__(self, ray: Any, config: RunConfig, stream: str, start: int, head: Head, token: str = "") -> None:
        from streamcvit.cluster import actors
        from streamcvit.cluster.actor import MAILBOX, PULSE
        from streamcvit.cluster.monitor import MONITOR, MonitorActor
        from streamcvit.cluster.ranks import RankActor, rank_name

        self.evaluators = config.cluster.evaluators
        self.supervisor = Supervisor(ray, config.cluster)
        self.head = head
        head.watch("the cluster's head", ray.get_runtime_context().gcs_address)
        self.private = config.cluster.address == "local"
        if self.private:  # a cluster that loses a node may get another
            (node,) = ray.nodes()
            head.watch("Ray's only node", f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
        self.busy: dict[Call, int] = {}
        self.snapshots: dict[tuple[str, str], Any] = {}
        self.port, self.traced = config.monitor.port, bool(config.monitor.traces)
        self.told: Progress | None = None
        self.told_faults: list[tuple[str, str]] = []
        self.done: dict[str, int] = {}  # method -> the chunk whose last word came with its report
        (own_gpus, gpus), labels = _gpus(ray, config), build_labels()
        # Beside the driver, so that the address it prints is this machine's.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )

        def post(name: str, cls: type, arguments: Callable[[int], tuple[Any, ...]], **options: Any) -> Post:
            # Ray's head would keep a record of every call, the questions for a pulse included.
            options |= {"enable_task_events": False, "concurrency_groups": {PULSE: 1, MAILBOX: 1}}
            options |= {"max_restarts": 0, "max_task_retries": 0}
            actor = ray.remote(**options)(cls)
            return self.supervisor.start(name, lambda lives: actor.options(name=name).remote(config, *arguments(lives)))

        readers = [actors.ingest_name(i) for i in range(config.cluster.ingest_actors)]
        ranks = {rank_name(rank): rank for rank in range(1, config.cluster.learners)}
        scorers = [f"evaluator-{i}" for i in range(self.evaluators)]
        self.monitor = post(
            MONITOR,
            MonitorActor,
            lambda lives: (self.port, token, lives > 0, labels, (MONITOR, "learner", *ranks, *readers, *scorers)),
            num_cpus=0,
            scheduling_strategy=here,
        )
        self.learner = post(
            "learner", actors.LearnerActor, lambda lives: (stream, (start, lives)), num_cpus=1, num_gpus=own_gpus
        )
        self.ranks = [
            post(name, RankActor, lambda _, rank=rank: (stream, rank), num_cpus=1, num_gpus=own_gpus)  # type: ignore[misc]
            for name, rank in ranks.items()
        ]
        ingest = [post(name, actors.IngestActor, lambda _: (stream,), num_cpus=0.5) for name in readers]
        self.workers = [
            post(name, actors.EvaluatorActor, lambda _: (stream,), num_cpus=1, num_gpus=gpus) for name in scorers
        ]
        self.posts = [self.monitor, self.learner, *self.ranks, *ingest, *self.workers]
        self.probing = self.mail = Mail(self.supervisor, self.learner, self._to_monitor)

    def ready(self) -> RayPool:
        """This pool, once the stream is there and every actor has read it and its model.

        Raises:
            UserError: an actor cannot start (missing model, busy port ...).
        """
        ready = self.supervisor.result([self.supervisor.call(post, "ready") for post in self.posts])
        (self.url, self.port), self.base_digest = ready[:2]
        for rank in self.ranks:
            self.supervisor.call(rank, "follow")  # which does not end before the run
        return self

    def learn(self, method: str, chunk: int, orders: Mapping[int, Order] | None = None) -> Hashable:
        return self.supervisor.call(self.learner, "learn_chunk", method, chunk, orders)

    def evaluate(self, job: Job) -> Hashable:
        taken = set(self.busy.values())
        number = next(i for i in range(self.evaluators) if i not in taken)
        if job.probe:
            call = self.supervisor.call(self.workers[number], "probe", job, self.mail.snapshot(job))
        else:
            snapshot = self.snapshots.get((job.method, job.digest))
            call = self.supervisor.call(self.workers[number], "evaluate", job, snapshot)
        self.busy[call] = number
        return call

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, Answer]]:
        self.head.check()
        results: list[tuple[Any, Answer]] = []
        answers = self.supervisor.wait(seconds)
        if self.private and self.supervisor.restarts and not self.supervisor.ray.nodes()[0]["Alive"]:
            self.head.give_up("Ray has given up its only node", "cluster.address")  # a stopped one: its port answers
        for call, value in answers:
            if self.mail.take(call, value):
                continue
            self.busy.pop(call, None)
            if isinstance(value, tuple):
                value, snapshot = value
                self._last_word(value)
                if snapshot is not None:
                    self.snapshots[value.method, value.digest] = snapshot
                    for key in list(self.snapshots)[:-KEPT_SNAPSHOTS]:
                        del self.snapshots[key]
            results.append((call, value))
        return results

    def stop(self, pending: list[Any]) -> None:
        """Have the learner commit after the batch it is at, and wait for that; evaluations are asked again later."""
        ray = self.supervisor.ray
        learning = [call.reference for call in pending if call not in self.busy and call.reference is not None]
        for reference in reversed(learning):  # the waiting one first, so that it does not begin
            ray.cancel(reference, recursive=False)
        if learning:
            ray.wait(learning, num_returns=len(learning), timeout=STOP_SECONDS)

    def latest(self) -> Progress | None:
        pulse = self.learner.last
        if pulse is None or pulse.word is None:
            return None
        if pulse.word.chunk <= self.done.get(pulse.word.run, -1):  # older than the chunk's report
            return None
        if pulse.word is not self.told:
            self.told = pulse.word
            self._to_monitor("progress", pulse.word)
        return pulse.word

    def _last_word(self, report: ChunkReport) -> None:
        """What a pulse may have been too slow to hear."""
        self.done[report.method] = max(report.chunk, self.done.get(report.method, -1))
        if report.progress is not None:
            self._to_monitor("progress", report.progress)

    def restarts(self) -> list[Restart]:
        found, self.supervisor.restarts = self.supervisor.restarts, []
        return found

    def folder_changed(self, folder: str) -> None:
        self._to_monitor("reload", folder)

    def faults(self) -> list[tuple[str, str]]:
        pulse = self.monitor.last
        return self.told_faults or (list(pulse.word or ()) if pulse is not None else [])

    def farewell(self) -> None:
        """Let whoever watches see the end of the run; a monitor that dies meanwhile is not replaced."""
        if self.traced:
            asked = [post.actor.flush.remote() for post in self.posts if post.actor is not None]
            self.supervisor.ray.wait(asked, num_returns=len(asked), timeout=FLUSH_SECONDS)
        if self.monitor.actor is not None:
            last = self.monitor.actor.farewell.remote()
            if self.supervisor.ray.wait([last], timeout=FAREWELL_SECONDS)[0]:
                with contextlib.suppress(self.supervisor.ray.exceptions.RayError):
                    self.told_faults = self.supervisor.ray.get(last)

    def _to_monitor(self, method: str, *values: Any) -> None:
        """Say something that is not waited for; a monitor that is being replaced reads the folders when it starts."""
        if self.monitor.actor is not None:
            getattr(self.monitor.actor, method).remote(*values)


def _gpus(ray: Any, config: RunConfig) -> tuple[float, float]:
    """GPU share of each learner and of each evaluator."""
    there = 0 if config.model.device == "cpu" else ray.cluster_resources().get("GPU", 0)
    return gpu_shares(there, config.cluster.learners, config.cluster.evaluators)
