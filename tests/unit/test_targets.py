"""An adapter goes to the language model unless told otherwise; what is named and not there is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import save, tiny_base, tiny_llava
from peft.tuners.tuners_utils import BaseTunerLayer

from streamcvit.adapters import ADAPTERS, Reach, attach
from streamcvit.adapters.targets import touched
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.pipeline import load_config
from streamcvit.preflight import reach_of

IN_THE_LANGUAGE_MODEL = [name for name in ADAPTERS if name != "eproj"]  # which is on the projector
SIZES = {"instruction_dim": 32, "visual_dim": 32, "tasks": ["colour", "shape"]}
LAYERS = "model.language_model.layers"
TOWER = "model.vision_tower.encoder.layers"


def adapted(adapter: str = "lora", kind: str = "llava", **options: Any) -> tuple[list[str], Reach]:
    peft_model = attach(tiny_base(kind).model, adapter, options=options, sizes=SIZES)
    model = peft_model.get_base_model()
    names = [name for name in touched(model) if isinstance(model.get_submodule(name), BaseTunerLayer)]
    return names, Reach.of(peft_model)


@pytest.mark.parametrize("adapter", IN_THE_LANGUAGE_MODEL)
def test_names_that_the_tower_has_too_mean_the_language_model(adapter: str) -> None:
    names, reach = adapted(adapter, target_modules=["q_proj", "v_proj"])
    assert names == [f"{LAYERS}.{k}.self_attn.{n}_proj" for k in (0, 1) for n in "qv"]
    assert (reach.adapted, reach.linear, reach.beyond) == (4, 14, ())
    names, reach = adapted(adapter, target_modules="all-linear")
    assert len(names) == reach.adapted == reach.linear == 14 and not reach.beyond


def test_a_path_a_regular_expression_or_a_name_of_its_own_reaches_beyond_the_language_model() -> None:
    assert adapted(target_modules=["self_attn.q_proj"])[0] == [
        f"{where}.{k}.self_attn.q_proj" for where in (TOWER, LAYERS) for k in (0, 1)
    ]
    assert adapted(target_modules=r".*vision_tower.*0\.self_attn\.v_proj")[0] == [f"{TOWER}.0.self_attn.v_proj"]
    names, reach = adapted(target_modules=["linear_1", "down_proj"])
    assert names == ["model.multi_modal_projector.linear_1", *(f"{LAYERS}.{k}.mlp.down_proj" for k in (0, 1))]
    assert reach.line("mine") == (
        "mine reaches 2 of 14 linear layers of the language model and 1 layer beyond it, 2,048 weights trained "
        "(language model 1,536, projector 512)"
    )


@pytest.mark.parametrize("adapter", IN_THE_LANGUAGE_MODEL)
@pytest.mark.parametrize("target", [None, "all-linear", ["q_proj", "k_proj"], r".*language_model.*\.[qk]_proj"])
def test_layers_to_transform_and_exclude_modules_count_however_the_modules_are_named(adapter: str, target: Any) -> None:
    given = {} if target is None else {"target_modules": target}
    names, _ = adapted(adapter, **given, layers_to_transform=[1], exclude_modules=["k_proj", "o_proj"])
    kept = ["q_proj"] if isinstance(target, list) or target and "qk" in target else [
        "q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"
    ]  # fmt: skip
    assert [name.split(".")[-1] for name in names] == kept
    assert all(name.startswith(f"{LAYERS}.1.") for name in names)
    assert all(f"{LAYERS}.0." in name for name in adapted(adapter, **given, layers_to_transform=0)[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_proj", "no_such"]}, "has no module 'no_such'.*q_proj, k_proj, v_proj, o_proj"),
        ({"target_modules": r".*no_such"}, "has no module '.*no_such'"),
        ({"target_modules": r".*(q_proj"}, "is no regular expression"),
        ({"target_modules": []}, "names no module"),
        ({"exclude_modules": r".*"}, "every module is excluded"),
        ({"layers_to_transform": [0, 2]}, "there is no layer 2. Its layers are 0 to 1"),
        ({"layers_to_transform": [0], "layers_pattern": "blocks"}, "there is no layer 0. Its layers are none"),
        ({"modules_to_save": ["mm_projector"]}, "has no module 'mm_projector'.*multi_modal_projector"),
        ({"init_lora_weights": "eva"}, "computed from samples"),
        ({"layer_replication": [[0, 1]]}, "lora: "),
        ({"target_modules": ["self_attn"]}, "lora: .*not supported"),
    ],
)
def test_what_the_model_does_not_have_or_lora_cannot_do_is_said_before_the_stream_is_written(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = RunConfig(
        out=str(tmp_path / "runs"),
        model={"name_or_path": str(save(tiny_llava(), tmp_path / "model"))},
        methods={"mine": {"adapter": "lora", "options": {"r": 4, **options}}},
    )
    with pytest.raises(UserError, match=rf"methods.mine.options.*{said}"):
        execute(config, local=True)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_the_skeleton_counts_what_the_model_will_train(tmp_path: Path) -> None:
    folder = save(tiny_llava(), tmp_path / "model")
    options = {
        "lora": {"init_lora_weights": "pissa", "modules_to_save": ["multi_modal_projector"]},
        "smolora": {"modules_to_save": ["linear_2"], "router": "straight_through"},
        "moelora": {},
        "strlora": {},
    }
    methods = {name: {"adapter": name, "options": given} for name, given in options.items()}
    lines = reach_of(RunConfig(model={"name_or_path": str(folder)}, methods=methods))
    for name, given in options.items():
        assert lines[name] == adapted(name, **given)[1].line(name)
    assert "trains model.multi_modal_projector whole" in lines["lora"]
    assert reach_of(load_config(None, ["methods={zero: {adapter: none}}"])) == {}


class Experts(torch.nn.Module):
    """Fused experts, as mixture-of-experts models hold them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.gate_up = torch.nn.Parameter(torch.randn(4, width, width) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            (x.unsqueeze(-3) @ self.gate_up).mean(-3)
            if x.dim() == 2
            else torch.einsum("bsi,eio->bso", x, self.gate_up) / 4
        )


