"""A stream that is learned while it arrives gives what the same stream gives at once, to the bit, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from arrivals import announce, arrive
from models import save, tiny_llava
from prometheus_client import CollectorRegistry
from running import boundaries, command, environment
from streams import sample

from streamcvit.config import RunConfig
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.data.shards.write import write_stream
from streamcvit.launch import execute
from streamcvit.learning import read_ledger
from streamcvit.monitoring import RunRecord
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.pipeline import load_config
from streamcvit.run.loading import local_feed
from streamcvit.run.workers import LearnerWorker

METHODS = {
    "zero-shot": "zero-shot: {adapter: none}",
    "smolora": "smolora: {adapter: smolora}",
    "replay": "replay: {adapter: lora, strategy: replay, strategy_options: {memory: 8}}",
}
PER_CHUNK = 4
TASKS = {name: TaskSpec(name, "exact", "single_word", max_new_tokens=2) for name in ("colour", "shape")}
TESTS = {task: [sample(1000 + n, task) for n in range(3)] for task in TASKS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_llava(), tmp_path_factory.mktemp("model"))


def samples_of(chunks: int, per_chunk: int = PER_CHUNK) -> list[Sample]:
    """A stream in which the task `shape` begins in the middle, and `colour` rests in the last chunk."""
    half, last = chunks * per_chunk // 2, (chunks - 1) * per_chunk
    return [sample(n, "shape" if n >= half and (n % 2 or n >= last) else "colour") for n in range(chunks * per_chunk)]


def config(out: Path, model: Path, methods: Iterable[str], *settings: str) -> RunConfig:
    given = [f"model.name_or_path={model}", "evaluation.draws=10", "learner.batch_size=2", "evaluation.audit=4"]
    given.append(f"methods={{{', '.join(METHODS[name] for name in methods)}}}")
    return load_config(None, [*given, *settings], name="r", out=str(out))


def at_once(folder: Path, samples: Sequence[Sample], per_chunk: int = PER_CHUNK) -> list[str]:
    write_stream(folder, [(n // per_chunk, one) for n, one in enumerate(samples)], TASKS, TESTS, 0)
    return ["stream.source=shards", f"stream.data={folder}"]


def followed(folder: Path, per_chunk: int = PER_CHUNK, *settings: str) -> list[str]:
    return ["stream.source=follow", f"stream.data={folder}", f"stream.follow.samples_per_chunk={per_chunk}", *settings]


def feed(
    folder: Path,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    pause: float,
    end: bool = True,
    known: Collection[str] = (),
    names: str = "shard",
) -> threading.Thread:
    """Let samples arrive over time, in shards of changing sizes, a task's manifest just before its first sample."""

    def work() -> None:
        first, number, there = 0, 0, set(known)
        while first < len(samples):
            part = samples[first : first + sizes[number % len(sizes)]]
            for task in sorted({one.task for one in part} - there):
                announce(folder, task, TESTS[task], max_new_tokens=2)
                there.add(task)
            arrive(folder, f"{names}-{number}.tar", part)
            first, number = first + len(part), number + 1
            time.sleep(pause)
        if end:
            (folder / "END").touch()

    folder.mkdir(exist_ok=True)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_what_is_learned_and_scored_while_it_arrives_is_what_is_learned_and_scored_at_once(
    tmp_path: Path, model: Path
) -> None:
    samples = samples_of(6)
    zero = "evaluation.zero_shot=true"
    whole = config(tmp_path / "whole", model, METHODS, *at_once(tmp_path / "data", samples), zero)
    execute(whole, local=True)
    grown = config(tmp_path / "grown", model, METHODS, *followed(tmp_path / "in"), zero)
    thread = feed(tmp_path / "in", samples, (3, 7, 1), 0.7)
    page = execute(grown, local=True)
    thread.join()
    for name in METHODS:
        one, other = RunRecord.load(whole.folder(name)), RunRecord.load(grown.folder(name))
        assert other.finished and other.tasks == one.tasks == list(TASKS)
        assert other.plan.tolist() == one.plan.tolist()
        assert boundaries(grown.folder(name)) == boundaries(whole.folder(name))
        told = [{key: row[key] for key in ("chunk", "task", "kind", "digest", "score", "n")} for row in one.scores]
        assert [{key: row[key] for key in told[0]} for row in other.scores] == told
        assert {**other.summary, "audit": None} == {**one.summary, "audit": None}
        assert other.summary["audit"]["asked"] == one.summary["audit"]["asked"] == 4
        ends = zip(one.chunk_events(), other.chunk_events(), strict=True)
        drift = [(event.get("drift"), own.get("drift")) for event, own in ends]
        assert all(theirs == own for theirs, own in drift if theirs)
        assert name != "smolora" or drift[-1][0]
    ledger = read_ledger(grown.folder("smolora") / "ledger")
    assert ledger["sample_id"].to_pylist() == [one.sample_id for one in samples]
    assert "shape" in page.read_text(encoding="utf-8")


