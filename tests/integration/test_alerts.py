"""Whoever watches with Prometheus sees what is forgotten, and is told; nobody is told of what is not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, streamcvit
from watching import Prometheus, free_port, watching

from streamcvit.monitoring.record import RunRecord

# Tasks that share one instruction, a few at a time, at a rate that plain LoRA forgets with.
WORDS = [
    "run", str(ROOT / "pipelines/embedded.yaml"), "--name", "seen", "--method", "lora", "--method", "joint",
    "--set", "stream.scenario.chunks=8", "--set", "stream.scenario.samples_per_chunk=160",
    "--set", "stream.test_samples=30", "--set", "evaluation.draws=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prometheus, list[dict[str, Any]]]:
    """Run folder of LoRA and joint training, the Prometheus that watched them, and the alerts that came."""
    cwd, port = tmp_path_factory.mktemp("watched"), free_port()
    with watching(port, cwd) as (prometheus, alerts):
        done = streamcvit(*WORDS, "--set", f"monitor.port={port}", cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        time.sleep(2)  # two evaluations of the rules
        yield cwd / "runs" / "seen", prometheus, alerts


def test_prometheus_holds_what_the_run_folder_says(seen: tuple[Path, Prometheus, list]) -> None:
    folder, prometheus, _ = seen
    for method in ("lora", "joint"):
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


def test_sequential_lora_is_told_to_forget_and_joint_training_is_not(seen: tuple[Path, Prometheus, list]) -> None:
    folder, _, alerts = seen
    told = {(a["labels"]["alertname"], a["labels"]["method"]) for a in alerts}
    assert told == {("StreamcvitTaskForgotten", "lora")}
    summary = json.loads((folder / "lora" / "summary.json").read_text())
    worst = max(summary["forgetting"], key=summary["forgetting"].get)
    assert worst in {alert["labels"]["task"] for alert in alerts}
    assert all(alert["annotations"]["summary"].startswith("seen/lora has forgotten") for alert in alerts)
