"""Load adapters that the authors of SMoLoRA and StrLoRA published, onto a Hugging Face model."""

from __future__ import annotations

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from streamcvit.adapters.moelora import MoELoraConfig
from streamcvit.adapters.smolora import SMoLoraConfig
from streamcvit.adapters.strlora import StrLoraConfig
from streamcvit.errors import UserError

_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<rest>.+)$")
_EXPERT = re.compile(r"^(?P<side>[AB])\.lora[AB]\.(?P<expert>\d+)\.mlp\.weight$")
_ALIAS = re.compile(r"^[AB]\.lora[AB]\.\d+\.weight$")  # the expert's weight under its second name
_NAMES = {
    "vu_gate.weight": "gate_vu",
    "ins_gate.weight": "gate_if",
    "fc_A.weight": "fc_vu",
    "fc_B.weight": "fc_if",
    "router.weight": "w_router",
    "attn_wq.weight": "wq",
    "attn_wk.weight": "wk",
    "attn_expert_proto": "proto",
    "sub_router.weight": "w_sub",
}
STRLORA_NAMES = {
    "A": "strlora_A",
    "B": "strlora_B",
    "w_router": "strlora_sample_router",
    "wq": "strlora_query",
    "wk": "strlora_key",
    "proto": "strlora_prototypes",
    "w_sub": "strlora_token_router",
}
"""Name in the papers' formulae -> attribute of `StrLoraLayer`."""

_AVERAGES = {"attn_wq_weight": "query", "attn_wk_weight": "key", "attn_expert_proto": "prototypes"}
_AVERAGES |= {"sub_router_weight": "token_router"}

Weights = dict[str, torch.Tensor]


def load_published(folder: str | Path, model: nn.Module, **options: Any) -> PeftModel:
    """Put a published adapter on `model`.

    Reads `adapter_config.json` and `adapter_model.safetensors` or `.bin` (tensors only: nothing in it is run), and
    StrLoRA's `router_distill_ema.bin` where there is one. Modules are matched by name, or by the longest common end of
    their paths outside the vision tower, so that a base model whose parts are nested otherwise still fits.

    Args:
        folder: the published folder.
        model: the base model it was trained on.
        options: settings that override or complete the published configuration, such as `top_k` or `pool`. SMoLoRA is
            loaded with its frozen router pooling all positions, as it was trained; `pool="image"` does without padding.

    Returns:
        A PEFT model in eval mode whose adapter computes what the published layer does.

    Raises:
        UserError: files or tensors are missing, unknown, of the wrong shape, or fit no module of the model.
    """
    folder = Path(folder)
    published = _read_config(folder)
    modules = _by_module(_read_tensors(folder, "adapter_model"), folder)
    places = _match(list(modules), model, folder)
    stacked = {places[module]: _stack(weights, f"{folder}: {module}") for module, weights in modules.items()}
    kind = str(published.get("peft_type", "")).upper()
    if kind not in _CONVERT:
        raise UserError(f"adapters of type {kind!r} are not known", where=str(folder), fix=f"Known: {list(_CONVERT)}")
    first = next(iter(stacked.values()))
    config_cls, settings, convert = _CONVERT[kind](published, first)
    common = {"r": first["A"].shape[1], "lora_alpha": published.get("lora_alpha"), "target_modules": list(stacked)}
    chosen = {**common, **settings, **options}
    unsaid = [name for name, value in chosen.items() if value is None and name != "lora_alpha"]
    if unsaid:
        raise UserError(
            f"the published configuration does not say {', '.join(unsaid)}",
            where=str(folder),
            fix=f"Pass it: load_published(..., {unsaid[0]}=...)",
        )
    config: PeftConfig = config_cls(**chosen)
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    layers: dict[str, Any] = dict(adapted.get_base_model().named_modules())
    for place, weights in stacked.items():
        for name, value in convert(weights).items():
            _assign(getattr(layers[place], name), value, f"{folder}: {place}.{name}")
    if kind == "STRLORA":
        _load_averages(folder, places, layers)
    if (folder / "non_lora_trainables.bin").exists():
        message = f"{folder}/non_lora_trainables.bin (the projector) is not part of the adapter and not loaded"
        warnings.warn(message, stacklevel=2)
    return adapted.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no readable adapter_config.json: {error}", where=str(folder)) from error


def _read_tensors(folder: Path, stem: str) -> dict[str, Any]:
    safe, pickled = folder / f"{stem}.safetensors", folder / f"{stem}.bin"
    try:
        if safe.exists():
            return load_file(safe)
        return torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with a foreign file, its name is what the user needs
        raise UserError(f"no readable {stem}: {error}", where=str(folder)) from error


def _by_module(tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, Weights]:
    """Weights of each adapted module, by the end of their published name."""
    modules: dict[str, Weights] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = _KEY.match(name)
        if match is None or not (
            _EXPERT.match(match["rest"]) or _ALIAS.match(match["rest"]) or match["rest"] in _NAMES
        ):
            raise UserError(f"unknown tensor {name!r}", where=str(folder))
        if not _ALIAS.match(match["rest"]):
            modules[match["module"]][match["rest"]] = tensor.float()
    if not modules:
        raise UserError("no adapter weights in the file", where=str(folder))
    return dict(modules)


