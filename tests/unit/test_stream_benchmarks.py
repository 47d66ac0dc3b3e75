"""The benchmarks on streams: rates are chosen on tuning seeds alone, what has a line is not run again, tables tell."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from benchmarking import load_benchmark

from streamcvit.adapters.build import attach
from streamcvit.models.base import load_base
from streamcvit.models.vision import vision_dim
from streamcvit.run.loading import routes

bench, pretrained = load_benchmark("embedded"), load_benchmark("pretrained")
TINY = ["stream.scenario.chunks=1", "stream.scenario.samples_per_chunk=8", "stream.test_samples=2"]
TINY += ["evaluation.draws=20", "evaluation.audit=0", "evaluation.probe_samples=0", "learner.drift_samples=0"]


def line(method: str, lr: float, seed: int, ap: float, phase: str = "tune", stream: str = "embedded") -> dict:
    facts = {"phase": phase, "stream": stream, "method": method, "settings": "", "lr": lr, "seed": seed}
    return facts | {
        "metrics": dict.fromkeys(bench.METRICS, 1.0) | {"ap": ap},
        "samples": 8,
        "chunks": 1,
        "machine": "a machine",
        "finished": "2026-11-30T00:00:00+00:00",
    }


def test_a_rate_is_the_best_mean_of_all_tuning_seeds() -> None:
    rows = [line("lora", 1e-4, 0, 50), line("lora", 1e-4, 1, 60), line("lora", 1e-3, 0, 10), line("lora", 1e-3, 1, 99)]
    assert bench.best_rates(rows) == {"lora": 1e-4}
    assert bench.best_rates([*rows, line("lora", 1e-2, 0, 100)]) == {"lora": 1e-4}, "a rate that one seed has not run"


def test_tables_show_means_intervals_and_shares_of_joint_training_and_do_not_mix_settings(tmp_path: Path) -> None:
    book = bench.Book(tmp_path / "rows.jsonl")
    for seed, ap in ((101, 40.0), (102, 60.0)):
        book.add(line("joint", 1e-3, seed, 80.0, "confirm"))
        book.add(line("lora", 1e-4, seed, ap, "confirm"))
    book.add(line("lora", 1e-4, 0, 7.5) | {"settings": "learner.batch_size=4"})
    facts = {"phase": "time", "stream": "embedded", "settings": "", "method": "lora"}
    book.add(facts | {"trained": 1234, "ratio": [1.0, 1.0, 1.0], "step_ms": 2.0})
    text = "\n".join(bench.tables(bench.Book(book.path)))
    (own,) = [part for part in text.split("\n## ") if part.startswith("embedded\n")]
    lora = next(row for row in own.splitlines() if row.startswith("| lora"))
    assert "| 50.0 ± 127.1 |" in lora and "0.62 ± 1.59" in lora and "1,234" in lora
    assert "7.5" not in own and "## embedded, learner.batch_size=4" in text
    assert "Seeds 101-102" in own


def test_runs_become_lines_and_are_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "rows.jsonl"
    words = ["--stream", "embedded", "--method", "lora", "--out", str(tmp_path / "runs"), "--results", str(results)]
    words += ["--local", "--seeds", "3", "--set", *TINY]
    bench.main(["tune", *words, "--rates", "1e-4", "1e-3"])
    rows = [json.loads(text) for text in results.read_text().splitlines()]
    assert [(row["phase"], row["lr"], row["seed"]) for row in rows] == [("tune", 1e-4, 3), ("tune", 1e-3, 3)]
    assert {row["chunks"] for row in rows} == {1} and {row["samples"] for row in rows} == {8}
    assert not any((tmp_path / "runs").iterdir())
    bench.main(["tune", *words, "--rates", "1e-4", "1e-3"])
    assert len(results.read_text().splitlines()) == 2
    assert "runs to do" not in capsys.readouterr().out.split("# Results")[-2]
    bench.main(["confirm", *words])
    last = json.loads(results.read_text().splitlines()[-1])
    assert last["phase"] == "confirm" and last["lr"] == bench.best_rates(rows)["lora"]


@pytest.fixture(scope="module")
def base():
    return load_base("embedded", device="cpu")


def test_perplexity_is_of_plain_text_and_a_fresh_adapter_leaves_it(base) -> None:
    from streamcvit.adapters import InstructionEncoder

    encoder = InstructionEncoder.load("tokens", base.model, base.tokenizer)
    ids = base.tokenizer(pretrained.TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        loss = base.model(input_ids=ids, labels=ids).loss
    before = pretrained.perplexity(base, base.model, encoder)
    assert before == pytest.approx(math.exp(loss), rel=1e-4)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, "smolora", seed=0, options={"r": 2}, sizes=sizes).eval()
    assert routes(model)
    assert pretrained.perplexity(base, model, encoder) == pytest.approx(before, rel=1e-5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "smolora_B" in name:
                weight.normal_()
    assert pretrained.perplexity(base, model, encoder) != pytest.approx(before, rel=1e-2)
    model.unload()
    assert base.restore()


def test_aligning_moves_the_projector_alone_and_lowers_the_loss(base) -> None:
    was = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    with torch.no_grad():
        for weight in base.model.model.multi_modal_projector.parameters():
            weight.normal_(std=0.02)
    found = pretrained.align(base, 12)
    now = base.model.state_dict()
    assert {name.split(".")[1] for name in was if not was[name].equal(now[name])} == {"multi_modal_projector"}
    assert found["after"] < found["before"] and not any(p.requires_grad for p in base.model.parameters())


def test_the_table_says_what_was_run_at_which_size_and_what_became_of_the_base() -> None:
    method = {"lr": 1e-3, "metrics": dict.fromkeys(pretrained.METRICS) | {"ap": [50.0, 40.0, 60.0]}, "perplexity": 31.5}
    found = {
        "built": {"projector": {"before": 5.0, "after": 2.0, "steps": 4, "batch": 8}},
        "chunks": 3,
        "samples": 48,
        "test_samples": 4,
        "seed": 0,
        "date": "today",
        "machine": "one",
        "perplexity": 22.25,
        "methods": {"zero-shot": method, "lora": method},
    }
    text = "\n".join(pretrained.table(found))
    assert "3 chunks, 48 samples, 4 test samples a task" in text and "perplexity (base: 22.25)" in text
    assert "| lora | 0.001 | 50.0 [40.0, 60.0] | - |" in text and "| 31.50 |" in text
    assert "| zero-shot | - |" in text
