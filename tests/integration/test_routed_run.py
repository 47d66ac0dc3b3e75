"""A run whose routers read instructions embedded by a sentence-transformers model, and what it tells of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from running import ROOT
from sentence_models import save_sentence_model

from streamcvit.adapters.instruction import encoder_identity
from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.learning import commit
from streamcvit.monitoring import RunRecord
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.pipeline import load_config

SMALL = [
    "stream.scenario.chunks=1",
    "stream.scenario.samples_per_chunk=16",
    "stream.test_samples=2",
    "evaluation.draws=10",
    "methods={smolora: {adapter: smolora}, strlora: {adapter: strlora, options: {num_experts: 4}}}",
]


def test_encoder_and_use_of_experts_are_recorded_and_another_encoder_is_refused(tmp_path: Path) -> None:
    encoder = save_sentence_model(tmp_path / "encoder")
    settings = [*SMALL, f"model.instruction_encoder={encoder}"]
    config = load_config(ROOT / "pipelines/embedded.yaml", settings, name="mine", out=str(tmp_path))
    page = execute(config, local=True)
    folder = config.folder("smolora")
    record = json.loads((folder / "run.json").read_text())
    assert record["instruction_encoder"] == {"name": str(encoder), "identity": encoder_identity(encoder)}
    newest = commit.list_commits(folder / "commits")[-1]
    adapter = json.loads((newest / "adapter" / "adapter_config.json").read_text())
    assert adapter["instruction_dim"] == 16
    assert commit.read_state(newest)["encoder"] == record["instruction_encoder"]["identity"]

    (event,) = RunRecord.load(config.folder("strlora")).chunk_events()
    assert list(event["expert_share"]) == ["instruction", "token"]
    assert all(sum(shares) == pytest.approx(1) for shares in event["expert_share"].values())
    assert "Token bank" in page.read_text(encoding="utf-8")
    registry = CollectorRegistry()
    store = MetricStore()
    registry.register(store)
    store.load(RunRecord.load(config.folder("strlora")))
    labels = {"run": config.name, "method": "strlora", "bank": "token"}
    entropy = registry.get_sample_value("streamcvit_router_entropy_nats", labels)
    assert entropy is not None and 0 <= entropy <= math.log(4)

    # Another model under the same name: scores that a stop left open must not be made with it.
    (folder / "run.json").write_text(json.dumps(record | {"finished": None}))
    shutil.rmtree(folder / "predictions")
    shutil.rmtree(encoder)
    save_sentence_model(tmp_path / "elsewhere", seed=1).rename(encoder)
    with pytest.raises(UserError, match="instruction encoder here is another one"):
        execute(config, local=True, resume=True)
