"""Loading a processor: no code of the model's own is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from streamcvit.errors import UserError
from streamcvit.models.processor import load_processor, resolve


@pytest.mark.parametrize("known", [True, False])
def test_code_in_a_models_folder_is_neither_run_nor_asked_for(tmp_path: Path, known: bool, monkeypatch) -> None:
    folder, ran = Path(shutil.copytree(resolve("embedded"), tmp_path / "base")), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\nclass Processor: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.Config", "AutoProcessor": "own.Processor"}}
    if not known:
        config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    if known:
        assert load_processor(folder, trust_remote_code=True).image_processor is not None
    else:
        with pytest.raises(UserError, match="never run here"):
            load_processor(folder)
    assert not ran.exists()
