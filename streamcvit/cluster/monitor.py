"""The actor that shows a run's numbers. It needs no model, so nothing here imports one."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import Any

from streamcvit.cluster.actor import Actor, work
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.monitoring.definitions import Source
from streamcvit.monitoring.exporter import Server, serve
from streamcvit.monitoring.notify import Teller
from streamcvit.monitoring.store import RunStore
from streamcvit.monitoring.watch import Follower, Site
from streamcvit.run.feeding import Feeder, hear
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
    def site(self) -> Site:
        """The live page."""
        return Site(Follower(self.config.folder()), self.config.name)

    @cached_property
    def feeder(self) -> Feeder | None:
        """Feeds the sinks; None where there are none."""
        return Feeder(self.config) if self.config.monitor.sinks else None

    @cached_property
    def server(self) -> Server:
        deadline = time.monotonic() + (PORT_SECONDS if self.again else 0)
        while True:
            try:
                return serve(self.store, self.port, self.config.monitor.host, self.site, self.token)
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
        server, _, _ = self.server, self.teller, self.feeder  # all come up here
        return server.url, server.port

    @work
    def progress(self, progress: Progress) -> None:
        """The learner's newest word."""
        hear(self.store, Source(self.config.name, progress.run), progress)
        if self.feeder is not None:
            self.feeder.word(progress)
            self.word = self.feeder.faults
        self.move()

    @work
    def probed(self, method: str, rows: list[dict[str, Any]]) -> None:
        """What came of a probe."""
        self.store.probes(Source(self.config.name, method), rows)
        if self.feeder is not None:
            self.feeder.changed(self.config.folder(method))
        self.move()

    @work
    def reload(self, folder: str) -> None:
        """Take over what a run folder says by now, when someone looks."""
        self.store.changed(Path(folder))
        if self.feeder is not None:
            self.feeder.changed(Path(folder))
            self.word = self.feeder.faults
        self.move()

    @work
    def farewell(self) -> list[tuple[str, str]]:
        """Let whoever reads the metrics again and again, or has the page open, see how the run ended, and pass on what
        is still to be told.

        Returns:
            What went wrong with the sinks.
        """
        self.site.hub.flush()
        if self.feeder is not None:
            self.feeder.close()
        self.teller.close()
        self.server.readers.wait_for_next()
        return self.feeder.faults if self.feeder is not None else []
