"""The adapters' benchmarks run on any machine and write what they print."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from benchmarking import load_benchmark


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    module = load_benchmark("adapters")
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


def test_steps_are_timed_and_weighed_under_every_setting(monkeypatch, tmp_path, capsys):
    module, file = load_benchmark("step"), tmp_path / "figures.json"
    tiny = module.bench.Shape(hidden=32, intermediate=48, layers=2, heads=2, batch=4, length=24, r=1)
    monkeypatch.setitem(module.SHAPES, "llama-7b", tiny)
    monkeypatch.setattr(module.bench, "keep_freed_memory", lambda: None)
    command = ["step.py", "--rounds", "1", "--only", "smolora prototype", "--markdown", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    module.main()
    rows = json.loads(file.read_text())["rows"]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == len(rows) + 2
    assert [(row["setting"], row["adapter"]) for row in rows] == [
        (setting, name) for setting in module.SETTINGS for name in ("lora", "smolora prototype")
    ]
    for line, row in zip(printed[2:], rows, strict=True):
        assert line.startswith(f"| {row['setting']} | {row['adapter']} |")
        assert line.endswith(f"| {row['peak_mib']:.1f} | {row['peak_ratio']:.2f} |")
    for name, settings in (("lora", module.SETTINGS[1:3]), ("smolora prototype", module.SETTINGS[1:])):
        peak = {row["setting"]: row["peak_mib"] for row in rows if row["adapter"] == name}
        assert all(peak[setting] < 0.9 * peak["whole batch"] for setting in settings)
