"""What is measured, under which name, and the newest committed value of each.

`METRICS` is the one table of names, kinds, help texts and labels; `MetricStore` holds absolute values (never
increments, so that a restarted monitor that is told again, or reads the run folder again, shows the same numbers) and
hands them to Prometheus as a custom collector. Every metric but `build_info` carries the label `run`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from streamcvit.monitoring.record import RunRecord

log = logging.getLogger(__name__)

PREFIX = "streamcvit_"
MAX_SERIES = 512
"""Series a metric may have in one run; more are dropped and counted, so that hostile data cannot fill Prometheus."""

STEP_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
EVALUATION_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
COMMIT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class MetricDefinition:
    """One row of the table.

    Attributes:
        name: without the prefix.
        kind: Prometheus type.
        help: one sentence for whoever sees the name first.
        labels: besides `run`.
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
        MetricDefinition("chunks_completed_total", "counter", "Chunks learned to their end."),
        MetricDefinition("stream_position", "gauge", "Position of the next sample to learn."),
        MetricDefinition("stream_lag_samples", "gauge", "Samples that have arrived and are not learned yet."),
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
        MetricDefinition("actor_restarts_total", "counter", "Restarts of an actor.", ("actor",)),
        MetricDefinition("commit_seconds", "histogram", "Time to write a commit."),
        MetricDefinition("commit_bytes", "gauge", "Size of the newest commit."),
        MetricDefinition("last_commit_timestamp_seconds", "gauge", "When the newest commit was written (Unix time)."),
    )
}
BUILD_LABELS = ("version", "python", "torch", "transformers", "peft", "ray")


def telling_rows(table: pa.Table) -> pa.Table:
    """Those rows of `scores.parquet` that `MetricStore.scores` comes to the same values with, a few a task.

    They are the newest of each task, family and kind, and the first of the best.
    """
    table = table.filter(pc.is_valid(table["score"])).sort_by("version")
    group = np.zeros(len(table), np.int64)
    for name in ("task", "family", "kind"):
        codes = table[name].combine_chunks().dictionary_encode()
        group = group * max(1, len(codes.dictionary)) + codes.indices.to_numpy()
    _, from_the_end = np.unique(group[::-1], return_index=True)
    downwards = np.lexsort((np.arange(len(table)), -table["score"].to_numpy(), group))
    _, first = np.unique(group[downwards], return_index=True)
    return table.take(pa.array(np.union1d(len(table) - 1 - from_the_end, downwards[first])))


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


