"""A base in 8 or 4 bits: which layers are, and that everything a run does holds on it."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from familychecks import ADAPTERS, answers_as_generate, learns_and_resumes
from models import save, tiny_llava, tiny_samples
from test_microbatch import batch_of, gradients, learner_for

from streamcvit.adapters.targets import language_model
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.export import export
from streamcvit.launch import execute
from streamcvit.models import base as base_module
from streamcvit.models.base import Base, check_memory, load_base, skeleton
from streamcvit.models.quantize import held_bytes, quantised_layers
from streamcvit.pipeline import builtin, load_config
from streamcvit.predict import predictor_of
from streamcvit.preflight import check_settings
from streamcvit.questions import question

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (streamcvit[quantize]); `make test` runs these tests by themselves with it",
)
HELD = {"8bit": torch.float32, "4bit": torch.bfloat16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_llava(64), tmp_path_factory.mktemp("quantize"))


@pytest.fixture(scope="module")
def load(folder: Path) -> Any:
    """Loads the tiny model in so many bits, once."""
    return cache(lambda quantize: load_base(folder, device="cpu", dtype=HELD[quantize], quantize=quantize))


def config(**model: Any) -> RunConfig:
    return RunConfig.model_validate({"model": {"device": "cpu", **model}, "methods": {"lora": {"adapter": "lora"}}})


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["qwen2_5_vl", "aria", "qwen3_5_moe"])
def test_linear_layers_of_the_language_model_alone_are_held_in_few_bits(name: str, tmp_path: Path) -> None:
    folder = save(FAMILIES[name](), tmp_path)
    bare = skeleton(folder)
    model = load_base(folder, device="cpu", dtype="bfloat16", quantize="4bit").model
    kinds = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    few = [n for n, kind in kinds.items() if kind == "Linear4bit"]
    assert few == quantised_layers(bare)
    prefix = language_model(bare)[0] + "."
    assert few and all(n.startswith(prefix) and not n.endswith("lm_head") for n in few)
    left = {n.split(".", 3)[-1] for n in kinds if n.startswith(f"{prefix}layers.") and n not in few}
    assert left == ({f"{k}.mlp.shared_expert_gate" for k in (0, 1)} if name == "qwen3_5_moe" else set())


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("quantize", "adapter"), [("8bit", "lora"), ("8bit", "strlora"), *(("4bit", name) for name in ADAPTERS)]
)
def test_every_adapter_learns_on_it_commits_and_resumes_to_the_bit(
    load: Any, quantize: str, adapter: str, tmp_path: Path
) -> None:
    base = load(quantize)
    learns_and_resumes(base, adapter, tmp_path, steps=2)
    assert base.restore()


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", HELD)
def test_its_answers_are_those_of_generate_and_near_those_of_the_base(load: Any, folder: Path, quantize: str) -> None:
    base = load(quantize)
    answers_as_generate(base, count=4)
    whole = load_base(folder, device="cpu", dtype=HELD[quantize])
    inputs = base.collator.prompts(tiny_samples(2)).tensors
    with torch.no_grad():
        ours, theirs = base.model(**inputs).logits.float(), whole.model(**inputs).logits.float()
    assert 0 < (ours - theirs).norm() < 0.5 * theirs.norm()
    assert base.restore() and base.digest == whole.digest  # of the files


@needs_bitsandbytes
@pytest.mark.parametrize("adapter", ["lora", "smolora"])
def test_micro_batches_and_checkpointing_give_the_gradient_of_the_whole_batch(load: Any, adapter: str) -> None:
    base, samples = load("4bit"), tiny_samples(4)
    found: list[dict[str, torch.Tensor]] = []
    for more in ({}, {"micro_batch": 2}, {"gradient_checkpointing": True}):
        learner = learner_for(base, adapter, max_grad_norm=1e9, **more)
        learner.learn(batch_of(base, samples, more.get("micro_batch", 0)))
        found.append(gradients(learner))
        learner.model.unload()
        assert base.restore()
    assert all(grad.dtype == torch.float32 for grad in found[0].values())
    assert any(grad.any() for grad in found[0].values())
    for name, grad in found[0].items():
        assert torch.equal(found[2][name], grad)
        torch.testing.assert_close(found[1][name], grad, rtol=0.05, atol=0.02 * float(grad.abs().max()))


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", HELD)
def test_memory_is_counted_as_it_is_held(
    load: Any, folder: Path, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: Base = load(quantize)
    scales = ("SCB", "weight.absmax", "weight.nested_absmax")
    held = sum(p.numel() * p.element_size() for p in base.model.parameters())
    held += sum(t.nbytes for name, t in base.model.state_dict().items() if name.endswith(scales))
    bare = skeleton(folder)
    need = held_bytes(bare, quantize, HELD[quantize])
    assert need == pytest.approx(held, rel=1e-3)
    place = torch.device("cpu")
    monkeypatch.setattr(base_module, "_free_memory", lambda: need + 1)
    check_memory(str(folder), place, HELD[quantize], quantize, bare)
    with pytest.raises(UserError, match="Take a smaller model, .*model.quantize 4bit"):
        check_memory(str(folder), place, HELD[quantize])


def test_what_cannot_be_quantised_is_said_before_anything_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for check in (lambda run: check_settings(run, local=True), lambda run: load_base("embedded", quantize="4bit")):
        with pytest.raises(UserError) as caught:
            check(config(quantize="4bit"))
        assert str(caught.value) == (
            "model.quantize: 4bit needs the package bitsandbytes, which is not installed. "
            "pip install 'streamcvit[quantize]', or set model.quantize to none."
        )
    with pytest.raises(UserError, match="unknown value '3bit'"):
        load_base("embedded", quantize="3bit")


@needs_bitsandbytes
def test_pre_flight_says_how_much_is_quantised() -> None:
    said = check_settings(config(quantize="4bit"), local=True)
    assert said[1].startswith("model.quantize 4bit: ") and said[1].endswith(" %")


@needs_bitsandbytes
def test_a_run_on_it_is_used_as_any_other_and_not_merged(tmp_path: Path) -> None:
    settings = ["stream.scenario.chunks=1", "stream.scenario.samples_per_chunk=8", "stream.test_samples=1"]
    run = load_config(builtin("embedded"), [*settings, "model.quantize=4bit", f"out={tmp_path}"], name="few")
    execute(run.model_copy(update={"methods": {"lora": run.methods["lora"]}}), local=True)
    said = predictor_of(tmp_path / "few").ask(question("What is it?", [], instruction="Answer with one word."))
    assert [answer.trained.method for answer in said] == ["lora"]
    with pytest.raises(UserError, match="learned on a base in 4bit, and would be rounded away.* Leave --merged out"):
        list(export(tmp_path / "few", tmp_path / "whole", merged=True))
    list(export(tmp_path / "few", tmp_path / "plain"))
    assert "load_base('embedded', quantize='4bit')" in (tmp_path / "plain" / "README.md").read_text()
