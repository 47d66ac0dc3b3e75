"""Learning with compiled layers: the same losses, one graph for alike layers, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import tiny_llava, tiny_samples
from test_microbatch import batch_of, learner_for
from torch._dynamo.utils import counters

from streamcvit.adapters import compile_layers, tuner_of
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.models.base import Base
from streamcvit.preflight import check_settings

FEW = {"target_modules": ["q_proj"]}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def losses(learner: Any, base: Base) -> torch.Tensor:
    """Of two batches of other lengths."""
    return torch.cat([learner.learn(batch_of(base, tiny_samples(3, seed=k), 0, 3 * k)).loss for k in range(2)])


def test_compiled_layers_learn_alike_share_a_graph_and_are_undone_with_the_adapter() -> None:
    plain, base = Base(*tiny_llava(layers=3)), Base(*tiny_llava(layers=3))
    wanted = losses(learner_for(plain, "smolora", options=FEW), plain)
    learner = learner_for(base, "smolora", options=FEW, gradient_checkpointing=True)
    compile_layers(learner.model, backend="aot_eager")
    torch.testing.assert_close(losses(learner, base), wanted, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    learner.model.unload()
    assert base.restore()
    compile_layers(learner_for(base, "lora").model)
    assert [layer._compiled_call_impl is not None for layer in base.model.model.language_model.layers] == [0, 1, 1]
    assert base.restore() and not any(module._compiled_call_impl for module in base.model.modules())


def test_layers_are_compiled_inside_checkpoints_where_the_adapter_is_on_the_last_ones_alone() -> None:
    base = Base(*tiny_llava(layers=3))
    last = {**FEW, "layers_to_transform": [1, 2]}
    learner = learner_for(base, "smolora", options=last, gradient_checkpointing=True)
    compile_layers(learner.model, backend="aot_eager")
    assert learner.learn(batch_of(base, tiny_samples(3), 0, 0)).loss.isfinite().all()
    assert counters["stats"]["unique_graphs"] == 1


def test_a_model_that_torch_compiled_is_learned_as_any_other() -> None:
    plain, base = Base(*tiny_llava()), Base(*tiny_llava())
    wanted = losses(learner_for(plain, "smolora", options=FEW), plain)
    learner = learner_for(base, "smolora", options=FEW, wrap=lambda model: torch.compile(model, backend="eager"))
    assert learner.run is not learner.model and tuner_of(learner.run) is tuner_of(learner.model)
    with torch.compiler.set_stance("force_eager"):  # what is compiled of it: test_adapters_compile.py
        assert torch.equal(losses(learner, base), wanted)
    assert not any("_orig_mod" in name for name in learner.snapshot().tensors)


def test_without_a_compiler_it_is_refused_before_anything_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.model_validate({"model": {"device": "cpu", "compile": True}})
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/g++",))
    with pytest.raises(UserError, match="^model.compile: there is no C\\+\\+ compiler here. Install g\\+\\+, or set"):
        check_settings(config, local=True)