class MetricStore(Collector):
    """The newest committed value of every metric of one run or several; safe to use from several threads.

    Register it in a `prometheus_client.CollectorRegistry`, or hand it to `exporter.serve`. Every method takes the run's
    name first and *absolute* values: told twice, it shows the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[str, ...], Any]] = {name: {} for name in METRICS}
        self._best: dict[tuple[str, str], tuple[float, float]] = {}  # (run, task) -> best score, half its interval
        self._published: dict[str, float] = {}
        self._build: dict[str, str] = {}
        self._dropped: dict[tuple[str, str], int] = {}

    # -- what actors tell ------------------------------------------------------------------------------------------

    def samples_learned(self, run: str, task: str, total: int) -> None:
        """Samples of a task learned and committed so far."""
        self._set("samples_learned_total", run, total, task)

    def quarantined(self, run: str, reason: str, total: int) -> None:
        """Samples that could not be read so far, by class of fault."""
        self._set("samples_quarantined_total", run, total, reason)

    def steps_skipped(self, run: str, totals: Mapping[str, int]) -> None:
        """Steps that were not taken so far, by what was not finite; 0 is told too, so that a rate can be taken."""
        for reason in ("loss", "gradient"):
            self._set("steps_skipped_total", run, totals.get(reason, 0), reason)

    def chunk_done(self, run: str, total: int) -> None:
        """Chunks learned to their end so far."""
        self._set("chunks_completed_total", run, total)

    def position(self, run: str, position: int, available: int | None = None) -> None:
        """Position of the next sample to learn; `available` is how many samples have arrived in all."""
        self._set("stream_position", run, position)
        if available is not None:
            self._set("stream_lag_samples", run, max(0, available - position))

    def prequential(self, run: str, loss: float, accuracy: Mapping[str, float] | None = None) -> None:
        """Loss in nats and accuracy (0..1) by task on the newest samples, before learning from them."""
        self._set("prequential_loss", run, loss)
        for task, ratio in (accuracy or {}).items():
            self._set("prequential_accuracy_ratio", run, ratio, task)

    def scores(self, run: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """New rows of `scores.parquet`, oldest first: task scores, best so far, forgetting, following, disagreements.

        The interval of forgetting takes best and present score as independent, which is wider than the paired one.
        """
        for row in rows:
            if row["kind"] == "zero" or row["score"] is None:
                continue
            task, score = row["task"], float(row["score"])
            self._set("task_score_points", run, score, task, row["family"])
            if row["family"] != "strict":
                continue
            if row.get("following") is not None:
                self._set("task_following_ratio", run, float(row["following"]), task)
            if row["kind"] != "boundary":
                continue
            if row.get("disagreements") is not None:
                self._set("task_disagreements", run, int(row["disagreements"]), task)
            low, high = row.get("low"), row.get("high")
            best, below = self._best.get((run, task), (-math.inf, 0.0))
            if score > best:
                best, below = score, score - low if low is not None else 0.0
                self._best[run, task] = best, below
            above = high - score if high is not None else 0.0
            self._set("task_best_score_points", run, best, task)
            self._set("task_forgetting_points", run, best - score, task)
            self._set("task_forgetting_low_points", run, best - score - math.hypot(below, above), task)

    def forgetting(self, run: str, points: Mapping[str, float], low: Mapping[str, float] | None = None) -> None:
        """Best score less score now by task where it was computed elsewhere; `low` is the interval's lower end."""
        for task, value in points.items():
            self._set("task_forgetting_points", run, value, task)
        for task, value in (low or {}).items():
            self._set("task_forgetting_low_points", run, value, task)

    def summary(self, run: str, summary: Mapping[str, Any]) -> None:
        """`summary.json`: AP, MAP, BWT, MAF, MIF, and metrics of one's own."""
        for name, entry in summary.get("metrics", {}).items():
            value = entry.get("value") if isinstance(entry, Mapping) else None
            if value is None:
                continue
            kind, _, variant = name.partition("_")
            if name == "ap":
                self._set("average_performance_points", run, value)
            elif name == "map":
                self._set("mean_average_performance_points", run, value)
            elif name == "mif":
                self._set("mean_instruction_following_points", run, value)
            elif kind == "bwt":
                self._set("backward_transfer_points", run, value, variant)
            elif kind == "maf":
                self._set("mean_average_forgetting_points", run, value, variant)
            elif name in summary.get("own_metrics", ()):
                self._set("own_metric_points", run, value, name)

    def step_seconds(self, run: str, buckets: BucketCounts) -> None:
        """Times of all learning steps so far."""
        self._set_histogram("learner_step_seconds", run, buckets)

    def wait_seconds(self, run: str, reason: str, total: float) -> None:
        """Time the learner stood still so far: `ingest`, `evaluation` or `commit`."""
        self._set("learner_wait_seconds_total", run, total, reason)

    def queue(self, run: str, batches: int) -> None:
        """Batches that are ready for the learner."""
        self._set("ingest_queue_batches", run, batches)

    def snapshot(self, run: str, version: int, published: float | None = None) -> None:
        """Newest published snapshot: its optimizer steps and its Unix time (now, unless told)."""
        self._set("snapshot_version", run, version)
        with self._lock:
            self._published[run] = time.time() if published is None else published

    def evaluation_seconds(self, run: str, task: str, buckets: BucketCounts) -> None:
        """Times of all evaluations of a task so far."""
        self._set_histogram("evaluation_seconds", run, buckets, task)

    def evaluation_lag(self, run: str, versions: int) -> None:
        """Optimizer steps between the learner and the snapshot of the newest score."""
        self._set("evaluation_lag_versions", run, versions)

    def expert_share(self, run: str, bank: str, shares: Sequence[float]) -> None:
        """Share of the routes that goes to each expert of a bank (sum 1); sets the bank's entropy too."""
        for expert, share in enumerate(shares):
            self._set("router_expert_share_ratio", run, share, bank, str(expert))
        self.entropy(run, bank, entropy_nats(shares))

    def entropy(self, run: str, bank: str, nats: float) -> None:
        """Entropy of a bank's expert shares."""
        self._set("router_entropy_nats", run, nats, bank)

    def restarts(self, run: str, actor: str, total: int) -> None:
        """Restarts of an actor so far."""
        self._set("actor_restarts_total", run, total, actor)

    def commit(self, run: str, buckets: BucketCounts, size_bytes: int, written: float) -> None:
        """Times of all commits so far, size of the newest in bytes and its Unix time."""
        self._set_histogram("commit_seconds", run, buckets)
        self._set("commit_bytes", run, size_bytes)
        self._set("last_commit_timestamp_seconds", run, written)

    def build_info(self, **versions: str) -> None:
        """Versions of the software: any of `BUILD_LABELS`."""
        with self._lock:
            self._build = {label: str(versions.get(label, "")) for label in BUILD_LABELS}

    def load(self, record: RunRecord, run: str | None = None) -> None:
        """Set all that a run folder tells; a restarted monitor starts from here."""
        run = run or record.method
        for task in dict.fromkeys(record.ledger.task):
            self.samples_learned(run, task, int((record.ledger.task == task).sum()))
        reasons = [str(event.get("reason", "unknown")) for event in record.events_of("quarantine")]
        for reason in dict.fromkeys(reasons):
            self.quarantined(run, reason, reasons.count(reason))
        restarts: dict[str, int] = {}
        for event in record.events_of("restart"):
            actor = str(event.get("actor", "unknown"))
            # One line may tell of several restarts: it then says how many there were by then.
            restarts[actor] = max(restarts.get(actor, 0) + 1, int(event.get("count") or 0))
        for actor, total in restarts.items():
            self.restarts(run, actor, total)
        self.position(run, record.position, record.total_samples or None)
        chunks = record.chunk_events()
        self.chunk_done(run, len(chunks))
        self.steps_skipped(run, record.skipped)
        for reason in ("ingest", "evaluation"):
            self.wait_seconds(run, reason, sum(float(event.get(f"wait_{reason}_s") or 0) for event in chunks))
        if chunks:
            newest = chunks[-1]
            for bank, shares in (newest.get("expert_share") or {}).items():
                self.expert_share(run, bank, shares)
            if newest.get("loss") is not None:
                recent = record.ledger.chunk == newest["chunk"]
                tasks, correct = record.ledger.task[recent], record.ledger.correct[recent]
                accuracy = {task: float(correct[tasks == task].mean()) for task in dict.fromkeys(tasks)}
                self.prequential(run, float(newest["loss"]), accuracy)
        # Live scores of a version come before the chunk end of a later one.
        self.scores(run, sorted(record.scores, key=lambda row: row["version"]))
        self.summary(run, record.summary)

    # -- what Prometheus asks --------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """All values, as `prometheus_client` wants them."""
        with self._lock:
            values = {name: dict(series) for name, series in self._values.items()}
            published, build, dropped = dict(self._published), dict(self._build), dict(self._dropped)
        now = time.time()
        values["snapshot_age_seconds"] = {(run,): max(0.0, now - at) for run, at in published.items()}
        for name, row in METRICS.items():
            if not values[name]:
                continue
            labels = ("run", *row.labels)
            if row.kind == "histogram":
                histogram = HistogramMetricFamily(PREFIX + name, row.help, labels=labels)
                for key, (bounds, counts, total) in sorted(values[name].items()):
                    histogram.add_metric(key, _cumulative(bounds, counts), sum_value=total)
                yield histogram
                continue
            kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            family = kind(PREFIX + name.removesuffix("_total"), row.help, labels=labels)
            for key, value in sorted(values[name].items()):
                family.add_metric(key, value)
            yield family
        if dropped:
            help_text = f"Values not shown because a metric would pass {MAX_SERIES} series."
            lost = CounterMetricFamily(PREFIX + "series_dropped", help_text, labels=("run", "metric"))
            for key, count in sorted(dropped.items()):
                lost.add_metric(key, count)
            yield lost
        if build:
            info = GaugeMetricFamily(PREFIX + "build_info", "Versions of the software; always 1.", labels=BUILD_LABELS)
            info.add_metric([build[label] for label in BUILD_LABELS], 1)
            yield info

    def _set(self, name: str, run: str, value: Any, *labels: str) -> None:
        key = (str(run), *(str(label) for label in labels))
        with self._lock:
            series = self._values[name]
            if key not in series and sum(other[0] == key[0] for other in series) >= MAX_SERIES:
                if (key[0], name) not in self._dropped:
                    log.warning("metric %s has %d series in run %s; more are dropped", name, MAX_SERIES, run)
                self._dropped[key[0], name] = self._dropped.get((key[0], name), 0) + 1
                return
            series[key] = value

    def _set_histogram(self, name: str, run: str, buckets: BucketCounts, *labels: str) -> None:
        self._set(name, run, (buckets.bounds, tuple(buckets.counts), buckets.total), *labels)


def entropy_nats(shares: Sequence[float]) -> float:
    """Entropy of shares that sum to 1, in nats: 0 when one expert takes all, ln(n) when n share alike."""
    return -sum(share * math.log(share) for share in shares if share > 0)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    total, rows = 0, []
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows
