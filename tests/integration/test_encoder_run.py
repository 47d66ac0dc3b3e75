"""A run whose instructions are embedded by a sentence-transformers model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from running import ROOT
from sentence_models import save_sentence_model

from streamcvit.adapters.instruction import encoder_identity
from streamcvit.cluster.run import execute
from streamcvit.config import load_config
from streamcvit.errors import UserError
from streamcvit.learning import commit

SMALL = [
    "stream.scenario.chunks=1",
    "stream.scenario.samples_per_chunk=16",
    "stream.test_samples=2",
    "evaluation.draws=10",
    "methods={smolora: {adapter: smolora}}",
]


def test_encoder_is_used_recorded_and_compared_on_resuming(tmp_path: Path) -> None:
    encoder = save_sentence_model(tmp_path / "encoder")
    settings = [*SMALL, f"model.instruction_encoder={encoder}"]
    config = load_config(ROOT / "pipelines/embedded.yaml", settings, name="mine", out=str(tmp_path))
    execute(config, local=True)
    folder = config.folder("smolora")
    record = json.loads((folder / "run.json").read_text())
    assert record["instruction_encoder"] == {"name": str(encoder), "identity": encoder_identity(encoder)}
    newest = commit.list_commits(folder / "commits")[-1]
    adapter = json.loads((newest / "adapter" / "adapter_config.json").read_text())
    assert adapter["instruction_dim"] == 16
    assert commit.read_state(newest)["encoder"] == record["instruction_encoder"]["identity"]

    # Another model under the same name: scores that a stop left open must not be made with it.
    (folder / "run.json").write_text(json.dumps(record | {"finished": None}))
    shutil.rmtree(folder / "predictions")
    shutil.rmtree(encoder)
    save_sentence_model(tmp_path / "elsewhere", seed=1).rename(encoder)
    with pytest.raises(UserError, match="instruction encoder here is another one"):
        execute(config, local=True, resume=True)
