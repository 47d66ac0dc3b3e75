"""Probes on a real cluster: forgetting shows between chunk ends, whoever dies meanwhile, and nothing else changes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from chaos import restarts
from running import ROOT, boundaries, command, environment
from test_kill import actors_of

from streamcvit.models.snapshot import adapter_state, state_digest
from streamcvit.monitoring.probes import PROBES
from streamcvit.monitoring.record import RunRecord
from streamcvit.pipeline import load_config
from streamcvit.run.loading import local_feed
from streamcvit.run.workers import LearnerWorker

# Long enough for a learner to be met in the middle of it, twice.
CHUNK = [
    "stream.scenario.chunks=1",
    "stream.scenario.samples_per_chunk=320",
    "stream.test_samples=12",
    "learner.micro_batch=2",
]
LIVE = ["evaluation.probe_samples=4", "evaluation.probe_share=1", "cluster.backoff_seconds=0"]


def test_probes_go_on_while_learner_and_evaluator_die_and_the_run_is_that_without_them(tmp_path: Path) -> None:
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "live", "--method", "smolora"]
    words += [word for setting in (*CHUNK, *LIVE) for word in ("--set", setting)]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    folder, met = tmp_path / "runs" / "live", 0
    rows = folder / "smolora" / PROBES
    for victim in ("LearnerActor", "EvaluatorActor"):
        while process.poll() is None and not (rows.exists() and rows.stat().st_size > met):
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before a {victim} could be met in the middle of a chunk"
        met = rows.stat().st_size
        for actor in actors_of(process, victim):
            os.kill(actor.pid, signal.SIGKILL)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert {who for who, how in restarts(folder) if how == "died"} == {"learner", "evaluator"}

    digests: dict[int, str] = {}

    def note(method: str, learner: Any) -> None:
        digests[learner.step] = state_digest(adapter_state(learner.model))

    config = load_config(str(ROOT / "pipelines/embedded.yaml"), list(CHUNK), out=str(tmp_path), name="plain")
    stream = str(folder / "stream")
    end = LearnerWorker(config, stream, local_feed(config, stream), between=note).learn_chunk("smolora", 0)
    assert boundaries(folder / "smolora") == {0: end.digest}
    record = RunRecord.load(folder / "smolora")
    assert len(record.probes) > 3 and not record.problems
    for row in record.probes:
        assert row["digest"] == digests[row["version"]] and row["cursor"] == 8 * row["version"] < 320
        assert row["n"] == 4 and row["low"] <= row["score"] <= row["high"] and row["chunk"] == 0
    assert {row["kind"] for row in record.scores} == {"boundary"} and {row["n"] for row in record.scores} == {12}
