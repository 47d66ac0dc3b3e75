"""Folders in the key layout that the authors' code saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

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
AVERAGES = {
    "wq": "attn_wq_weight",
    "wk": "attn_wk_weight",
    "proto": "attn_expert_proto",
    "w_sub": "sub_router_weight",
}
SPELLED = {"distill_lambda": "lambda", "distill_beta": "beta", "distill_tau": "tau"}


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


def publish(folder: Path, kind: str, tensors: dict[str, Any], pickled: bool = False, **config: Any) -> Path:
    """A folder as published."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, **config}))
    if pickled:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def publish_case(path: Path, folder: Path, pickled: bool) -> tuple[dict[str, torch.Tensor], nn.Linear]:
    """Publish a recorded case into `folder`, as the module "0"; its tensors and its frozen linear."""
    with safe_open(path, "pt") as file:
        t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = json.loads(file.metadata()["meta"])
    config = {key: meta[key] for key in ("lora_alpha", "topk", "subtopk", "attn_proj_dim", "freeze_qk") if key in meta}
    config |= {f"sample_router_distill_{theirs}": meta[ours] for ours, theirs in SPELLED.items() if ours in meta}
    config |= {"r": meta["r_total"], "expert_num": meta["E"]}
    publish(folder, meta["method"].upper(), published_tensors(t, "0"), pickled, **config)
    if averages := {theirs: t[f"ema0.{ours}"] for ours, theirs in AVERAGES.items() if f"ema0.{ours}" in t}:
        torch.save({"0": averages}, folder / "router_distill_ema.bin")
    return t, base_linear(t)


def base_linear(t: dict[str, torch.Tensor]) -> nn.Linear:
    """The frozen linear of a recorded case."""
    linear = nn.Linear(t["W0"].shape[1], t["W0"].shape[0], bias="bias0" in t)
    linear.weight.data = t["W0"].clone()
    if "bias0" in t:
        linear.bias.data = t["bias0"].clone()
    return linear


def moelora_weights(linear: nn.Linear) -> dict[str, torch.Tensor]:
    """Two experts of rank 3."""
    torch.manual_seed(0)
    inputs, outputs = linear.in_features, linear.out_features
    return {"A": torch.randn(2, 3, inputs), "B": torch.randn(2, outputs, 3), "w_router": torch.randn(2, inputs)}


def moelora_of(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Published MoELoRA tensors for a model's linears of these names."""
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[-1] in names:
            tensors |= published_tensors(moelora_weights(module), name)
    return tensors
