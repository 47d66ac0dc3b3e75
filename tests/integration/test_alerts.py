"""Whoever watches with Prometheus sees what is forgotten, and is told; nobody is told of what is not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running import ROOT, streamcvit
from watching import Prometheus, free_port, receiving, watching

from streamcvit.monitoring.alertlog import read_alerts
from streamcvit.monitoring.record import RunRecord

# Tasks that share one instruction, a few at a time, at a rate that plain LoRA forgets with.
WORDS = [
    "run", str(ROOT / "pipelines/embedded.yaml"), "--name", "seen",
    "--method", "lora", "--method", "smolora", "--method", "joint",
    "--set", "stream.scenario.chunks=8", "--set", "stream.scenario.samples_per_chunk=160",
    "--set", "stream.test_samples=30", "--set", "evaluation.draws=100",
]  # fmt: skip


class Seen(NamedTuple):
    """A run of LoRA, SMoLoRA and joint training, and who watched it.

    Attributes:
        began, ended: Unix time.
        folder: of the run.
        prometheus: that read its metrics.
        alerts: that came by way of the Alertmanager.
        posted: alerts that the run posted itself.
    """

    began: float
    ended: float
    folder: Path
    prometheus: Prometheus
    alerts: list[dict[str, Any]]
    posted: list[dict[str, Any]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    cwd, port = tmp_path_factory.mktemp("watched"), free_port()
    with watching(port, cwd) as (prometheus, alerts), receiving() as (hook, posted):
        began = time.time()
        more = ["--set", f"monitor.port={port}", "--set", f"monitor.notify={hook}"]
        done = streamcvit(*WORDS, *more, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        time.sleep(2)  # two evaluations of the rules
        yield Seen(began, time.time(), cwd / "runs" / "seen", prometheus, alerts, posted)


def test_prometheus_holds_what_the_run_folder_says(seen: Seen) -> None:
    folder, prometheus = seen.folder, seen.prometheus
    for method in ("lora", "smolora", "joint"):
        record = RunRecord.load(folder / method)
        labels = f'{{run="seen",method="{method}"}}'
        scores = prometheus.ask(f"last_over_time(streamcvit_task_score_points{labels}[10m])")
        final = {task: value for task, value in zip(record.tasks, record.matrix()[-1], strict=True) if value == value}
        assert {m["task"]: v for m, v in scores if m["scorer"] == "strict"} == pytest.approx(final)
        lost = prometheus.ask(f"last_over_time(streamcvit_task_forgetting_points{labels}[10m])")
        assert {m["task"]: v for m, v in lost} == pytest.approx(
            {task: max(0.0, value) for task, value in record.forgetting().items()}
        )
        for name, value in (("run_finished", 1), ("stream_lag_samples", 0), ("evaluation_lag_versions", 0)):
            assert [v for _, v in prometheus.ask(f"last_over_time(streamcvit_{name}{labels}[10m])")] == [value]
        commits = len(record.chunk_events())
        for name in ("commit_seconds_count", "chunks_completed_total", "chunks_scored"):
            assert [v for _, v in prometheus.ask(f"last_over_time(streamcvit_{name}{labels}[10m])")] == [commits]


def test_prometheus_holds_the_newest_probe_of_each_task_with_its_interval(seen: Seen) -> None:
    for method in ("lora", "smolora", "joint"):
        rows = [row for row in RunRecord.load(seen.folder / method).probes if row["family"] == "strict"]
        newest = {row["task"]: row for row in rows}
        assert newest or method != "lora"  # while its first chunk is learned there is nothing else to score
        for name, column in (("", "score"), ("low_", "low"), ("high_", "high")):
            query = f'last_over_time(streamcvit_task_probe_{name}points{{run="seen",method="{method}"}}[10m])'
            found = {labels["task"]: value for labels, value in seen.prometheus.ask(query)}
            assert found == pytest.approx({task: row[column] for task, row in newest.items()})


def test_sequential_lora_is_told_to_forget_and_joint_training_is_not(seen: Seen) -> None:
    folder, alerts = seen.folder, seen.alerts
    told = {(a["labels"]["alertname"], a["labels"]["method"]) for a in alerts}
    assert ("StreamcvitTaskForgotten", "lora") in told
    assert told <= {("StreamcvitTaskForgotten", "lora"), ("StreamcvitTaskForgotten", "smolora")}
    summary = json.loads((folder / "lora" / "summary.json").read_text())
    worst = max(summary["forgetting"], key=summary["forgetting"].get)
    assert worst in {alert["labels"]["task"] for alert in alerts}
    assert all(" has forgotten " in alert["annotations"]["summary"] for alert in alerts)


def test_the_run_itself_posts_and_keeps_the_same_alerts(seen: Seen) -> None:
    by_prometheus = {(a["labels"]["alertname"], a["labels"]["method"], a["labels"]["task"]) for a in seen.alerts}
    assert {(p["alertname"], p["labels"]["method"], p["labels"]["task"]) for p in seen.posted} == by_prometheus
    rows = read_alerts(seen.folder)
    assert {(r["alertname"], r["labels"]["method"], r["labels"]["task"]) for r in rows} == by_prometheus
    assert "Alerts that fired" in (seen.folder / "report.html").read_text()


def test_every_query_of_the_dashboard_finds_something(seen: Seen) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/streamcvit.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 25
    silent = [
        query
        for query in queries
        if not seen.prometheus.over(query.replace("$run", ".*").replace("$method", ".*"), seen.began, seen.ended)
    ]
    # This stream is whole; the numbers of one that goes on are read in test_followed_run.py.
    assert silent == [query for query in queries if "arriv" in query]
