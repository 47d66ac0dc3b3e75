"""Every family that can be built here: it loads, learns a step, and answers in a batch as alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from benchmarking import ROOT, load_benchmark
from families import FAMILIES, NEEDS
from familychecks import NEW, answers_as_generate, batches, learner, load, wrapped
from models import tiny_samples

from streamcvit.adapters.reach import Reach
from streamcvit.errors import UserError
from streamcvit.evaluation.generate import Generator
from streamcvit.models.base import Base
from streamcvit.models.processor import load_processor


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_loads_learns_a_step_and_answers_as_generate_does_alone_and_in_a_batch(name: str, tmp_path: Path):
    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} needs {package}, which is not installed")
    base = load(name, tmp_path)
    answers_as_generate(base, count=3)
    own = learner(base, "smolora")
    before = own.snapshot().digest
    report = own.learn(batches(base, 1)[0])
    assert report is not None
    assert torch.isfinite(report.loss).all()
    assert own.snapshot().digest != before
    samples = tiny_samples(2, seed=1)
    texts = []
    own.model.eval()
    for size in (2, 1):
        generator = Generator(base, batch_size=size)
        texts.append(generator.answer(own.model, generator.prepare(samples), NEW))
    assert texts[0] == texts[1]


def test_a_routed_adapter_leaves_out_layers_that_see_tokens_only_and_says_which():
    base = Base(*FAMILIES["qwen3_5_moe"]())
    model = wrapped(base, "smolora")
    line = Reach.of(model).line("smolora")
    assert "reaches 9 of 17" in line
    assert "shared_expert.gate_proj" in line and "see tokens without their samples" in line
    model.unload()
    for adapter in ("lora", "moelora"):
        model = wrapped(base, adapter)
        assert "reaches 17 of 17" in Reach.of(model).line(adapter)
        model.unload()
    with pytest.raises(UserError, match="without their samples"):
        wrapped(base, "strlora", target_modules=["shared_expert.gate_proj", "shared_expert.up_proj"])


def test_shared_experts_that_see_whole_samples_are_routed():
    model = wrapped(Base(*FAMILIES["glm4v_moe"]()), "smolora")
    reach = Reach.of(model)
    assert (reach.adapted, reach.flat) == (reach.linear, ())


def test_a_processor_that_needs_a_package_says_so_in_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    FAMILIES["idefics3"]()[1].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "smolvlm"}')
    with pytest.raises(UserError, match="needs num2words, which is not installed") as caught:
        load_processor(tmp_path)
    assert "pip install num2words" in str(caught.value)


def test_the_page_on_models_holds_the_table_that_the_benchmark_prints():
    benchmark = load_benchmark("models")
    record = json.loads(benchmark.RESULT.read_text())
    assert benchmark.table(record) in (ROOT / "docs" / "models.md").read_text()
    assert {*record["families"], *record["untried"]} == {*FAMILIES}
