"""What Prometheus reads: names, values, bounds, and the endpoint itself."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from synthetic_run import TASKS, write_run

from streamcvit.errors import UserError
from streamcvit.monitoring.definitions import COMMIT_BOUNDS, MAX_SERIES, METRICS, PREFIX, BucketCounts, Source
from streamcvit.monitoring.exporter import Server, serve
from streamcvit.monitoring.metrics import MetricStore, telling_rows
from streamcvit.monitoring.record import RunRecord

LORA, SMOLORA = Source("demo", "lora"), Source("demo", "smolora")
Samples = dict[tuple[str, frozenset], float]


def row(task: str, score: float, chunk: int = 0, kind: str = "boundary", family: str = "strict", **more) -> dict:
    return {"task": task, "score": score, "chunk": chunk, "kind": kind, "family": family, "version": chunk, **more}


def filled_store() -> MetricStore:
    """A store in which every metric has a value."""
    store, buckets = MetricStore(), BucketCounts((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        buckets.observe(seconds)
    store.samples_learned(LORA, "digit", 640)
    store.quarantined(LORA, "image", 2)
    store.chunk_done(LORA, 3)
    store.position(LORA, 640, 1000)
    store.steps_skipped(LORA, {"loss": 2})
    store.prequential(LORA, 0.7, {"digit": 0.5})
    store.scores(LORA, [row("digit", 60.0, following=0.9, disagreements=4, low=50.0, high=70.0), row("digit", 20.0, 1)])
    store.probes(LORA, [row("digit", 40.0, 2, kind="live", low=20.0, high=60.0)])
    store.summary(
        LORA,
        {
            "metrics": {n: {"value": 1.5} for n in ("ap", "map", "mif", "bwt_first", "bwt_last", "maf_best", "mine")},
            "own_metrics": ["mine"],
        },
    )
    store.step_seconds(LORA, buckets)
    store.waits(LORA, 0, {"ingest": 1.25})
    store.finished(LORA, False)
    store.queue(LORA, 4)
    store.snapshot(LORA, 80, time.time() - 5)
    store.evaluation_seconds(LORA, "digit", buckets)
    store.expert_share(LORA, "visual", [0.5, 0.5, 0.0])
    store.drift(LORA, "visual", 0.25, 1.5)
    store.restarts(LORA, "learner", 1)
    store.arrivals(LORA, {"taken": 3, "waiting": 1, "full": True, "oldest": 1.7e9, "aside": {"late": 2}})
    store.commit(LORA, BucketCounts(COMMIT_BOUNDS), 1024, 1.7e9)
    store.build_info(version="0.1.0", torch="2.13.0")
    return store


def text_of(store: MetricStore) -> str:
    registry = CollectorRegistry()
    registry.register(store)
    return generate_latest(registry).decode()


def samples_of(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[PREFIX + name, frozenset({**LORA._asdict(), **labels}.items())]


@pytest.fixture
def endpoint() -> Iterator[Server]:
    with serve(filled_store()) as server:
        yield server


def test_every_metric_of_the_table_is_scraped_over_http(endpoint: Server) -> None:
    with urllib.request.urlopen(endpoint.url) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    for name, metric in METRICS.items():
        family = families[PREFIX + name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {"run", "method", *metric.labels}
    assert set(families) == {PREFIX + name.removesuffix("_total") for name in METRICS} | {PREFIX + "build_info"}


def test_counters_end_in_total_and_times_in_seconds() -> None:
    for name, metric in METRICS.items():
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.kind != "histogram" or name.endswith("_seconds"), name


def test_values_are_those_told() -> None:
    samples = samples_of(text_of(filled_store()))
    assert value(samples, "samples_learned_total", task="digit") == 640
    assert value(samples, "stream_position") == 640
    assert value(samples, "stream_lag_samples") == 360
    assert value(samples, "backward_transfer_points", variant="first") == 1.5
    assert value(samples, "router_expert_share_ratio", bank="visual", expert="2") == 0
    assert value(samples, "router_entropy_nats", bank="visual") == pytest.approx(math.log(2))
    assert value(samples, "router_drift_ratio", bank="visual") == 0.25
    assert value(samples, "expert_drift_ratio", bank="visual") == 1.5
    assert 5 <= value(samples, "snapshot_age_seconds") < 60


def test_a_bucket_counts_what_is_at_most_its_bound() -> None:
    samples = samples_of(text_of(filled_store()))
    counts = [value(samples, "learner_step_seconds_bucket", le=bound) for bound in ("0.1", "1.0", "+Inf")]
    assert counts == [2, 3, 4]
    assert value(samples, "learner_step_seconds_count") == 4
    assert value(samples, "learner_step_seconds_sum") == pytest.approx(7.65)


def test_forgetting_is_best_less_now_with_an_interval_of_both() -> None:
    store = MetricStore()
    store.scores(LORA, [row("digit", 80.0, 0, low=74.0, high=86.0), row("digit", 90.0, 1, low=82.0, high=94.0)])
    store.scores(LORA, [row("digit", 40.0, 2, low=31.0, high=46.0)])
    samples = samples_of(text_of(store))
    assert value(samples, "task_best_score_points", task="digit") == 90
    assert value(samples, "task_forgetting_points", task="digit") == 50
    assert value(samples, "task_forgetting_low_points", task="digit") == pytest.approx(50 - math.hypot(8, 6))


FAMILIES_PROBED = [(99.0, "strict"), (12.0, "strcvit")]


def test_probes_and_published_scores_move_neither_best_nor_forgetting() -> None:
    store = MetricStore()
    store.scores(LORA, [row("digit", 50.0), row("digit", 70.0, family="strcvit")])
    probes = [row("digit", score, 7, "live", family, low=80.0, high=100.0) for score, family in FAMILIES_PROBED]
    store.probes(LORA, probes)
    store.scores(LORA, [row("digit", 3.0, chunk=-1, kind="zero")])
    samples = samples_of(text_of(store))
    assert value(samples, "task_best_score_points", task="digit") == 50
    assert value(samples, "task_forgetting_points", task="digit") == 0
    assert value(samples, "task_score_points", task="digit", scorer="strict") == 50
    shown = [value(samples, f"task_probe_{end}points", task="digit") for end in ("low_", "", "high_")]
    assert shown == [80, 99, 100] and value(samples, "probe_version") == 7
    assert value(samples, "task_score_points", task="digit", scorer="strcvit") == 70


def test_a_run_folder_told_twice_shows_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamcvit.monitoring.metrics.time.time", lambda: 2e9)  # what has an age gets no older
    record = RunRecord.load(write_run(tmp_path / "smolora", "smolora"))
    store = MetricStore()
    store.load(record)
    once = text_of(store)
    store.load(record)
    assert text_of(store) == once
    samples = samples_of(once)
    learned = [
        samples[PREFIX + "samples_learned_total", frozenset({("run", "smolora"), ("method", "smolora"), ("task", t)})]
        for t in TASKS
    ]
    assert sum(learned) == 960
    for task, lost in record.forgetting().items():
        key = (
            PREFIX + "task_forgetting_points",
            frozenset({("run", "smolora"), ("method", "smolora"), ("task", task)}),
        )
        assert samples[key] == pytest.approx(max(0.0, lost))
    assert (
        samples[
            PREFIX + "samples_quarantined_total",
            frozenset({("run", "smolora"), ("method", "smolora"), ("reason", "image")}),
        ]
        == 2
    )
    assert samples[PREFIX + "chunks_completed_total", frozenset({("run", "smolora"), ("method", "smolora")})] == 15


def test_runs_are_told_apart() -> None:
    store = MetricStore()
    store.position(LORA, 1)
    store.position(SMOLORA, 2)
    samples = samples_of(text_of(store))
    assert samples[PREFIX + "stream_position", frozenset(SMOLORA._asdict().items())] == 2
    assert value(samples, "stream_position") == 1


def test_series_are_bounded_and_what_is_left_out_is_counted() -> None:
    store = MetricStore()
    for i in range(MAX_SERIES + 10):
        store.quarantined(LORA, f"reason {i}", 1)
    store.quarantined(SMOLORA, "image", 1)
    samples = samples_of(text_of(store))
    assert sum(name == PREFIX + "samples_quarantined_total" for name, _ in samples) == MAX_SERIES + 1
    assert value(samples, "series_dropped_total", metric="samples_quarantined_total") == 10


def test_a_hostile_task_name_stays_a_label() -> None:
    name = 'a"} 1\nstreamcvit_fake 2\\'
    store = MetricStore()
    store.samples_learned(LORA, name, 7)
    samples = samples_of(text_of(store))
    assert value(samples, "samples_learned_total", task=name) == 7
    assert len(samples) == 1


def test_promtool_finds_nothing_to_mend() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([promtool, "check", "metrics"], input=text_of(filled_store()), text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_taken_port_is_a_users_mistake_with_a_fix(endpoint: Server) -> None:
    with pytest.raises(UserError, match="in use.*another port"):
        serve(MetricStore(), endpoint.port)


def test_a_number_that_is_no_port_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="no port"):
        serve(MetricStore(), 70000)


def test_a_closed_endpoint_frees_its_port() -> None:
    first = serve(MetricStore())
    first.close()
    serve(MetricStore(), first.port).close()


def test_the_root_leads_to_the_metrics_and_other_paths_nowhere() -> None:
    with serve(MetricStore()) as server:
        root = server.url.removesuffix("/metrics")
        with urllib.request.urlopen(root + "/") as answer:
            assert 'href="/metrics"' in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(root + "/../etc/passwd")
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(root + "/metrics", data=b"x")


@pytest.mark.parametrize("seed", range(20))
def test_the_telling_rows_of_a_long_stream_lead_to_the_same_values_as_all_of_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        row(
            str(rng.choice(["digit", "ocr"])),
            float(score),
            chunk,
            str(rng.choice(["boundary", "boundary", "unseen", "zero"])),
            str(rng.choice(["strict", "strcvit"])),
            low=float(score) - chunk,
        )
        for chunk, score in enumerate(rng.integers(0, 5, int(rng.integers(1, 80))))
    ]
    for each in rows:
        each["version"] //= 2  # a chunk without samples ends with the version of the one before
    few = telling_rows(pa.Table.from_pylist(rows)).to_pylist()
    assert len(few) <= 2 * 2 * 3 * 2  # tasks, families, kinds, newest and best
    assert scored(few) == scored(rows)


def scored(rows: list[dict]) -> list[tuple]:
    store = MetricStore()
    store.scores(LORA, rows)
    return sorted((s.name, *s.labels.values(), s.value) for metric in store.collect() for s in metric.samples)


def test_no_rows_at_all_tell_nothing() -> None:
    table = pa.Table.from_pylist([row("digit", 1.0)])
    assert telling_rows(table.slice(0, 0)).to_pylist() == []
    nothing = table.set_column(table.column_names.index("score"), "score", pa.array([None], pa.float64()))
    assert telling_rows(nothing).to_pylist() == []
