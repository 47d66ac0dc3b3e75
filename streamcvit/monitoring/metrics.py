"""The newest committed value of every metric.

`MetricStore` holds absolute values (never increments, so that a restarted monitor that is told again, or reads the run
folder again, shows the same numbers) and hands them to Prometheus as a custom collector. Every metric but `build_info`
carries the labels `run` and `method`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from streamcvit.monitoring.arriving import gauges, read_arrivals
from streamcvit.monitoring.definitions import (
    BUILD_LABELS,
    COMMIT_BOUNDS,
    EVALUATION_BOUNDS,
    MAX_SERIES,
    METRICS,
    PREFIX,
    REASONS,
    WAITS,
    BucketCounts,
    Source,
)
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.times import unix

log = logging.getLogger(__name__)


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


class MetricStore(Collector):
    """The newest committed value of every metric of one run or several; safe to use from several threads.

    Register it in a `prometheus_client.CollectorRegistry`, or hand it to `exporter.serve`. Every method takes a run and
    its method first, and *absolute* values: told twice, it shows the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[str, ...], Any]] = {name: {} for name in METRICS}
        self._best: dict[tuple[Source, str], tuple[float, float]] = {}  # best score of a task, half its interval
        self._published: dict[Source, float] = {}
        self._step: dict[Source, int] = {}
        self._available: dict[Source, int] = {}
        self._scored: dict[Source, int] = {}  # version of the newest score
        self._waits: dict[Source, dict[int, Mapping[str, float]]] = {}  # chunk -> reason -> seconds
        self._told: set[Source] = set()  # whose commits are told by who makes them
        self._build: dict[str, str] = {}
        self._dropped: dict[tuple[str, str, str], int] = {}

    # -- what actors tell ------------------------------------------------------------------------------------------

    def samples_learned(self, run: Source, task: str, total: int) -> None:
        """Samples of a task learned and committed so far."""
        self._set("samples_learned_total", run, total, task)

    def quarantined(self, run: Source, reason: str, total: int) -> None:
        """Samples that could not be read so far, by class of fault."""
        self._set("samples_quarantined_total", run, total, reason)

    def steps_skipped(self, run: Source, totals: Mapping[str, int]) -> None:
        """Steps that were not taken so far, by what was not finite; 0 is told too, so that a rate can be taken."""
        for reason in ("loss", "gradient"):
            self._set("steps_skipped_total", run, totals.get(reason, 0), reason)

    def chunk_done(self, run: Source, total: int) -> None:
        """Chunks learned to their end so far."""
        self._set("chunks_completed_total", run, total)

    def position(self, run: Source, position: int, available: int | None = None) -> None:
        """Position of the next sample to learn; `available` is how many samples have arrived in all."""
        self._set("stream_position", run, position)
        if available is not None:
            # A learner that has not looked for a while knows of fewer than there are.
            self._available[run] = available = max(available, self._available.get(run, 0))
            self._set("stream_lag_samples", run, max(0, available - position))

    def prequential(self, run: Source, loss: float, accuracy: Mapping[str, float] | None = None) -> None:
        """Loss in nats and accuracy (0..1) by task on the newest samples, before learning from them."""
        self._set("prequential_loss", run, loss)
        for task, ratio in (accuracy or {}).items():
            self._set("prequential_accuracy_ratio", run, ratio, task)

    def scores(self, run: Source, rows: Iterable[Mapping[str, Any]]) -> None:
        """New rows of `scores.parquet`, oldest first: task scores, best so far, forgetting, following, disagreements.

        Learning and scoring go on side by side: `evaluation_lag_versions` is counted from the newest of these rows.

        The interval of forgetting takes best and present score as independent, which is wider than the paired one.
        """
        for row in rows:
            if row["kind"] == "zero" or row["score"] is None:
                continue
            task, score = row["task"], float(row["score"])
            with self._lock:
                self._scored[run] = max(int(row["version"]), self._scored.get(run, 0))
            self._set("task_score_points", run, score, task, row["family"])
            if row["family"] != "strict":
                continue
            if row.get("following") is not None:
                self._set("task_following_ratio", run, float(row["following"]), task)
            if row["kind"] != "boundary":
                continue
            self._set("chunks_scored", run, int(row["chunk"]) + 1)
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

    def probes(self, run: Source, rows: Iterable[Mapping[str, Any]]) -> None:
        """New rows of `probes.jsonl`, oldest first; they move neither best nor forgetting."""
        for row in rows:
            self._set("probe_version", run, row["version"])
            if row["family"] == "strict":
                for name, column in (("", "score"), ("low_", "low"), ("high_", "high")):
                    self._set(f"task_probe_{name}points", run, row[column], row["task"])

    def summary(self, run: Source, summary: Mapping[str, Any]) -> None:
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

    def arrivals(self, run: Source, word: Mapping[str, Any]) -> None:
        """How the arrivals of a stream that goes on stand (`streamcvit.monitoring.arriving`); nothing for another."""
        for name, value, labels in gauges(word):
            self._set(name, run, value, *labels)

    def step_seconds(self, run: Source, buckets: BucketCounts) -> None:
        """Times of all learning steps so far."""
        self._set_histogram("learner_step_seconds", run, buckets)

    def waits(self, run: Source, chunk: int, seconds: Mapping[str, float]) -> None:
        """Time the learner stood still in a chunk so far, by reason (of `WAITS`)."""
        with self._lock:
            chunks = self._waits.setdefault(run, {})
            chunks[chunk] = seconds
            totals = {reason: sum(each.get(reason, 0.0) for each in chunks.values()) for reason in WAITS}
        for reason, total in totals.items():
            self._set("learner_wait_seconds_total", run, total, reason)

    def queue(self, run: Source, batches: int) -> None:
        """Batches that are ready for the learner."""
        self._set("ingest_queue_batches", run, batches)

    def snapshot(self, run: Source, version: int, published: float | None = None) -> None:
        """Newest published snapshot: its optimizer steps and its Unix time (now, unless told)."""
        self._set("snapshot_version", run, version)
        with self._lock:
            self._published[run] = time.time() if published is None else published
        self.step(run, version)

    def step(self, run: Source, step: int) -> None:
        """Optimizer steps taken; how far the newest score is behind follows."""
        with self._lock:
            self._step[run] = max(step, self._step.get(run, 0))

    def evaluation_seconds(self, run: Source, task: str, buckets: BucketCounts) -> None:
        """Times of all evaluations of a task so far."""
        self._set_histogram("evaluation_seconds", run, buckets, task)

    def expert_share(self, run: Source, bank: str, shares: Sequence[float]) -> None:
        """Share of the routes that goes to each expert of a bank (sum 1); sets the bank's entropy too."""
        for expert, share in enumerate(shares):
            self._set("router_expert_share_ratio", run, share, bank, str(expert))
        self.entropy(run, bank, entropy_nats(shares))

    def entropy(self, run: Source, bank: str, nats: float) -> None:
        """Entropy of a bank's expert shares."""
        self._set("router_entropy_nats", run, nats, bank)

    def drift(self, run: Source, bank: str, router: float, expert: float) -> None:
        """How far a bank's routes and experts moved since the tasks were last learned (`streamcvit.learning.drift`)."""
        self._set("router_drift_ratio", run, router, bank)
        self._set("expert_drift_ratio", run, expert, bank)

    def restarts(self, run: Source, actor: str, total: int) -> None:
        """Restarts of an actor so far."""
        self._set("actor_restarts_total", run, total, actor)

    def commit(self, run: Source, buckets: BucketCounts, size_bytes: int, written: float) -> None:
        """Times of all commits so far, size of the newest in bytes and its Unix time.

        Where nobody tells, the ends of chunks in the run folder do.
        """
        self._told.add(run)
        self._set_commit(run, buckets, size_bytes, written)

    def _set_commit(self, run: Source, buckets: BucketCounts, size_bytes: int, written: float) -> None:
        self._set_histogram("commit_seconds", run, buckets)
        self._set("commit_bytes", run, size_bytes)
        self._set("last_commit_timestamp_seconds", run, written)

    def build_info(self, **versions: str) -> None:
        """Versions of the software: any of `BUILD_LABELS`."""
        with self._lock:
            self._build = {label: str(versions.get(label, "")) for label in BUILD_LABELS}

    def begin(self, run: Source, tasks: Iterable[str], actors: Iterable[str] = ()) -> None:
        """Have every counter of a run that begins at 0, so that a rate can be taken of its first event; and those
        gauges that say how it fares."""
        zeros: list[tuple[str, Iterable[str]]] = [
            ("samples_learned_total", tasks),
            ("samples_quarantined_total", REASONS),
            ("steps_skipped_total", ("loss", "gradient")),
            ("learner_wait_seconds_total", WAITS),
            ("actor_restarts_total", actors),
        ]
        for name, labels in zeros:
            for label in labels:
                self._set_new(name, run, 0, label)
        for name in ("chunks_completed_total", "chunks_scored", "evaluation_lag_versions", "run_finished"):
            self._set_new(name, run, 0)

    def finished(self, run: Source, finished: bool) -> None:
        """Whether everything is learned and scored."""
        self._set("run_finished", run, int(finished))

    def load(self, record: RunRecord, run: Source | None = None) -> None:
        """Set all that a run folder tells; a restarted monitor starts from here."""
        run = run or Source(record.run_name, record.method)
        self.begin(run, record.tasks)
        learned = Counter(record.ledger.task.tolist())
        for task, total in learned.items():
            self.samples_learned(run, task, total)
        for reason, total in Counter(str(e.get("reason", "unknown")) for e in record.events_of("quarantine")).items():
            self.quarantined(run, reason, total)
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
        self.finished(run, record.finished)
        self.steps_skipped(run, record.skipped)
        for event in chunks:
            self.waits(run, event["chunk"], {reason: float(event.get(f"wait_{reason}_s") or 0) for reason in WAITS})
        if chunks:
            self._load_chunk(run, record, chunks)
        self.scores(run, sorted(record.scores, key=lambda row: row["version"]))
        self.probes(run, record.probes)
        self.arrivals(run, read_arrivals(record.folder))
        for task, seconds in record.evaluation_seconds.items():
            self.evaluation_seconds(run, task, _counted(EVALUATION_BOUNDS, seconds))
        self.summary(run, record.summary)

    def _load_chunk(self, run: Source, record: RunRecord, chunks: list[dict[str, Any]]) -> None:
        """What the ends of chunks tell; no boundary commit is missing in them, and the newest is at the last."""
        newest, at = chunks[-1], unix(chunks[-1].get("time"))
        for bank, shares in (newest.get("expert_share") or {}).items():
            self.expert_share(run, bank, shares)
        for bank, moved in (newest.get("drift") or {}).items():
            self.drift(run, bank, float(moved["router"]), float(moved["expert"]))
        if newest.get("loss") is not None:
            recent = record.ledger.chunk == newest["chunk"]
            tasks, correct = record.ledger.task[recent], record.ledger.correct[recent]
            accuracy = {task: float(correct[tasks == task].mean()) for task in dict.fromkeys(tasks)}
            self.prequential(run, float(newest["loss"]), accuracy)
        if at is not None:
            self.snapshot(run, int(newest.get("step") or 0), at)
            seconds = [float(event["commit_s"]) for event in chunks if event.get("commit_s") is not None]
            if seconds and run not in self._told:
                size = int(newest.get("commit_bytes") or 0)
                self._set_commit(run, _counted(COMMIT_BOUNDS, seconds), size, at)

    # -- what Prometheus asks --------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """All values, as `prometheus_client` wants them."""
        with self._lock:
            values = {name: dict(series) for name, series in self._values.items()}
            published, build, dropped = dict(self._published), dict(self._build), dict(self._dropped)
            lag: dict[tuple[str, ...], Any] = {
                run: max(0, step - self._scored.get(run, 0)) for run, step in self._step.items()
            }
        now = time.time()
        values["snapshot_age_seconds"] = {run: max(0.0, now - at) for run, at in published.items()}
        values["evaluation_lag_versions"].update(lag)
        for name, row in METRICS.items():
            if not values[name]:
                continue
            labels = (*Source._fields, *row.labels)
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
            lost = CounterMetricFamily(PREFIX + "series_dropped", help_text, labels=(*Source._fields, "metric"))
            for key, count in sorted(dropped.items()):
                lost.add_metric(key, count)
            yield lost
        if build:
            info = GaugeMetricFamily(PREFIX + "build_info", "Versions of the software; always 1.", labels=BUILD_LABELS)
            info.add_metric([build[label] for label in BUILD_LABELS], 1)
            yield info

    def _set(self, name: str, run: Source, value: Any, *labels: str, new: bool = False) -> None:
        key = (*run, *(str(label) for label in labels))
        with self._lock:
            series = self._values[name]
            if key in series and new:
                return
            if key not in series and sum(other[:2] == run for other in series) >= MAX_SERIES:
                lost = (*run, name)
                if lost not in self._dropped:
                    log.warning("metric %s has %d series in run %s; more are dropped", name, MAX_SERIES, "/".join(run))
                self._dropped[lost] = self._dropped.get(lost, 0) + 1
                return
            series[key] = value

    def _set_new(self, name: str, run: Source, value: Any, *labels: str) -> None:
        """Set what has no value yet."""
        self._set(name, run, value, *labels, new=True)

    def _set_histogram(self, name: str, run: Source, buckets: BucketCounts, *labels: str) -> None:
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


def _counted(bounds: Sequence[float], seconds: Iterable[float]) -> BucketCounts:
    buckets = BucketCounts(bounds)
    for each in seconds:
        buckets.observe(each)
    return buckets
