"""A learner that was given up for dead and comes back changes nothing; a full disk stops one that goes on later."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from faulty import FENCED, fork, leftovers
from running import boundaries

from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.learning import commit, read_ledger
from streamcvit.learning.epochs import Fenced, last_turn
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.boundaries import boundary_report
from streamcvit.run.evaluating import EvaluatorWorker
from streamcvit.run.loading import local_feed
from streamcvit.run.messages import Job
from streamcvit.run.stream import prepare_stream
from streamcvit.run.workers import LearnerWorker

CHUNKS, PER_CHUNK = 3, 24


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> LearnerWorker:
    """A learner of a small stream, before its first step; what is forked from it learns."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("zombie")
    settings = [f"stream.scenario.chunks={CHUNKS}", f"stream.scenario.samples_per_chunk={PER_CHUNK}"]
    settings += ["stream.test_samples=2", "learner.batch_size=4", "learner.commit_every=1"]
    config = load_config(builtin("embedded"), settings, name="undisturbed", out=str(root))
    stream = root / "stream"
    prepare_stream(config, stream)
    made = LearnerWorker(config, str(stream), local_feed(config, str(stream)))
    assert wait(fork(lambda: learn(made, config))) == 0
    return made


def learn(worker: LearnerWorker, config: RunConfig) -> None:
    """What a learner actor is asked to do: the calls that wait come, whatever became of those before."""
    worker.config, fenced = config, None
    for chunk in range(CHUNKS):
        try:
            worker.learn_chunk("replay", chunk)
        except Fenced as error:
            fenced = error
    if fenced is not None:
        raise fenced


def renamed(worker: LearnerWorker, name: str) -> RunConfig:
    return worker.config.model_copy(update={"name": name})


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(run: Path) -> dict[str, object]:
    states = {path.name: commit.read_state(path) for path in commit.list_commits(run / "commits")}
    return {"states": states, "rows": read_ledger(run / "ledger").to_pylist()}


def undisturbed(worker: LearnerWorker) -> Path:
    return worker.config.folder("replay")


@pytest.mark.parametrize("seed", range(4))
def test_a_learner_stopped_replaced_and_continued_can_write_nothing(worker: LearnerWorker, seed: int) -> None:
    config = renamed(worker, f"zombie-{seed}")
    run = config.folder("replay")
    older = fork(lambda: learn(worker, config))
    deadline = time.monotonic() + 120
    while len(commit.list_commits(run / "commits")) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.2))
    os.kill(older, signal.SIGSTOP)
    os.waitpid(older, os.WUNTRACED)
    assert wait(fork(lambda: learn(worker, config))) == 0
    newer = content(run)
    os.kill(older, signal.SIGCONT)
    assert wait(older) == FENCED
    assert content(run) == newer
    assert boundaries(run) == boundaries(undisturbed(worker))
    assert read_ledger(run / "ledger")["position"].to_pylist() == list(range(CHUNKS * PER_CHUNK))


def test_a_learner_that_was_replaced_before_it_began_cannot_become_the_newest(worker: LearnerWorker) -> None:
    config = renamed(worker, "late")
    run = config.folder("replay")

    def in_turn(start: int, life: int, chunks: int) -> int:
        def work() -> None:
            worker.turn, worker.config = (start, life), config
            worker.learn_chunk("replay", chunks - 1)

        return wait(fork(work))

    assert in_turn(1, 1, chunks=1) == 0
    there = content(run)
    assert in_turn(1, 0, chunks=2) == FENCED
    assert content(run) == there
    assert in_turn(2, 0, chunks=2) == 0  # the run was started again
    there = content(run)
    assert in_turn(1, 2, chunks=3) == FENCED
    assert content(run) == there
    assert last_turn(run) == (2, 0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_an_old_boundary_whose_adapter_is_damaged_is_named_and_never_scored(
    worker: LearnerWorker, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(undisturbed(worker), tmp_path / "replay")
    report = boundary_report(tmp_path / "replay", "replay", 0)
    path = Path(report.commit, "adapter", "adapter_model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    if damage == "gone":
        path.unlink()

    def score() -> None:
        evaluator = EvaluatorWorker(worker.config, str(Path(worker.config.out) / "stream"))
        job = Job("replay", 0, next(iter(evaluator.tasks)), report.version, report.digest, report.commit)
        said = "damaged" if damage == "flipped" else "adapter_model.safetensors: damaged adapter"
        with pytest.raises(UserError, match=said):
            evaluator.evaluate(job)

    assert wait(fork(score)) == 0


def test_a_full_disk_is_named_the_last_commit_stays_and_the_run_goes_on_when_there_is_room(
    worker: LearnerWorker,
) -> None:
    config = renamed(worker, "full")
    run = config.folder("replay")

    def until_full() -> None:
        worker.config = config
        worker.learn_chunk("replay", 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        for _ in range(2):  # asked again it tries again, from the newest commit, and says the same
            with pytest.raises(UserError, match=r"a file gets too big.*last commit is whole.*--resume"):
                worker.learn_chunk("replay", 1)

    assert wait(fork(until_full)) == 0
    found = commit.newest_resumable(run / "commits")
    assert found is not None and found[1]["cursor"] == PER_CHUNK and found[2] == []
    assert leftovers(run) == []
    assert wait(fork(lambda: learn(worker, config))) == 0
    assert boundaries(run) == boundaries(undisturbed(worker))
    assert read_ledger(run / "ledger")["position"].to_pylist() == list(range(CHUNKS * PER_CHUNK))
