"""The adapter benchmark runs on any machine and writes what it prints."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "adapters.py"
    spec = importlib.util.spec_from_file_location("adapter_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "adapter_benchmark", module)
    spec.loader.exec_module(module)
    tiny = module.Shape(hidden=16, intermediate=24, layers=1, heads=2, batch=2, length=5, r=2)
    monkeypatch.setitem(module.SHAPES, "llama-7b-quarter", tiny)
    return module


@pytest.mark.parametrize("step", [False, True])
def test_command_prints_a_row_an_adapter_and_writes_the_same_figures(benchmark, step, monkeypatch, tmp_path, capsys):
    file = tmp_path / "figures.json"
    only = ["--only", "smolora prototype", "strlora distilled"]
    command = ["adapters.py", "--rounds", "1", "--markdown", "--json", str(file), *only, *["--step"] * step]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: None)
    benchmark.main()
    facts = json.loads(file.read_text())
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row["adapter"] for row in facts["rows"]] == ["lora", *only[1:]]
    assert len(printed) == len(facts["rows"]) + 2
    assert facts["step"] == step
    assert {"machine", "torch", "threads", "date", "seed", "dtype"} <= facts.keys()
    for line, row in zip(printed[2:], facts["rows"], strict=True):
        assert line.startswith(f"| {row['adapter']} |")
        assert f"{row['train_ratio'][0]:.2f} [" in line
        assert line.endswith(f"| {row['ops']} |")
    assert facts["rows"][0]["train_ratio"] == [1.0, 1.0, 1.0]
