"""The small typed messages between driver, learner and evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from streamcvit.evaluation import Disagreement
from streamcvit.monitoring.definitions import BucketCounts


@dataclass(frozen=True)
class ChunkReport:
    """A chunk that has been learned and committed.

    Attributes:
        method: the run it belongs to.
        chunk: its number, from 0.
        commit: folder of the commit that ends it.
        version: optimizer steps at that commit.
        digest: SHA-256 of the adapter at that commit.
        info: the chunk's event: samples, seconds busy and waiting, loss, correct, expert shares (JSON values).
        quarantined: events of positions that could not be learned.
        skipped: events of steps that were not taken (`streamcvit.learning.soundness.Skip`).
        progress: the learner's last word on the chunk; None where another life learned it.
        epoch: of the learner that reports; a report of an older epoch than the run folder's newest is refused.
        damaged: a line for each damaged commit that this learner passed over when it began.
        trace: `traceparent` of the span that committed or published it, where runs are traced.
    """

    method: str
    chunk: int
    commit: str
    version: int
    digest: str
    info: dict[str, Any]
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    progress: Progress | None = None
    epoch: int = 0
    damaged: tuple[str, ...] = ()
    trace: str = ""


@dataclass(frozen=True)
class Order:
    """What the guard wants of a chunk (`streamcvit.run.forgetting`); one that is false wants nothing.

    Attributes:
        held: tasks whose loss it has acted on, and that have not recovered.
        share: samples rehearsed beside each batch, as a share of its size; 0: what the strategy does by itself.
        version, digest, boundary: of the boundary whose weights are put back before the chunk; None: none.
    """

    held: tuple[str, ...] = ()
    share: float = 0.0
    version: int | None = None
    digest: str = ""
    boundary: int | None = None

    def __bool__(self) -> bool:
        return self != Order()

    def to_json(self) -> dict[str, Any]:
        """As chunk events and commits have it, under `guard`."""
        return {**asdict(self), "held": list(self.held)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Order:
        """Inverse of `to_json`; None is no order."""
        return cls(**{**values, "held": tuple(values["held"])}) if values else cls()


@dataclass(frozen=True)
class Job:
    """Score one task with one snapshot; asked twice, it gives the same result.

    Attributes:
        method: whose adapter.
        chunk: boundary it belongs to (-1: before any learning).
        task: what to score.
        version, digest: of the snapshot; before any learning that of the base, or of the adapter started from.
        commit: the folder it can always be read from; empty for the bare base.
        audit: so many of the answers are given again one by one.
        probe: so many of the task's test samples, drawn by the seed, and no chunk boundary; 0: all, at one.
        trace: `traceparent` of the span that gave the snapshot, where runs are traced.
    """

    method: str
    chunk: int
    task: str
    version: int
    digest: str
    commit: str
    audit: int = 0
    probe: int = 0
    trace: str = ""


@dataclass(frozen=True)
class TaskScores:
    """What an evaluator found for one job.

    Attributes:
        job: what was asked.
        digest: of the adapter the evaluator held, computed from its own weights (proof of delivery).
        sample_ids, predictions, references: [n] strings.
        points: [n] float64, strict scorer, 0-100.
        published: [n] float64 of the published scorer, or None where the task names none.
        follows: [n] bool, instruction following.
        seconds: generation and scoring.
        left_out: test samples that cannot be used, sample id -> why.
        instructions: [n] strings, how each sample words its instruction; None where it is not told.
        follows_published: [n] bool of the published rule for the task's form; None where there is none.
        audited: answers that were given again one by one; None where none were asked for.
        differ: those of them that are other answers then.
        notes: what else people are told, once.
    """

    job: Job
    digest: str
    sample_ids: list[str]
    predictions: list[str]
    references: list[str]
    points: np.ndarray
    published: np.ndarray | None
    follows: np.ndarray
    seconds: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    instructions: list[str] | None = None
    follows_published: np.ndarray | None = None
    audited: int | None = None
    differ: Sequence[Disagreement] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Weights:
    """What a learner held between two steps of a chunk.

    Attributes:
        method: whose adapter.
        chunk: being learned.
        version, cursor, digest: of the snapshot.
        snapshot: the weights, or where they are.
    """

    method: str
    chunk: int
    version: int
    cursor: int
    digest: str
    snapshot: Any


@dataclass(frozen=True)
class Probed:
    """What came of a probe.

    Attributes:
        job: what was asked.
        scores: of the samples drawn; None where the weights were gone with their learner, or something went wrong.
        fault: what went wrong, in one line.
    """

    job: Job
    scores: TaskScores | None = None
    fault: str = ""


@dataclass(frozen=True)
class Progress:
    """Where the learner is, for people to watch.

    Attributes:
        run: method name.
        chunk: being learned.
        cursor, total: samples behind it, samples in all.
        loss: prequential, nats, mean of the last batches; None where it is not finite.
        samples_per_second: since the chunk's start, waiting included.
        step_seconds: histogram of the run's steps so far.
        skipped: steps that were not taken so far, by reason.
        step: optimizer steps so far.
        waited: seconds that the learner stood still in this chunk, by reason.
        commits: the commits so far; None before the first.
        queue: batches that are ready for the learner; None where none are made ahead.
    """

    run: str
    chunk: int
    cursor: int
    total: int
    loss: float | None
    samples_per_second: float
    step_seconds: BucketCounts
    skipped: Mapping[str, int] = field(default_factory=dict)
    step: int = 0
    waited: Mapping[str, float] = field(default_factory=dict)
    commits: Commits | None = None
    queue: int | None = None


@dataclass
class Commits:
    """The commits of a learner.

    Attributes:
        seconds: histogram of the time that each took.
        size_bytes: of the newest.
        written: Unix time of the newest.
    """

    seconds: BucketCounts
    size_bytes: int
    written: float


@dataclass(frozen=True)
class Outcome:
    """How a whole run ended.

    Attributes:
        state: `finished`, `stopped` or `failed`.
        what: what is wrong with one that failed, and how to mend it.
        seconds: that it took this time.
    """

    state: str
    what: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Restart:
    """An actor that was replaced.

    Attributes:
        actor: its name.
        cause: `died` (the process is gone), `silent` (no pulse), `stuck` (a pulse, but no move), `failed` (an error).
        detail: one line on how it was noticed.
    """

    actor: str
    cause: str
    detail: str
