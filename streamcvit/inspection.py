"""All of pre-flight without learning: what a run would find, need and take, in a few lines, and nothing is left behind.

The run's own functions do the looking, in a temporary folder: the stream is made ready there and every method takes
its first steps, so what `run` would refuse is refused here.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from streamcvit.cluster.session import needed_mib
from streamcvit.config import RunConfig
from streamcvit.data.sample import Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.errors import Stopped, UserError
from streamcvit.evaluation import Evaluator
from streamcvit.models.base import fetch
from streamcvit.models.collate import Collator, UnusableSamples
from streamcvit.preflight import check_settings
from streamcvit.run.drive import task_counts
from streamcvit.run.loading import base_bytes, collation, local_feed
from streamcvit.run.losses import lost_list, stream_lines
from streamcvit.run.origin import keep
from streamcvit.run.origincheck import settled
from streamcvit.run.stream import prepare_stream
from streamcvit.run.workers import LearnerWorker

DRAWN = 200
"""Samples whose tokens are counted."""
STEPS = 4
"""Steps of every method; the first is not timed."""
ANSWERS = 4
"""Test samples of a task that are answered to time scoring."""
TASKS = 4
"""Tasks whose answers are timed; the others are taken to be as quick."""
SHOWN = 3


def inspect(config: RunConfig, local: bool = False) -> Iterator[str]:
    """What there is to say of a run before it starts, line by line.

    Args:
        config: the run.
        local: whether it is to run in one process.

    Raises:
        UserError: what `run` would refuse.
    """
    config = settled(config)
    known = check_settings(config, local)
    weights = fetch(config.model.name_or_path, config.model.revision)
    with tempfile.TemporaryDirectory(prefix="streamcvit-check-") as place:
        folder = Path(place, "stream")
        index = prepare_stream(config, folder)
        lost_list(folder).unlink(missing_ok=True)
        yield f"stream: {len(index)} samples in {index.n_chunks} chunks of {len(index.tasks)} tasks"
        yield from stream_lines(folder, index)
        samples = _draw(index, config.seed)
        yield from _task_lines(index, samples)
        yield from _token_lines(config, samples)
        config = config.model_copy(update={"out": place})
        size = base_bytes(config, weights)
        yield from known
        yield from _learning_lines(config, index, str(folder))
        need = _mib(_peak()) if local else needed_mib(config, size)
        free = psutil.virtual_memory().available // 2**20
        yield f"memory: {_mib(size)} MiB of weights; the run needs about {need} MiB, {free} MiB are free"


def _draw(index: StreamIndex, seed: int) -> list[Sample]:
    """Some readable samples of the whole stream, in its order."""
    count = min(DRAWN, len(index))
    places = np.sort(np.random.default_rng([seed, 5]).permutation(len(index))[:count])
    with ShardReader(index) as reader:
        return [row for row in reader.read(places.tolist()) if isinstance(row, Sample)]


def _task_lines(index: StreamIndex, samples: list[Sample]) -> Iterator[str]:
    tests = index.eval_index().task_of
    for task, spec in index.tasks.items():
        rules = ", ".join(filter(None, (spec.scorer, spec.strcvit, spec.follow)))
        found = list(dict.fromkeys(sample.instruction for sample in samples if sample.task == task))
        said = "; ".join(repr(text[:80]) for text in found[:SHOWN] if text) or "none"
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        count, tested = int((index.task_of == task).sum()), int((tests == task).sum())
        yield f"{task}: {count} samples, {tested} test samples ({rules}); instructions: {said}{more}"


def _token_lines(config: RunConfig, samples: list[Sample]) -> Iterator[str]:
    if not samples:
        return
    collator = Collator.from_pretrained(config.model.name_or_path, **collation(config)).unbounded()
    lengths, pictures, refused = [], [], []
    for sample in samples:
        try:
            inputs = collator.train([sample])
        except UnusableSamples as fault:
            refused.append(str(fault))
            continue
        lengths.append(int(inputs.tensors["attention_mask"].sum()))
        pictures += [tokens for tokens in inputs.pictures[0] if tokens]
    if lengths:
        median, most = np.percentile(lengths, (50, 95))
        over = sum(length > config.model.max_length for length in lengths)
        yield (
            f"tokens of {len(lengths)} samples drawn: median {median:.0f}, 95 % up to {most:.0f}, "
            f"longest {max(lengths)}; {over} are longer than model.max_length ({config.model.max_length})"
        )
    if pictures:
        yield f"tokens of a picture: median {np.median(pictures):.0f}, most {max(pictures)}"
    if refused:
        yield f"{len(refused)} of {len(samples)} samples drawn cannot be learned from; the first: {refused[0]}"


def _learning_lines(config: RunConfig, index: StreamIndex, stream: str) -> Iterator[str]:
    """Every method's first steps, on an adapter that is thrown away."""
    clock = _Clock(STEPS)
    worker = LearnerWorker(config, stream, local_feed(config, stream), stop=clock)
    shards = sum(path.stat().st_size for path in Path(stream).rglob("*") if path.is_file())
    disk = 0
    for method, settings in config.methods.items():
        if settings.adapter == "none":
            continue
        keep(config, method)
        clock.start()
        try:
            with contextlib.suppress(Stopped):
                worker.learn_chunk(method, 0)
        except UserError as fault:
            # A place in the folder that is looked at is gone when this is read.
            where = f"methods.{method}" if fault.where.startswith(config.out) else fault.where
            raise UserError(fault.what, where=where, fix=fault.fix) from fault
        commits = config.folder(method) / "commits"
        kept, resume = (_size(commits, part) for part in ("*/adapter/**/*", "*/resume/**/*"))
        chunks = len(task_counts(config, index, method))
        disk += kept * chunks + resume * config.learner.keep_commits
        batches = -(-len(index) // config.learner.batch_size)
        yield (
            f"{method}: {clock.step:.3f} s a step here: "
            f"about {_duration(clock.step * batches)} for {batches} steps, scoring beside it"
        )
        yield _scoring_line(config, index, worker, method)
    yield f"disk: {_mib(shards)} MiB of stream, about {_mib(disk)} MiB of commits"


def _scoring_line(config: RunConfig, index: StreamIndex, worker: LearnerWorker, method: str) -> str:
    """How long the scores of all seen tasks take at every chunk's end, from a few answers to each of some tasks."""
    tests = index.eval_index()
    counts = {task: int((tests.task_of == task).sum()) for task in tests.tasks}
    asked = [task for task in index.tasks if counts.get(task)][:TASKS]
    samples = {}
    with ShardReader(tests) as reader:
        for task in asked:
            rows = reader.read(np.flatnonzero(tests.task_of == task)[:ANSWERS].tolist())
            samples[task] = [row for row in rows if isinstance(row, Sample)]
    how = config.evaluation
    evaluator = Evaluator(
        worker.base, index.tasks, samples, how.batch_size, instruction_encoder=worker.encoder, thoughts=how.thoughts
    )
    took = {}
    for task in asked:
        with contextlib.suppress(UserError):  # of samples that cannot be used; a run says so where it matters
            evaluator.requests(task)
            found = evaluator.evaluate(worker.model or worker.base.model, task)
            took[task] = found.seconds / len(found.texts)
    if not took:
        return f"{method}: no test sample to time scoring with"
    usual = sum(took.values()) / len(took)
    seconds, answers, seen = 0.0, 0, np.zeros(len(index.tasks), dtype=bool)
    for row in task_counts(config, index, method):
        seen |= np.asarray(row) > 0
        for task in (task for task, there in zip(index.tasks, seen, strict=True) if there):
            answers += counts.get(task, 0)
            seconds += counts.get(task, 0) * took.get(task, usual)
    rate = seconds / max(1, answers)
    return (
        f"{method}: {rate:.3f} s an answer here, in batches of {ANSWERS}: about {_duration(seconds)} for {answers} "
        f"answers at all chunks' ends, by one evaluator"
    )


class _Clock:
    """Tells a learner to stop after so many batches; knows the shortest step but the first."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.asked: list[float] = []

    def start(self) -> None:
        self.asked = []

    def __call__(self) -> bool:
        self.asked.append(time.perf_counter())
        return len(self.asked) > self.steps

    @property
    def step(self) -> float:
        gaps = np.diff(self.asked)
        return float(min(gaps[1:] if len(gaps) > 1 else gaps, default=0.0))


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def _peak() -> int:
    """Bytes that this process had at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _mib(size: int) -> int:
    return -(-size // 2**20)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
