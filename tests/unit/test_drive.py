"""The driver believes the newest learner only."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from streams import TASKS, stream_samples, test_sets
from test_run_folder import COUNTS, answer, report

from streamcvit.cluster.drive import Driver
from streamcvit.cluster.folder import RunFolder
from streamcvit.cluster.guard import Stop
from streamcvit.cluster.messages import ChunkReport, Job, Progress, TaskScores
from streamcvit.cluster.supervise import Restart
from streamcvit.config import RunConfig
from streamcvit.data.shards import write_stream
from streamcvit.errors import Stopped
from streamcvit.learning import commit
from streamcvit.monitoring.terminal import LiveView


@dataclass
class Actors:
    """A pool whose learner was replaced: its first answer for chunk 1 still comes from the older one."""

    epoch: int
    stop_after: int = 10**6
    evaluators: int = 1
    learn_ahead: int = 1
    base_digest: str = "base"
    url: str = ""
    asked: list[int] = field(default_factory=list)
    scored: list[Job] = field(default_factory=list)
    stopped: bool = False
    signals: Stop = field(default_factory=Stop)
    answers: dict[int, ChunkReport | TaskScores] = field(default_factory=dict)

    def learn(self, method: str, chunk: int) -> Hashable:
        self.asked.append(chunk)
        stale = chunk == 1 and self.asked.count(1) == 1
        found = replace(report(chunk, "stale" if stale else ""), epoch=self.epoch - stale)
        return self._answer(found)

    def evaluate(self, job: Job) -> Hashable:
        self.scored.append(job)
        return self._answer(answer(job))

    def _answer(self, value: ChunkReport | TaskScores) -> int:
        self.answers[len(self.answers)] = value
        return len(self.answers) - 1

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, ChunkReport | TaskScores]]:
        if len(self.asked) >= self.stop_after:
            self.signals.signal = signal.SIGTERM
        return [(future, self.answers[future]) for future in pending]

    def stop(self, pending: list[Any]) -> None:
        self.stopped = True

    def latest(self) -> Progress | None:
        return None

    def restarts(self) -> list[Restart]:
        return [Restart("ingest-0", "silent", "no pulse")] if len(self.asked) == 1 else []

    def folder_changed(self, folder: str) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    index = write_stream(tmp_path / "stream", stream_samples(), TASKS, test_sets(), 0)
    config = RunConfig(name="r", out=str(tmp_path), methods={"lora": {"adapter": "lora"}})  # type: ignore[dict-item]
    return RunFolder(config, "lora", index, COUNTS, "base")


def events(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    lines = (folder.path / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == name]


def driven(folder: RunFolder, pool: Actors) -> Driver:
    view = LiveView(["lora"], 40, 4, console=Console(file=io.StringIO()))
    return Driver(folder.config, pool, {"lora": folder}, view, pool.signals)


def test_a_report_of_an_older_learner_is_refused_noted_and_asked_for_again(folder: RunFolder) -> None:
    for _ in range(2):
        epoch, _ = commit.take_over(folder.path / "commits")
    pool = Actors(epoch.number)
    driven(folder, pool).run()
    assert pool.asked == [0, 1, 1, 2, 3]
    (fenced,) = events(folder, "fenced")
    assert (fenced["chunk"], fenced["epoch"], fenced["newest"]) == (1, 1, 2)
    assert "stale" not in {job.digest for job in pool.scored}
    assert [(event["chunk"], event["digest"]) for event in events(folder, "chunk")] == [
        (chunk, f"digest-{chunk}") for chunk in range(4)
    ]
    assert folder.finished()


def test_a_stop_is_passed_on_to_the_learner_and_noted(folder: RunFolder) -> None:
    pool = Actors(0, stop_after=2)
    with pytest.raises(Stopped):
        driven(folder, pool).run()
    assert pool.stopped and not folder.finished()
    assert len(events(folder, "stopped")) == 1


def test_every_restart_is_noted_with_its_cause(folder: RunFolder) -> None:
    driven(folder, Actors(0)).run()
    found = events(folder, "restart")
    assert found and {(event["actor"], event["cause"], event["detail"]) for event in found} == {
        ("ingest-0", "silent", "no pulse")
    }
