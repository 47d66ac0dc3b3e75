"""The one table of what is measured: names, kinds, help texts, labels and the buckets of times."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

PREFIX = "streamcvit_"
MAX_SERIES = 512
"""Series a metric may have in one run; more are dropped and counted, so that hostile data cannot fill Prometheus."""

STEP_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
EVALUATION_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
COMMIT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


REASONS = ("answer", "checksum", "image", "json", "length", "size", "template", "text")
"""Classes of fault of a sample (`Quarantined.reason`) that a counter of them begins with."""
WAITS = ("ingest", "evaluation")
"""What a learner stands still for."""


class Source(NamedTuple):
    """Whose a value is: labels of every metric but `build_info`.

    Attributes:
        run: the run's name.
        method: that learned.
    """

    run: str
    method: str


@dataclass(frozen=True)
class MetricDefinition:
    """One row of the table.

    Attributes:
        name: without the prefix.
        kind: Prometheus type.
        help: one sentence for whoever sees the name first.
        labels: besides those of `Source`.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: dict[str, MetricDefinition] = {
    row.name: row
    for row in (
        MetricDefinition("task_score_points", "gauge", "Newest score of a task, 0-100.", ("task", "scorer")),
        MetricDefinition("task_best_score_points", "gauge", "Best strict chunk-end score of a task so far.", ("task",)),
        MetricDefinition(
            "task_forgetting_points", "gauge", "Best score so far less the score now (strict, chunk ends).", ("task",)
        ),
        MetricDefinition(
            "task_forgetting_low_points", "gauge", "Lower end of the 95% interval of task_forgetting_points.", ("task",)
        ),
        MetricDefinition("task_probe_points", "gauge", "Newest score of a task's probe between chunk ends.", ("task",)),
        MetricDefinition(
            "task_probe_low_points", "gauge", "Lower end of the 95% interval of task_probe_points.", ("task",)
        ),
        MetricDefinition(
            "task_probe_high_points", "gauge", "Upper end of the 95% interval of task_probe_points.", ("task",)
        ),
        MetricDefinition("probe_version", "gauge", "Optimizer steps in the weights that were probed last."),
        MetricDefinition(
            "task_following_ratio", "gauge", "Share of answers in the form the instruction asks for.", ("task",)
        ),
        MetricDefinition(
            "task_disagreements", "gauge", "Answers that strict and published scorers judge differently.", ("task",)
        ),
        MetricDefinition(
            "average_performance_points", "gauge", "AP: mean score of the seen tasks after the newest chunk."
        ),
        MetricDefinition("mean_average_performance_points", "gauge", "MAP: mean of AP over the chunks so far."),
        MetricDefinition(
            "backward_transfer_points", "gauge", "BWT: score now less the score when learned.", ("variant",)
        ),
        MetricDefinition("mean_average_forgetting_points", "gauge", "MAF: mean forgetting over chunks.", ("variant",)),
        MetricDefinition("mean_instruction_following_points", "gauge", "MIF: mean following rate over chunks, 0-100."),
        MetricDefinition("own_metric_points", "gauge", "Newest value of a metric of one's own.", ("metric",)),
        MetricDefinition("prequential_loss", "gauge", "Loss in nats on the newest samples before learning from them."),
        MetricDefinition(
            "prequential_accuracy_ratio", "gauge", "Accuracy on a task's newest samples before learning.", ("task",)
        ),
        MetricDefinition("samples_learned_total", "counter", "Samples learned and committed.", ("task",)),
        MetricDefinition("samples_quarantined_total", "counter", "Samples that could not be read.", ("reason",)),
        MetricDefinition(
            "steps_skipped_total", "counter", "Steps not taken: their loss or gradient was not finite.", ("reason",)
        ),
        MetricDefinition("run_finished", "gauge", "Whether everything is learned and scored: 1, else 0."),
        MetricDefinition("chunks_completed_total", "counter", "Chunks learned to their end."),
        MetricDefinition("chunks_scored", "gauge", "Chunks up to the newest that has a score of its end."),
        MetricDefinition("stream_position", "gauge", "Position of the next sample to learn."),
        MetricDefinition("stream_lag_samples", "gauge", "Samples that have arrived and are not learned yet."),
        MetricDefinition("arrivals_taken_total", "counter", "Shards taken into a stream that goes on."),
        MetricDefinition("arrivals_set_aside_total", "counter", "Arrivals that are not learned.", ("reason",)),
        MetricDefinition("arrivals_waiting", "gauge", "Shards that lie at the source and are not taken yet."),
        MetricDefinition(
            "arrivals_held_back", "gauge", "Whether they are left there because the learner is behind: 1, else 0."
        ),
        MetricDefinition(
            "oldest_arrival_timestamp_seconds",
            "gauge",
            "When the oldest sample that is not learned yet arrived (Unix time); 0: none.",
        ),
        MetricDefinition("learner_step_seconds", "histogram", "Time of one learning step."),
        MetricDefinition("learner_wait_seconds_total", "counter", "Time the learner stood still.", ("reason",)),
        MetricDefinition("ingest_queue_batches", "gauge", "Batches ready for the learner."),
        MetricDefinition("snapshot_version", "gauge", "Optimizer steps in the newest published snapshot."),
        MetricDefinition("snapshot_age_seconds", "gauge", "Time since the newest snapshot was published."),
        MetricDefinition(
            "evaluation_lag_versions", "gauge", "Optimizer steps between the learner and the newest score."
        ),
        MetricDefinition("evaluation_seconds", "histogram", "Time to evaluate one task.", ("task",)),
        MetricDefinition(
            "router_expert_share_ratio",
            "gauge",
            "Share of the routes (bank token: of weights) of an expert.",
            ("bank", "expert"),
        ),
        MetricDefinition("router_entropy_nats", "gauge", "Entropy of the expert shares of a bank.", ("bank",)),
        MetricDefinition(
            "router_drift_ratio", "gauge", "Share of a probe's routes that moved since its task was learned.", ("bank",)
        ),
        MetricDefinition(
            "expert_drift_ratio",
            "gauge",
            "Relative change of its experts' output since its task was learned.",
            ("bank",),
        ),
        MetricDefinition("actor_restarts_total", "counter", "Restarts of an actor.", ("actor",)),
        MetricDefinition("commit_seconds", "histogram", "Time to write a commit."),
        MetricDefinition("commit_bytes", "gauge", "Size of the newest commit."),
        MetricDefinition("last_commit_timestamp_seconds", "gauge", "When the newest commit was written (Unix time)."),
    )
}
BUILD_LABELS = ("version", "python", "torch", "transformers", "peft", "ray")


class BucketCounts:
    """Counts of observed times, kept where they are measured and handed to the store as a whole.

    Args:
        bounds: upper ends of the buckets in seconds, rising; the last, infinite one is added.
    """

    def __init__(self, bounds: Sequence[float] = STEP_BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds
