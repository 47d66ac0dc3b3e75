"""Published checkpoints, rebuilt from the recorded weights in the published key layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import LINEARS, tiny_llama, tiny_llava
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from streamcvit.adapters import RoutingInputs, load_published, routing_kwargs
from streamcvit.errors import UserError

PUBLISHED = {
    "gate_vu": "lora_vu_gate.weight",
    "gate_if": "lora_ins_gate.weight",
    "fc_vu": "lora_fc_A.weight",
    "fc_if": "lora_fc_B.weight",
    "w_router": "lora_router.weight",
    "wq": "lora_attn_wq.weight",
    "wk": "lora_attn_wk.weight",
    "proto": "lora_attn_expert_proto",
    "w_sub": "lora_sub_router.weight",
}


def published_tensors(weights: dict[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    """Weights under the names that the authors' code saves."""
    out = {}
    for e in range(len(weights["A"])):
        for side in "AB":
            for name in ("mlp.weight", "weight"):
                key = f"base_model.model.{path}.lora_{side}.lora{side}.{e}.{name}"
                out[key] = weights[side][e].clone().contiguous()
    for name, theirs in PUBLISHED.items():
        if name in weights:
            value = weights[name][None] if name.startswith("fc") else weights[name]
            out[f"base_model.model.{path}.{theirs}"] = value.clone().contiguous()
    return out


def publish(folder: Path, kind: str, tensors: dict[str, torch.Tensor], pickled: bool = False, **config: Any) -> Path:
    """A folder as published."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, **config}))
    if pickled:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    "case",
    ["smolora_E4_r16_64x96", "moelora_k2", "strlora_k2_s1_D8_distill", "strlora_k2_s1_D0_distill", "strlora_soft"],
)
def test_published_adapter_computes_the_recorded_output(shared_dir, tmp_path, case, pickled):
    with safe_open(shared_dir / "golden" / f"{case}.safetensors", "pt") as file:
        t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = json.loads(file.metadata()["meta"])
    linear = nn.Linear(t["W0"].shape[1], t["W0"].shape[0], bias="bias0" in t)
    linear.weight.data = t["W0"]
    config = {key: meta[key] for key in ("lora_alpha", "topk", "subtopk") if key in meta}
    folder = publish(tmp_path, meta["method"].upper(), published_tensors(t, "0"), pickled, **config)
    if "ema0.proto" in t:
        names = {"attn_wq_weight": "wq", "attn_wk_weight": "wk", "attn_expert_proto": "proto"}
        torch.save({f"0.{end}": t[f"ema0.{name}"] for end, name in names.items()}, folder / "router_distill_ema.bin")
    model = load_published(folder, nn.Sequential(linear))
    embedding = t["inst_emb"] if "inst_emb" in t else t["text"].mean(1) if "text" in t else None
    with torch.no_grad():
        out = model(t["x"], **routing_kwargs(model, RoutingInputs(instruction=embedding)))
    assert float((out - t["out"]).abs().max()) < 1e-4 * float(t["out"].abs().max())
    if "ema0.proto" in t:
        layer: Any = model.base_model.model[0]  # type: ignore[index]
        assert torch.equal(layer.strlora_average_prototypes["default"], t["ema0.proto"])


def moelora_weights(linear: nn.Linear) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    inputs, outputs = linear.in_features, linear.out_features
    return {"A": torch.randn(2, 3, inputs), "B": torch.randn(2, outputs, 3), "w_router": torch.randn(2, inputs)}


def test_modules_are_found_where_the_language_model_is_nested_otherwise(tmp_path):
    source = tiny_llama()
    tensors: dict[str, torch.Tensor] = {}
    for name, module in source.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[-1] in LINEARS:
            tensors |= published_tensors(moelora_weights(module), name)
    model = load_published(publish(tmp_path, "MOELORA", tensors, lora_alpha=12, topk=0), tiny_llava())
    adapted = [name for name, module in model.named_modules() if hasattr(module, "moelora_A")]
    assert len(adapted) == 14
    assert all("language_model.layers" in name for name in adapted)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("base_model.model.0.lora_B.loraB.1.mlp.weight"), "not complete"),
        (lambda t: t.update({"base_model.model.0.lora_magic.weight": torch.ones(1)}), "unknown tensor"),
        (lambda t: t.update({"base_model.model.0.lora_router.weight": torch.ones(2, 9)}), "shape"),
        (lambda t: t.clear(), "no adapter weights"),
    ],
)
def test_damaged_checkpoints_are_refused_with_what_is_wrong(tmp_path, change, message):
    base = nn.Sequential(nn.Linear(4, 5))
    tensors = published_tensors(moelora_weights(base[0]), "0")  # type: ignore[arg-type]
    change(tensors)
    with pytest.raises(UserError, match=message):
        load_published(publish(tmp_path, "MOELORA", tensors, topk=0), base)


def test_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "MOELORA"}')
    torch.save({"base_model.model.0.lora_router.weight": Evil()}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match="no readable adapter_model"):
        load_published(tmp_path, nn.Sequential(nn.Linear(4, 5)))


def test_unknown_method_and_missing_files_are_named(tmp_path):
    base = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        load_published(tmp_path, base)
    tensors = published_tensors(moelora_weights(base[0]), "0")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'DORA'"):
        load_published(publish(tmp_path, "DORA", tensors), base)


def test_setting_that_the_configuration_leaves_out_must_be_given(tmp_path):
    base = nn.Sequential(nn.Linear(4, 5))
    folder = publish(tmp_path, "MOELORA", published_tensors(moelora_weights(base[0]), "0"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="top_k"):
        load_published(folder, base)
    assert load_published(folder, base, top_k=1).peft_config["default"].top_k == 1  # type: ignore[attr-defined]
