"""The section `train` says which parts of a model learn; those learn, nothing else does, and nonsense is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import TINY, save, tiny_base, tiny_llava, tiny_samples
from peft.tuners.tuners_utils import BaseTunerLayer

from streamcvit.adapters import InstructionEncoder, Reach, attach
from streamcvit.adapters.selection import Selection
from streamcvit.adapters.targets import touched
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.learning import OnlineLearner
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.models.vision import vision_dim
from streamcvit.preflight import reach_of
from streamcvit.run.loading import adapter_options

LAYERS = "model.language_model.layers"


def learner_for(base: Base, adapter: str, selection: Selection, **options: Any) -> OnlineLearner:
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    chosen = selection.options(base.model, options, routed=adapter != "lora")
    return OnlineLearner(base, attach(base.model, adapter, options=chosen, sizes=sizes), encoder=encoder, lr=1e-2)


def learn(learner: OnlineLearner, steps: int = 2) -> dict[str, bool]:
    """Which tensors of the adapter some steps moved."""
    before = learner.snapshot().tensors
    for number in range(steps):
        samples = tiny_samples(4, seed=number)
        inputs = learner.base.collator.train(samples)
        learner.learn(Batch(number * 4, number * 4 + 4, 0, tuple(range(4)), tuple(samples), inputs))
    return {name: not torch.equal(tensor, before[name]) for name, tensor in learner.snapshot().tensors.items()}


def adapted(selection: Selection, kind: str = "llava", adapter: str = "lora") -> list[str]:
    model = tiny_base(kind).model
    options = selection.options(model, {}, routed=adapter != "lora")
    attach(model, adapter, options=options, sizes={"instruction_dim": 32, "visual_dim": 32})
    return [name for name in touched(model) if isinstance(model.get_submodule(name), BaseTunerLayer)]


def config(folder: Path, train: Any = None, **methods: Any) -> RunConfig:
    given = {} if train is None else {"train": train}
    return RunConfig(model={"name_or_path": str(folder)}, out=str(folder / "runs"), methods=methods, **given)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("projector", ["none", "whole", "adapter"])
@pytest.mark.parametrize("tower", ["none", "adapter", "whole"])
def test_projector_and_tower_learn_as_asked_in_every_family(kind: str, projector: str, tower: str) -> None:
    base = tiny_base(kind)
    selection = Selection(layers="last 1", projector=projector, tower=tower)
    if tower == "whole" and projector != "whole" and kind.startswith("qwen"):
        with pytest.raises(UserError, match="the projector lies inside the tower"):
            selection.options(base.model, {}, routed=False)
        return
    if projector == "adapter" and kind == "gemma3":
        with pytest.raises(UserError, match="the model's projector has no linear layers. Set projector to whole"):
            selection.options(base.model, {}, routed=False)
        return
    learner = learner_for(base, "lora", selection, r=2)
    parts = Reach.of(learner.model).parts
    assert ("projector" in parts, "vision tower" in parts) == (projector != "none", tower != "none")
    moved = learn(learner)
    language = [name for name in moved if "language_model" in name]
    assert language and all(moved[name] and ".layers.1." in name for name in language)
    for part, how, words in (
        ("projector", projector, ("projector", "merger")),
        ("vision tower", tower, ("vision_tower", "visual")),
    ):
        own = [name for name in moved if any(word in name for word in words)]
        if part == "vision tower":
            own = [name for name in own if "merger" not in name]
        assert bool(own) == (how != "none")
        # What answers do not depend on stands still: a tower's pooled token, what enters behind the last layer.
        assert not own or sum(moved[name] for name in own) >= 0.6 * len(own)
        assert how != "adapter" or all("lora" in name for name in own)


@pytest.mark.parametrize("adapter", ["lora", "smolora", "moelora", "strlora"])
def test_defaults_leave_every_adapter_as_it_is_and_a_whole_projector_goes_with_all(adapter: str) -> None:
    options = {"r": 4, "exclude_modules": ["o_proj"]}
    assert Selection().options(tiny_base("llava").model, options, routed=adapter != "lora") == options
    learner = learner_for(tiny_base("llava"), adapter, Selection(projector="whole", modules=["q_proj"], layers=0))
    moved = {name: changed for name, changed in learn(learner).items() if "projector" in name}
    assert len(moved) == 4 and all(moved.values())


@pytest.mark.parametrize("adapter", ["lora", "smolora"])
def test_modules_layers_and_what_is_left_out_are_named_in_plain_words(adapter: str) -> None:
    def short(**fields: Any) -> list[str]:
        return [name.removeprefix(f"{LAYERS}.") for name in adapted(Selection(**fields), adapter=adapter)]

    assert short(modules=["q_proj"]) == ["0.self_attn.q_proj", "1.self_attn.q_proj"]
    assert short(modules=r".*language_model.*\.[qv]_proj", layers="last 1") == [
        "1.self_attn.q_proj",
        "1.self_attn.v_proj",
    ]
    assert short(layers=[0], exclude=["mlp.up_proj", "q_proj", "k_proj"]) == [
        f"0.{name}_proj" for name in ("self_attn.v", "self_attn.o", "mlp.gate", "mlp.down")
    ]
    assert short(modules=["q_proj"], layers="0-1") == short(modules=["q_proj"], layers="1, 0")
    assert len(short(layers=1)) == len(short(layers="0")) == 7


@pytest.mark.parametrize("layers", ["all", "3-1", "last 0", "last", "1;2", ","])
def test_layers_in_words_that_mean_nothing_are_refused_when_the_pipeline_is_read(layers: str) -> None:
    with pytest.raises(ValueError, match="names no layers"):
        RunConfig(train={"layers": layers})


@pytest.mark.parametrize(
    ("method", "train", "said"),
    [
        ({}, {"layers": "last 3"}, "train.layers: there are 2 layers. Ask for fewer"),
        ({}, {"layers": "1-2"}, "train.layers: there is no layer 2. Its layers are 0 to 1"),
        ({}, {"modules": ["nothing"]}, "train.modules: the model has no module 'nothing'"),
        ({}, {"exclude": ".*"}, "train.exclude: every module is excluded"),
        ({"train": {"projector": "adapter"}, "adapter": "smolora"}, None, "methods.mine.train.projector: experts are"),
        ({"adapter": "strlora"}, {"tower": "adapter"}, "train.tower: experts are routed in the language model alone"),
        ({"adapter": "moelora"}, {"modules": ["linear_1"]}, "train.modules: .* is no layer of the language model"),
        ({"options": {"target_modules": ["q_proj"]}}, {"modules": ["v_proj"]}, "options name target_modules too. Keep"),
        ({"options": {"modules_to_save": ["lm_head"]}}, {"projector": "whole"}, "name modules_to_save too. Keep one"),
        ({"adapter": "none", "train": {}}, None, "methods.mine.train: the adapter 'none' trains nothing"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_key_before_anything_is_written(
    method: dict[str, Any], train: Any, said: str, tmp_path: Path
) -> None:
    folder = save(tiny_llava(), tmp_path / "model")
    with pytest.raises(UserError, match=said):
        execute(config(folder, train, mine={"adapter": "lora", **method}), local=True)
    assert not (folder / "runs").exists() or not any((folder / "runs").iterdir())


def test_a_method_takes_the_runs_section_or_its_own_whole(tmp_path: Path) -> None:
    run = config(
        save(tiny_llava(), tmp_path / "model"),
        {"modules": ["q_proj"], "projector": "whole"},
        shared={"adapter": "lora"},
        own={"adapter": "lora", "train": {"layers": [1]}},
    )
    assert RunConfig.model_validate(run.model_dump(mode="json")) == run
    model = tiny_base("llava").model
    assert adapter_options(run, "shared", model) == {
        "target_modules": ["q_proj"],
        "modules_to_save": ["model.multi_modal_projector"],
    }
    assert adapter_options(run, "own", model) == {"layers_to_transform": [1]}
    lines = reach_of(run)
    assert "shared reaches 2 of 14" in lines["shared"] and "projector 2,112" in lines["shared"]
    assert "own reaches 7 of 14" in lines["own"]
