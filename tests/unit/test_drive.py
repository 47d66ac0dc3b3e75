"""The driver believes the newest learner only."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from streams import TASKS, stream_samples, test_sets
from test_run_folder import COUNTS, answer, report

from streamcvit.config import RunConfig
from streamcvit.data.sample import Sample
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import Stopped, UserError
from streamcvit.learning import Ledger, commit
from streamcvit.learning.epochs import Epoch
from streamcvit.models.batch import Batch
from streamcvit.monitoring.probes import read_probes
from streamcvit.monitoring.store import RunStore
from streamcvit.monitoring.terminal import LiveView
from streamcvit.run.drive import Driver
from streamcvit.run.folder import RunFolder
from streamcvit.run.guard import Stop
from streamcvit.run.local import LocalPool
from streamcvit.run.messages import ChunkReport, Job, Probed, Progress, Restart, TaskScores, Weights


@dataclass
class Actors:
    """A pool whose learner was replaced: its first answer for chunk 1 still comes from the older one."""

    epoch: int
    run: Path
    quarantined: tuple[int, ...] = ()
    spoils: Path | None = None
    stop_after: int = 10**6
    evaluators: int = 1
    learn_ahead: int = 1
    base_digest: str = "base"
    url: str = ""
    probing: None = None
    asked: list[int] = field(default_factory=list)
    scored: list[Job] = field(default_factory=list)
    stopped: bool = False
    signals: Stop = field(default_factory=Stop)
    answers: dict[int, ChunkReport | TaskScores] = field(default_factory=dict)

    def learn(self, method: str, chunk: int) -> Hashable:
        self.asked.append(chunk)
        stale = chunk == 1 and self.asked.count(1) == 1
        found = replace(report(chunk, "stale" if stale else ""), epoch=self.epoch - stale)
        if not stale:
            learn(self.run, chunk, Epoch(self.run, self.epoch))
        bad = [{"position": place} for place in self.quarantined if place // 10 == chunk]
        return self._answer(replace(found, quarantined=bad))

    def evaluate(self, job: Job) -> Hashable:
        self.scored.append(job)
        if self.spoils and job.chunk == 3:
            self.spoils.write_bytes(self.spoils.read_bytes()[:-20])
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

    def faults(self) -> list[tuple[str, str]]:
        return [("lora", "wandb takes no more points of lora (gone)")]


def learn(run: Path, chunk: int, epoch: Epoch) -> None:
    """Chunk `chunk` in the ledger, but for position 7, and committed."""
    ledger, step = Ledger(run / "ledger", epoch), report(chunk).version
    places = tuple(place for place in range(10 * chunk, 10 * chunk + 10) if place != 7)
    samples = tuple(Sample(f"s{place}", "colour", "q", "i", ("a",)) for place in places)
    batch = Batch(places[0], places[-1] + 1, chunk, places, samples, None)
    ledger.add(batch, step, torch.zeros(len(places)), torch.zeros(len(places), dtype=torch.bool))
    lost = [] if chunk else [{"position": 7}]
    state = {"boundary": True, "ledger": ledger.flush(step), "info": {"samples": 10}, "quarantined": lost}
    state |= {"chunk": chunk, "digest": report(chunk).digest}
    commit.write_commit(run / "commits", step, lambda draft: (draft / commit.RESUME).mkdir(), state, epoch)


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
    pool = Actors(epoch.number, folder.path, quarantined=(7,))
    driven(folder, pool).run()
    assert pool.asked == [0, 1, 1, 2, 3]
    (fenced,) = events(folder, "fenced")
    assert (fenced["chunk"], fenced["epoch"], fenced["newest"]) == (1, 1, 2)
    assert "stale" not in {job.digest for job in pool.scored}
    assert [(event["chunk"], event["digest"]) for event in events(folder, "chunk")] == [
        (chunk, f"digest-{chunk}") for chunk in range(4)
    ]
    assert folder.finished()


def test_a_run_whose_ledger_lacks_a_position_is_not_marked_finished(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"ledger: lacks 1 positions of the stream's 40, the first is 7"):
        driven(folder, Actors(0, folder.path)).run()
    assert not folder.finished()


def test_a_run_whose_ledger_is_damaged_is_not_marked_finished(folder: RunFolder) -> None:
    pool = Actors(0, folder.path, (7,), spoils=folder.path / "ledger" / "00000020.parquet")
    with pytest.raises(UserError, match=r"00000020\.parquet: damaged.*an older commit is used.*--resume"):
        driven(folder, pool).run()
    assert not folder.finished()


def test_a_damaged_commit_of_an_older_boundary_does_not_stop_a_run_that_knows_it(folder: RunFolder) -> None:
    with pytest.raises(Stopped):
        driven(folder, Actors(0, folder.path, (7,), stop_after=3)).run()
    (folder.path / "commits" / "00000005" / "state.json").write_text("")
    again = Actors(0, folder.path, (7,))
    driven(folder, again).run()
    assert 0 not in again.asked and folder.finished()
    assert "00000005: damaged commit" in events(folder, "damaged")[0]["what"]


def test_a_last_chunk_that_is_learned_again_and_was_scored_already_ends_the_run(folder: RunFolder) -> None:
    driven(folder, Actors(0, folder.path, (7,))).run()
    last = sorted((folder.path / "commits").iterdir())[-1]
    (last / "state.json").write_text("")
    record = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps({**record, "finished": None}))
    epoch, _ = commit.take_over(folder.path / "commits")
    again = Actors(epoch.number, folder.path, (7,))
    driven(folder, again).run()
    assert again.asked == [3] and not again.scored and folder.finished()


def test_scores_of_a_plain_loop_are_kept_one_by_one(folder: RunFolder) -> None:
    epoch, _ = commit.take_over(folder.path / "commits")
    for chunk in range(4):
        learn(folder.path, chunk, epoch)

    class Evaluator:
        asked = 0

        def evaluate(self, job: Job) -> TaskScores:
            self.asked += 1
            if self.asked == 6:
                raise Stopped
            return answer(job)

    pool = LocalPool.__new__(LocalPool)
    pool.signals, pool.evaluator, pool.store = Stop(), Evaluator(), RunStore([])  # type: ignore[assignment]
    with pytest.raises(Stopped):
        driven(folder, pool).run()  # type: ignore[arg-type]
    assert len(list(folder.path.glob("predictions/*/[!.]*.parquet"))) == 5


def test_a_stop_is_passed_on_to_the_learner_and_noted(folder: RunFolder) -> None:
    pool = Actors(0, folder.path, stop_after=2)
    with pytest.raises(Stopped):
        driven(folder, pool).run()
    assert pool.stopped and not folder.finished()
    assert len(events(folder, "stopped")) == 1


def test_a_sink_that_failed_is_noted_and_said_once(folder: RunFolder) -> None:
    driver = driven(folder, Actors(0, folder.path, (7,)))
    driver.run()
    driver.note_faults()
    assert [event["what"] for event in events(folder, "note")] == ["wandb takes no more points of lora (gone)"]
    assert driver.told_notes == {"wandb takes no more points of lora (gone)"}


def test_every_restart_is_noted_with_its_cause(folder: RunFolder) -> None:
    driven(folder, Actors(0, folder.path, (7,))).run()
    found = events(folder, "restart")
    assert found and {(event["actor"], event["cause"], event["detail"]) for event in found} == {
        ("ingest-0", "silent", "no pulse")
    }


class Probing(Actors):
    """A pool that answers one thing at a time, evaluators first, and whose learner can be asked for its weights.

    Attributes:
        early: probes that were asked for while a boundary waited to be scored.
    """

    def __init__(self, run: Path, evaluators: int) -> None:
        super().__init__(0, run, (7,), evaluators=evaluators)
        self.probing, self.learn_ahead, self.told, self.early = self, 2, 0, []  # type: ignore[assignment]
        self.probed_rows: list[dict[str, Any]] = []
        self.asked.append(1)  # no learner is replaced here

    def newest(self, seconds: float) -> Weights:
        step = len(self.answers)
        return Weights("lora", 0, step, 30, f"probed-{step}", None)

    def probed(self, method: str, rows: list[dict[str, Any]]) -> None:
        self.probed_rows += rows

    def evaluate(self, job: Job) -> Hashable:
        if not job.probe:
            return super().evaluate(job)
        if len(self.scored) < self.told:
            self.early.append(job)
        return self._answer(Probed(job, answer(job)))  # type: ignore[arg-type]

    def wait(self, pending: list[Any], seconds: float) -> list[tuple[Any, Any]]:
        first = min(pending, key=lambda future: (isinstance(self.answers[future], ChunkReport), future))
        value: Any = self.answers[first]
        if isinstance(value, ChunkReport):
            self.told += 1 if value.chunk < 2 else 2  # tasks seen by then
        return [(first, value)]


@pytest.mark.parametrize("evaluators", [1, 2])
def test_a_boundary_that_waits_is_scored_before_anything_is_probed_and_scored_alike(
    folder: RunFolder, tmp_path: Path, evaluators: int
) -> None:
    pool = Probing(folder.path, evaluators)
    driver = driven(folder, pool)
    driver.prober.clock = iter(range(0, 10**6, 10)).__next__
    driver.run()
    assert folder.finished() and pool.probed_rows and not pool.early
    assert read_probes(folder.path)[0] == pool.probed_rows
    rows = pq.read_table(folder.path / "scores.parquet").to_pylist()
    assert [(row["chunk"], row["task"]) for row in rows] == [
        (0, "colour"), (1, "colour"), (2, "colour"), (2, "shape"), (3, "colour"), (3, "shape")
    ]  # fmt: skip
    assert {row["kind"] for row in rows} == {"boundary"}
