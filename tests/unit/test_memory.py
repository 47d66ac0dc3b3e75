"""The estimate of memory: exact where it can be counted, near where it cannot, and what people are told of it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarking import load_benchmark
from models import save, tiny_llava, tiny_samples
from typer.testing import CliRunner

from streamcvit import cli, fitting
from streamcvit.adapters import attach, checkpoint_layers, expert_parameters
from streamcvit.config import LearnerConfig, MethodConfig, ModelConfig, RunConfig
from streamcvit.learning import OnlineLearner
from streamcvit.learning.optim import ExpertAdamW
from streamcvit.memory import CONTEXT, Row, estimate, row_of, typical_row
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.models.dryrun import Held, Shape, learning_bytes
from streamcvit.models.vision import vision_dim

ROOT = Path(__file__).resolve().parents[2]
ROW = Row(tokens=80, image=16, answers=3, patches=16, pixels=3072)
METHODS = ("lora", "moelora", "smolora", "strlora")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_llava(), tmp_path_factory.mktemp("llava"))


def config(folder: Path, adapter: str = "lora", **learner: Any) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name_or_path=str(folder), dtype="float32", device="cpu"),
        learner=LearnerConfig(**learner),
        methods={"m": MethodConfig(adapter=adapter)},
    )


def bare(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = tiny_llava()[0]
    with torch.device("meta"):
        return type(model)(model.config).to(dtype)


@pytest.mark.parametrize("adapter", METHODS)
def test_what_can_be_counted_is_counted_to_the_byte(folder: Path, adapter: str) -> None:
    learner = estimate(config(folder, adapter), "m", bare, ROW, device="cpu").learner
    assert learner is not None
    model = tiny_llava()[0]
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    adapted = attach(model, adapter, sizes={"instruction_dim": 32, "visual_dim": 32})
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = ExpertAdamW(trained, expert_parameters(adapted))
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = sum(s[name].nbytes for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    extra = sum(t.nbytes for t in (*adapted.parameters(), *adapted.buffers()) if id(t) not in own)
    assert learner.parts["weights"] == weights
    assert learner.parts["adapter"] == extra
    assert learner.parts["gradients"] == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert learner.parts["moments"] == moments


@pytest.mark.parametrize(("adapter", "checkpointed"), [("lora", False), ("lora", True)])
def test_what_a_step_keeps_for_backward_is_near_the_estimate(adapter: str, checkpointed: bool) -> None:
    base = Base(*tiny_llava(width=64, layers=6))
    inputs = base.collator.train(tiny_samples(4))
    model, dry = base.model, type(base.model)
    with torch.device("meta"):
        hollow = attach(dry(model.config), adapter, sizes={"instruction_dim": 64, "visual_dim": vision_dim(model)})
    if checkpointed:
        checkpoint_layers(hollow)
    row = row_of(inputs, model)
    estimated = learning_bytes(hollow, Shape(4, row.tokens, row.answers), torch.float32)
    adapted = attach(model, adapter)
    learner = OnlineLearner(base, adapted, gradient_checkpointing=checkpointed)
    own = {p.untyped_storage()._cdata for p in adapted.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses, _ = learner.losses(inputs)
    kept = sum(saved.values())
    del losses
    with Held() as held:
        learner.learn(Batch(0, 4, 0, (0, 1, 2, 3), tuple(tiny_samples(4)), inputs))
    gradients = sum(p.numel() * 4 for p in adapted.parameters() if p.requires_grad)
    assert 0.8 < estimated / (held.most - gradients * 3) < 1.4
    if not checkpointed:
        assert kept < estimated < 2 * kept


def test_checkpointing_and_micro_batches_lower_what_is_estimated(folder: Path) -> None:
    def activations(**learner: Any) -> int:
        found = estimate(config(folder, **learner), "m", bare, ROW, device="cpu").learner
        assert found is not None
        return found.parts["activations"]

    whole, micro = activations(), activations(micro_batch=1)
    assert 7 < whole / micro < 9  # rows of 8
    assert activations(gradient_checkpointing=True) < 0.8 * whole


def test_evaluators_beside_the_learner_have_models_of_their_own(folder: Path) -> None:
    run = config(folder)
    two = run.model_copy(update={"cluster": run.cluster.model_copy(update={"evaluators": 2})})
    memory, local = estimate(two, "m", bare, ROW, device="cpu"), estimate(run, "m", bare, ROW, local=True, device="cpu")
    assert memory.learner is not None
    assert memory.total == memory.learner.total + 2 * memory.evaluator.total
    assert local.total == memory.learner.total + memory.evaluator.total - CONTEXT["cpu"]


def test_a_typical_row_is_what_the_processor_makes_of_it(folder: Path) -> None:
    row = typical_row(config(folder))
    assert row.image == row.patches == 16 and row.pixels == 3072 and row.tokens > 100 and row.answers > 1


def test_doctor_says_whether_a_pipeline_fits_and_what_lowers_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamcvit.doctor.findings", lambda: iter(()))  # a private Ray takes seconds
    page = tmp_path / "p.yaml"
    page.write_text(f"model: {{name_or_path: {folder}, device: cpu}}\nmethods: {{m: {{adapter: lora}}}}\n")

    def doctor(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, ["doctor", str(page), "--local", *words])
        return done.exit_code, done.output

    monkeypatch.setattr(cli, "out", cli.Screen())
    monkeypatch.setattr(fitting, "device_memory", lambda device: (4 << 30, 8 << 30))
    code, said = doctor()
    assert code == 0 and "fits: " in said and "moments" in said and "key-value cache" in said
    monkeypatch.setattr(fitting, "device_memory", lambda device: (512 << 20, 1 << 30))
    code, said = doctor("--set", "evaluation.batch_size=2048")
    assert code == 2
    assert "does not fit: m needs about " in said and "What lowers it most: evaluation.batch_size=256 (-" in said


def test_a_run_is_told_loudly_that_it_will_not_fit_and_small_bases_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(folder)
    assert fitting.memory_lines(run, True) == []
    monkeypatch.setattr(fitting, "SMALL", 0)
    monkeypatch.setattr(fitting, "device_memory", lambda device: (1 << 30, 4 << 30))
    (line,) = fitting.memory_lines(run, True)
    assert line.startswith("memory, estimated, m: ") and "learner " in line and "evaluator " in line
    monkeypatch.setattr(fitting, "device_memory", lambda device: (1 << 20, 1 << 20))
    assert fitting.memory_lines(run, True)[1].startswith("WARNING: that is more than the 1 MiB of cpu: ")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_benchmark("memory")


def test_the_settings_for_cards_in_the_docs_are_what_the_command_gives(benchmark: ModuleType) -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    rows = [row for row in benchmark.CARDS if row[1] == 24]
    assert len(rows) == 3
    for row in rows[:2]:
        assert benchmark.card_line(row) in page
    shown = [line for line in page.splitlines() if any(line.startswith(f"| {name} | ") for name in benchmark.CONFIGS)]
    fitting_rows = [line.split(" | ") for line in shown if " GB | " in line]
    assert len(fitting_rows) == len(benchmark.CARDS)
    for cells in fitting_rows:
        assert float(cells[8].split()[0]) < float(cells[1].split()[0])