def _stack(weights: Weights, where: str) -> Weights:
    """Experts stacked, A [E, r, I] and B [E, r, O], and the rest by the golden numbers' names."""
    sides: dict[str, dict[int, torch.Tensor]] = {"A": {}, "B": {}}
    named: Weights = {}
    for rest, tensor in weights.items():
        match = _EXPERT.match(rest)
        if match:
            sides[match["side"]][int(match["expert"])] = tensor if match["side"] == "A" else tensor.T
        else:
            named[_NAMES[rest]] = tensor
    for side, experts in sides.items():
        if not experts or sorted(experts) != list(range(len(experts))) or len(experts) != len(sides["A"]):
            raise UserError(f"experts {sorted(experts)} of {side} are not complete", where=where)
        named[side] = torch.stack([experts[e] for e in range(len(experts))])
    return named


def _match(modules: list[str], model: nn.Module, folder: Path) -> dict[str, str]:
    """Published module path -> the path of that linear in `model`."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    language = [name for name in linears if "vision" not in name and "visual" not in name]
    places = {}
    for module in modules:
        if module in linears:
            places[module] = module
            continue
        scores = {name: _common_end(module, name) for name in language}
        best = max(scores.values(), default=0)
        found = [name for name, score in scores.items() if score == best]
        if best < 1 or len(found) != 1:
            raise UserError(f"{module} fits {len(found) if best else 0} modules of the model", where=str(folder))
        places[module] = found[0]
    if len(set(places.values())) != len(places):
        raise UserError("two adapted modules fit the same module of the model", where=str(folder))
    return places


def _common_end(a: str, b: str) -> int:
    count = 0
    for left, right in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if left != right:
            break
        count += 1
    return count


def _setting(published: Mapping[str, Any], name: str) -> int | None:
    """A number of experts to keep, however the configuration spells it; None where it says nothing."""
    for key in (name, name.replace("topk", "top_k"), f"expert_{name}"):
        if published.get(key) is not None:
            return int(published[key])
    return None


def _smolora(published: Mapping[str, Any], weights: Weights) -> tuple[Any, dict[str, Any], Any]:
    half = len(weights["A"]) // 2
    settings = {
        "router": "frozen",
        "fusion": "learned",
        "pool": "all",
        "num_experts_visual": half,
        "num_experts_instruction": len(weights["A"]) - half,
        "instruction_dim": weights["gate_if"].shape[1],
    }

    def convert(found: Weights) -> Weights:
        return {
            "smolora_A": found["A"],
            "smolora_B": found["B"],
            "smolora_fc": torch.stack((found["fc_vu"].flatten(), found["fc_if"].flatten())),
            "smolora_gate_visual": found["gate_vu"],
            "smolora_gate_instruction": found["gate_if"],
        }

    return SMoLoraConfig, settings, convert


def _moelora(published: Mapping[str, Any], weights: Weights) -> tuple[Any, dict[str, Any], Any]:
    settings = {"num_experts": len(weights["A"]), "top_k": _setting(published, "topk")}

    def convert(found: Weights) -> Weights:
        return {"moelora_A": found["A"], "moelora_B": found["B"], "moelora_router": found["w_router"]}

    return MoELoraConfig, settings, convert


def _strlora(published: Mapping[str, Any], weights: Weights) -> tuple[Any, dict[str, Any], Any]:
    token_router = any(name in weights for name in ("wq", "w_sub"))
    settings = {
        "num_experts": len(weights["A"]),
        "top_k": _setting(published, "topk"),
        "sub_top_k": _setting(published, "subtopk") if token_router else 0,
        "attention_dim": len(weights["wq"]) if "wq" in weights else 0,
        "instruction_dim": weights["w_router"].shape[1],
    }

    def convert(found: Weights) -> Weights:
        return {STRLORA_NAMES[name]: value for name, value in found.items()}

    return StrLoraConfig, settings, convert


_CONVERT = {"SMOLORA": _smolora, "MOELORA": _moelora, "STRLORA": _strlora}


def _assign(held: Any, value: torch.Tensor, where: str) -> None:
    if "default" not in held or held["default"].shape != value.shape:
        have = tuple(held["default"].shape) if "default" in held else None
        raise UserError(f"published shape {tuple(value.shape)}, the layer's is {have}", where=where)
    with torch.no_grad():
        held["default"].copy_(value)


def _load_averages(folder: Path, places: Mapping[str, str], layers: Mapping[str, Any]) -> None:
    """The teacher's weights; without the file the running averages start at the routers."""
    averages: dict[str, Any] = {}
    if any((folder / f"router_distill_ema{end}").exists() for end in (".bin", ".safetensors")):
        averages = _read_tensors(folder, "router_distill_ema")
    flat: Weights = {}
    for name, value in averages.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {name: value}
    for module, place in places.items():
        layer = layers[place]
        layer.start_averages("default")
        for end, ours in _AVERAGES.items():
            keys = [key for key in flat if key.removeprefix("base_model.model.") == f"{module}.{end}"]
            held = getattr(layer, f"strlora_average_{ours}")
            if keys and "default" in held:
                _assign(held, flat[keys[0]].float(), f"{folder}: {place}.{end}")
