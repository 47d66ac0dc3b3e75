"""The actor that shows a run's numbers. It needs no model, so nothing here imports one."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path

from streamcvit.cluster.actor import Actor, work
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.monitoring.definitions import Source
from streamcvit.monitoring.exporter import Server, serve
from streamcvit.monitoring.notify import Teller
from streamcvit.monitoring.report.page import live_page
from streamcvit.monitoring.store import RunStore
from streamcvit.run.messages import Progress

MONITOR = "monitor"
PORT_SECONDS = 20.0  # a stopped monitor keeps its port until its node has killed it


class MonitorActor(Actor):
    """Holds the numbers of all runs and serves the one /metrics endpoint; after a restart it reads the run folders.

    Args:
        config: the run.
        port: where to listen; 0 takes any.
        token: what a reader must show; empty: nothing.
        again: whether another monitor held this port a moment ago.
        labels: of the build.
        actors: names of all actors.
    """

    def __init__(
        self, config: RunConfig, port: int, token: str, again: bool, labels: dict[str, str], actors: tuple[str, ...]
    ) -> None:
        super().__init__(config)
        self.port, self.token, self.again, self.labels, self.actors = port, token, again, labels, actors

    @cached_property
    def store(self) -> RunStore:
        store = RunStore(self.config.folder(method) for method in self.config.methods)
        store.build_info(**self.labels)
        store.read()
        for method in self.config.methods:
            store.begin(Source(self.config.name, method), (), self.actors)
        return store

    @cached_property
    def teller(self) -> Teller:
        """Tells alerts."""
        return Teller(self.store, self.config.folder(), self.config.monitor.notify)

    @cached_property
    def server(self) -> Server:
        page = live_page(self.config.folder(), title=self.config.name)
        deadline = time.monotonic() + (PORT_SECONDS if self.again else 0)
        while True:
            try:
                return serve(self.store, self.port, self.config.monitor.host, page=page, token=self.token)
            except UserError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    @work
    def ready(self) -> tuple[str, int]:
        """Address and port of the metrics.

        Raises:
            UserError: the port is taken.
        """
        server, _ = self.server, self.teller  # both come up here
        return server.url, server.port

    @work
    def progress(self, progress: Progress) -> None:
        """The learner's newest word."""
        run = Source(self.config.name, progress.run)
        self.store.position(run, progress.cursor, progress.total)
        if progress.loss is not None:
            self.store.prequential(run, progress.loss, {})
        self.store.steps_skipped(run, progress.skipped)
        self.store.step_seconds(run, progress.step_seconds)
        self.store.step(run, progress.step)
        self.store.waits(run, progress.chunk, progress.waited)
        if progress.commits is not None:
            done = progress.commits
            self.store.commit(run, done.seconds, done.size_bytes, done.written)
        if progress.queue is not None:
            self.store.queue(run, progress.queue)
        self.move()

    @work
    def reload(self, folder: str) -> None:
        """Take over what a run folder says by now, when someone looks."""
        self.store.changed(Path(folder))
        self.move()

    @work
    def farewell(self) -> None:
        """Let whoever reads the metrics again and again see how the run ended, and post what is still to be posted."""
        self.teller.close()
        self.server.readers.wait_for_next()