def test_fused_experts_are_reached_through_target_parameters_and_said_where_they_are_not() -> None:
    def model() -> torch.nn.Module:
        whole = tiny_base("llava").model
        for layer in whole.model.language_model.layers:
            layer.mlp.up_proj = Experts() if layer.mlp.up_proj.out_features == 32 else torch.nn.Sequential(
                Experts(), layer.mlp.up_proj
            )  # fmt: skip
        return whole

    for adapter in ("lora", "smolora"):
        reach = Reach.of(attach(model(), adapter, sizes=SIZES))
        assert len(reach.unreached) == 2 and all(name.endswith("gate_up") for name in reach.unreached)
        total = sum(p.numel() for p in model().model.language_model.parameters())
        assert reach.share == pytest.approx(2 * 4 * 32 * 32 / total)
        assert "not reached: 2 fused expert weights" in reach.line("mine")
    peft_model = attach(model(), "lora", options={"target_parameters": ["up_proj.0.gate_up"], "r": 2})
    reach = Reach.of(peft_model)
    assert reach.unreached == () and reach.adapted == reach.linear == 14
    assert any("gate_up" in name or "up_proj.0" in name for name, p in peft_model.named_parameters() if p.requires_grad)


def test_biases_of_what_lies_before_the_language_model_are_not_trained_unasked() -> None:
    peft_model = attach(tiny_base("llava").model, "lora", options={"bias": "all"})
    trained = [name for name, p in peft_model.named_parameters() if p.requires_grad]
    assert trained and not any("vision_tower" in name or "projector" in name for name in trained)
