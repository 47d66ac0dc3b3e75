"""Any image-text-to-text model takes the embedded model's place with one config line, and files its data's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from models import TINY, save
from running import ROOT, streamcvit

from streamcvit.data.shards.index import StreamIndex
from streamcvit.launch import execute
from streamcvit.learning import read_ledger
from streamcvit.pipeline import load_config
from streamcvit.run.loading import local_feed
from streamcvit.run.stream import prepare_stream
from streamcvit.run.workers import LearnerWorker


@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_model_of_another_family_learns_and_is_scored(tmp_path: Path, kind: str) -> None:
    folder = save(TINY[kind](), tmp_path / kind)
    settings = [
        f"out={tmp_path}",
        f"model.name_or_path={folder}",
        "stream.scenario.chunks=2",
        "stream.scenario.samples_per_chunk=8",
        "stream.test_samples=2",
        "learner.batch_size=4",
    ]
    config = load_config(ROOT / "pipelines" / "embedded.yaml", settings)
    config = config.model_copy(update={"methods": {name: config.methods[name] for name in ("zero-shot", "smolora")}})
    execute(config, local=True)
    run = tmp_path / config.name / "smolora"
    losses = read_ledger(run / "ledger")["loss"].to_pylist()
    assert len(losses) == 16
    assert all(math.isfinite(loss) for loss in losses)
    assert {row["chunk"] for row in pq.read_table(run / "scores.parquet").to_pylist()} == {0, 1}
    assert json.loads((run / "run.json").read_text())["finished"]


def test_real_files_are_learned_and_every_sample_is_accounted_for(shared_dir: Path, tmp_path: Path) -> None:
    pipeline, data = str(ROOT / "pipelines" / "real-small.yaml"), shared_dir / "real"
    done = streamcvit("run", pipeline, "--data", str(data), "--local", "--method", "smolora", cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "real-small"
    index = StreamIndex.open(folder / "stream")
    assert index.n_chunks == 8
    rows = {task: len(json.loads((data / task / "train.json").read_text())) for task in index.tasks}
    lost = folder / "stream.quarantined.jsonl"
    unread = len(lost.read_text().splitlines()) if lost.exists() else 0
    assert len(index) + unread == sum(rows.values())
    run = folder / "smolora"
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    quarantined = [event["position"] for event in events if event["event"] == "quarantine"]
    learned = read_ledger(run / "ledger")["position"].to_pylist()
    assert sorted(learned + quarantined) == list(range(len(index)))
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    final = {row["task"]: row["n"] for row in scores if row["chunk"] == 7 and row["family"] == "strict"}
    assert final == {task: len(json.loads((data / task / "test.json").read_text())) for task in index.tasks}
    assert "report:" in done.stdout


def test_a_chunk_asked_for_out_of_order_gets_its_boundary_all_the_same(tmp_path: Path) -> None:
    """After a restart, calls that were in flight come again in any order."""
    settings = ["stream.scenario.chunks=3", "stream.scenario.samples_per_chunk=16", "stream.test_samples=2"]
    digests = {}
    for name, order in (("forward", (0, 1, 2)), ("mixed", (1, 0, 2)), ("last", (2, 1, 0))):
        config = load_config(ROOT / "pipelines" / "embedded.yaml", [*settings, f"out={tmp_path}"], name=name)
        stream = str(tmp_path / name / "stream")
        prepare_stream(config, Path(stream))
        worker = LearnerWorker(config, stream, local_feed(config, stream))
        reports = {chunk: worker.learn_chunk("lora", chunk) for chunk in order}
        digests[name] = [reports[chunk].digest for chunk in range(3)]
    assert digests["forward"] == digests["mixed"] == digests["last"]
    assert len(set(digests["forward"])) == 3