def test_metrics_tell_what_arrived_what_waits_and_what_was_set_aside(tmp_path: Path, model: Path) -> None:
    made = config(tmp_path, model, ("smolora",), *followed(tmp_path / "in"))
    arriving = tmp_path / "in"
    feed(arriving, samples_of(2), (4,), 0).join()
    arrive(arriving, "shard-again.tar", [sample(0)])
    execute(made, local=True)
    (event,) = RunRecord.load(made.folder("smolora")).events_of("set_aside")
    assert (event["what"], event["reason"]) == ("shard-again.tar", "duplicate")
    registry = CollectorRegistry()
    store = MetricStore()
    registry.register(store)
    store.load(RunRecord.load(made.folder("smolora")))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"streamcvit_{name}", {"run": "r", "method": "smolora", **labels})

    assert value("arrivals_taken_total") == 2 and value("arrivals_waiting") == 0
    assert value("arrivals_set_aside_total", reason="duplicate") == 1
    assert value("arrivals_held_back") == 0 and value("oldest_arrival_timestamp_seconds") == 0
    assert value("stream_lag_samples") == 0 and value("run_finished") == 1


def actors_of(process: subprocess.Popen, kind: str) -> list[psutil.Process]:
    """The actors of a kind that a run has started."""
    there = psutil.Process(process.pid).children(recursive=True)
    return [child for child in there if " ".join(child.cmdline()).startswith(f"ray::{kind}")]


def learned_at_once(made: RunConfig, stream: Path, method: str) -> dict[int, str]:
    """The digests of a stream's boundaries, learned without any scoring."""
    worker = LearnerWorker(made, str(stream), local_feed(made, str(stream)))
    for chunk in range(worker.index.n_chunks):
        worker.learn_chunk(method, chunk)
    return boundaries(made.folder(method))


def begun(made: RunConfig, resume: bool) -> int:
    """A process of its own that does a run; forked, so that it need not load what is loaded."""
    if child := os.fork():
        return child
    code = 1
    try:
        execute(made, local=True, resume=resume)
        code = 0
    finally:
        os._exit(code)


def test_two_hundred_chunks_that_arrive_over_time_with_kills_are_the_same_to_the_bit(tmp_path: Path) -> None:
    chunks, per_chunk = 200, 2
    samples = samples_of(chunks, per_chunk)
    model = save(tiny_llava(width=16, layers=1), tmp_path / "model")
    quick = ["evaluation.audit=0", "learner.drift_samples=0", "evaluation.cache_bytes=0"]
    made = config(tmp_path, model, ("smolora",), *followed(tmp_path / "in", per_chunk), *quick)
    thread = feed(tmp_path / "in", samples, (5, 1, 8, 3), 0.02)
    commits = made.folder("smolora") / "commits"
    for wanted in (20, 70, 130):
        child = begun(made, resume=wanted > 20)
        while len(list(commits.glob("[0-9]*"))) < wanted:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it was killed"
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    thread.join()
    execute(made, local=True, resume=True)
    other = config(tmp_path / "whole", model, ("smolora",), *at_once(tmp_path / "data", samples, per_chunk), *quick)
    expected = learned_at_once(other, tmp_path / "data", "smolora")
    assert len(expected) == chunks and boundaries(made.folder("smolora")) == expected
    record = RunRecord.load(made.folder("smolora"))
    assert record.finished and len(record.events_of("started")) == 4
    scored = ~np.isnan(record.matrix())
    assert scored.tolist() == [[True, chunk >= chunks // 2] for chunk in range(chunks)]
    ledger = read_ledger(made.folder("smolora") / "ledger")
    assert ledger["position"].to_pylist() == list(range(chunks * per_chunk))
    journal = (made.folder() / "stream" / "journal.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["what"] == "close" for line in journal) == chunks


def test_with_ray_actors_and_a_killed_learner_it_is_the_same_too(tmp_path: Path, model: Path) -> None:
    samples = samples_of(6)
    quick = ["evaluation.audit=0", "cluster.ingest_actors=1"]
    made = config(tmp_path, model, ("smolora",), *followed(tmp_path / "in"), *quick)
    (tmp_path / "pipeline.yaml").write_text(made.dump())
    first = feed(tmp_path / "in", samples[:12], (3, 7, 1), 0.1, end=False)
    words = command("run", str(tmp_path / "pipeline.yaml"))
    out: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), **out)
    first.join()
    while process.poll() is None and 1 not in boundaries(made.folder("smolora")):
        time.sleep(0.1)
    (learner,) = actors_of(process, "LearnerActor")
    learner.kill()
    feed(tmp_path / "in", samples[12:], (5,), 0.1, known={"colour"}, names="later").join()
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    other = config(tmp_path / "whole", model, ("smolora",), *at_once(tmp_path / "data", samples), *quick)
    assert boundaries(made.folder("smolora")) == learned_at_once(other, tmp_path / "data", "smolora")
    record = RunRecord.load(made.folder("smolora"))
    assert record.finished and record.tasks == list(TASKS) and record.plan.shape == (6, 2)
    assert {(row["chunk"], row["task"]) for row in record.scores} == {
        *((chunk, "colour") for chunk in range(6)),
        *((chunk, "shape") for chunk in range(3, 6)),
    }
