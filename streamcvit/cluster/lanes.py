"""Several runs side by side in one Ray: each actor does whole runs, one after another, in its own process."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import ray as _ray

from streamcvit.cluster.actor import PULSE, Actor, work
from streamcvit.cluster.actors import count_forwards
from streamcvit.cluster.head import Head
from streamcvit.cluster.session import ACTOR_MIB, STORE_MIB
from streamcvit.cluster.supervise import Call, Post, Supervisor
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.run.guard import Stop
from streamcvit.run.local import Watcher
from streamcvit.run.messages import Outcome, Progress

POLL_SECONDS = 0.5

Work = Callable[[RunConfig, Watcher], Outcome]
"""Does a whole run in the calling process, from where its folder stands; asked twice, it is done once."""


class LaneActor(Actor):
    """Does runs whole, without further actors; the libraries are loaded once for all of them.

    Args:
        config: of the runs' cluster.
        do: what does a run.
    """

    def __init__(self, config: RunConfig, do: Work) -> None:
        super().__init__(config)
        self.do, self.stop = do, Stop()

    @work
    def ready(self) -> int:
        return os.getpid()

    @work
    def run(self, config: RunConfig) -> Outcome:
        """The run, to its end or to where it was stopped."""
        self.word = None
        return self.do(config, Watcher(self.stop, self.tell, lambda model: count_forwards(model, self.move)))

    def tell(self, progress: Progress) -> None:
        """Take the learner's newest word, for the pulse."""
        self.word = progress
        self.move()

    @_ray.method(concurrency_group=PULSE)
    def halt(self, number: int) -> None:
        """Have the run stop in good order, as a signal of that number would."""
        self.stop.ask(number)


def lanes_for(ray: Any, config: RunConfig, wanted: int, base_bytes: int) -> tuple[int, float]:
    """How many runs go side by side, at most `wanted`, and how many GPUs each has.

    A run holds the base twice, for learning and for scoring.

    Raises:
        UserError: there is no room for a single one.
    """
    there, threads = ray.cluster_resources(), config.learner.threads
    gpus = 0 if config.model.device == "cpu" else int(there.get("GPU", 0))
    cores = int(there.get("CPU", 1)) if config.cluster.address != "local" else os.cpu_count() or 1
    fit = max(1, gpus or cores // threads)
    if config.cluster.address == "local":
        need = ACTOR_MIB + (0 if gpus else 2 * base_bytes // 2**20)
        free = psutil.virtual_memory().available // 2**20 - STORE_MIB
        if free < need:
            fix = "Close programs, or choose a smaller model"
            raise UserError(f"too little memory: a run needs about {need} MiB, {free} MiB are free", fix=fix)
        fit = min(fit, free // need)
    return min(wanted, config.cluster.side_by_side or fit), float(bool(gpus))


def run_side_by_side(
    ray: Any,
    config: RunConfig,
    runs: Sequence[RunConfig],
    lanes: int,
    gpus: float,
    do: Work,
    stop: Stop,
    head: Head,
    began: Callable[[RunConfig], None],
    progress: Callable[[RunConfig, Progress], None],
) -> Iterator[tuple[RunConfig, Outcome]]:
    """Do runs, as many at a time as there are lanes; each is given as it ends.

    A lane that is lost is replaced, and its run goes on from its last commit. Once a stop is asked for, those under
    way are stopped in good order and no other begins.

    Raises:
        UserError: a lane is lost for good, or the head is.
    """
    supervisor = Supervisor(ray, config.cluster)
    head.watch("the cluster's head", ray.get_runtime_context().gcs_address)
    options: dict[str, Any] = {
        "enable_task_events": False,
        "concurrency_groups": {PULSE: 1},
        "max_restarts": 0,
        "max_task_retries": 0,
        "num_cpus": config.learner.threads,
        "num_gpus": gpus,
    }
    actor = ray.remote(**options)(LaneActor)

    def post(name: str) -> Post:
        return supervisor.start(name, lambda _: actor.options(name=name).remote(config, do))

    free = deque(post(f"lane-{number}") for number in range(lanes))
    left, under_way = deque(runs), dict[Call, RunConfig]()
    halted = False
    while under_way or (left and not halted):
        while free and left and not halted:
            run = left.popleft()
            began(run)
            under_way[supervisor.call(free.popleft(), "run", run)] = run
        head.check()
        for call, outcome in supervisor.wait(POLL_SECONDS):
            run = under_way.pop(call)
            free.append(call.post)
            yield run, outcome
        for call, run in under_way.items():
            pulse = call.post.last
            if pulse is not None and pulse.word is not None:
                progress(run, pulse.word)
        if stop.requested and not halted:
            halted = True
            for call in under_way:
                if call.post.actor is not None:
                    with contextlib.suppress(ray.exceptions.RayError):
                        call.post.actor.halt.remote(int(stop.signal or 2))
