"""Every routed adapter as a PEFT citizen, on four model families."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
import torch
from adapter_models import FAMILIES, METHODS, PROJECTORS, adapted, batch, close, forward, learned, row
from peft import PeftModel, get_base_model_state_dict, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional as F

from streamcvit.adapters import checkpointing_kwargs, decide_routes
from streamcvit.errors import UserError

CASES = [(method, family) for family in FAMILIES for method in METHODS]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: Any) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def shared(case: tuple[str, str]) -> Any:
    """A model that tests leave as it was; `model` is one of their own."""
    return learned(*case, modules_to_save=[PROJECTORS[case[1]]])


@pytest.fixture
def model(shared: Any) -> Any:
    return copy.deepcopy(shared)


@pytest.fixture(scope="module")
def base(case: tuple[str, str]) -> Any:
    return FAMILIES[case[1]]()


@pytest.fixture(scope="module")
def rows(case: tuple[str, str]) -> list[dict[str, torch.Tensor]]:
    return [row(case[1], seed, text=5 + seed) for seed in range(2)]


def logits(model: Any, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    with torch.no_grad():
        return forward(model, *batch(rows)).logits


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_saved_adapter_loads_and_answers_the_same(model, base, rows, tmp_path):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "library_name: peft" in (tmp_path / "README.md").read_text()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == model.peft_type
    assert config["inference_mode"]
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert all(key.startswith("base_model.") and ".default" not in key for key in keys)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    ours, theirs = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert torch.equal(logits(loaded, rows), logits(model, rows))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_saved_adapter_loads_leanly_onto_another_dtype(case, base, rows, tmp_path):
    model = learned(*case)
    model.save_pretrained(tmp_path)
    half = copy.deepcopy(base).to(torch.bfloat16)
    loaded = PeftModel.from_pretrained(half, tmp_path, torch_device="cpu", low_cpu_mem_usage=True).eval()
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    ours, theirs = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
    for name in (name for name in ours if model.prefix in name):
        # A lean load rounds weights to the base's type on the way, with PEFT's own LoRA too; prototypes stay exact.
        kept = ours[name] if "prototypes_" in name else ours[name].to(torch.bfloat16).float()
        assert torch.equal(theirs[name], kept), name
    inputs, routing = batch(rows)
    inputs = {name: t.to(torch.bfloat16) if name == "pixel_values" else t for name, t in inputs.items()}
    with torch.no_grad():
        out = forward(loaded, inputs, routing).logits
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_adapters_can_be_added_chosen_disabled_and_deleted(model, base, rows, tmp_path):
    first, plain = logits(model, rows), logits(base, rows)
    model.save_pretrained(tmp_path)
    result = model.load_adapter(tmp_path, "twin", low_cpu_mem_usage=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    torch.manual_seed(7)
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("other")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".other" in name for name in trained)
    assert not close(logits(model, rows), first)
    model.set_adapter("twin")
    assert torch.equal(logits(model, rows), first)
    with model.disable_adapter():
        assert torch.equal(logits(model, rows), plain)
    assert torch.equal(logits(model, rows), first)
    model.delete_adapter("twin")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model, rows), first)
    model.delete_adapter("other")
    assert not any("twin" in name or "other" in name for name in model.state_dict())


def test_training_lowers_the_loss_and_moves_the_adapter_and_the_projector_alone(model, rows, case, capsys):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.print_trainable_parameters()
    assert "trainable params: 0 " not in capsys.readouterr().out
    inputs, routing = batch(rows)
    routing = decide_routes(model, routing)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0)
    losses = []
    for _ in range(4):
        loss = forward(model.train(), inputs, routing).loss
        loss.backward()
        losses.append(loss.item())
        assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved <= trained
    assert {name for name in moved if "modules_to_save" in name}
    gates = {name for name in trained if "smolora_gate" in name}
    assert bool(gates) == (case[0] == "straight_through")


def test_unloading_gives_the_base_model_back_and_merging_is_refused(model, base, rows):
    layer = next(module for module in model.modules() if hasattr(module, "merge"))
    for merge in (
        model.merge_adapter,
        lambda: model.merge_adapter(safe_merge=True),
        model.merge_and_unload,
        lambda: model.merge_and_unload(safe_merge=True),
        model.unmerge_adapter,
        layer.merge,
        layer.unmerge,
    ):
        with pytest.raises(UserError, match="cannot be merged"):
            merge()
    plain = base.state_dict()
    kept = get_base_model_state_dict(model)
    assert kept.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in kept.items())
    bare = model.unload()
    assert not hasattr(bare, "peft_config")
    assert bare.state_dict().keys() == plain.keys()
    assert adapted(METHODS["moelora"](), bare).eval() is not None


def test_checkpointed_gradients_equal_plain_ones_with_two_forwards_before_a_backward(model, case):
    pairs = [batch([row(case[1], 10 * i + k) for k in range(2)]) for i in range(2)]
    # Prototypes learn in training mode; decided beforehand, both runs route alike.
    pairs = [(inputs, decide_routes(model, routing)) for inputs, routing in pairs]

    def run() -> dict[str, torch.Tensor]:
        model.train()
        first, second = (forward(model, *pair).loss for pair in pairs)
        (first + 2 * second).backward()
        return gradients(model)

    plain = run()
    model.prepare_model_for_gradient_checkpointing(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_kwargs(model))
    recomputed = run()
    assert plain.keys() == recomputed.keys()
    assert all(close(recomputed[name], plain[name]) for name in plain)


def test_bfloat16_base_trains_float32_experts(case, rows):
    method, family = case
    model = adapted(METHODS[method](), FAMILIES[family]().to(torch.bfloat16))
    inputs, routing = batch(rows)
    inputs = {name: t.to(torch.bfloat16) if name == "pixel_values" else t for name, t in inputs.items()}
    out = forward(model, inputs, routing)
    assert out.logits.dtype == torch.bfloat16
    F.cross_entropy(out.logits.flatten(0, 1).float(), inputs["labels"].flatten()).backward()
    weights = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in weights} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in weights)
