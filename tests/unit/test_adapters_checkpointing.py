"""Gradient checkpointing as PEFT, transformers and its Trainer switch it on, and adapters active on layers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from adapter_models import METHODS, adapted, batch, close, forward, row
from peft import prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from streamcvit.adapters import RoutingInputs, after_step, auxiliary_loss, checkpointing_kwargs, tuner_of
from streamcvit.errors import UserError
from tests.models import tiny_llama

ROWS = [row("llama", seed, text=5 + seed) for seed in range(4)]
ROUTED = [method for method in METHODS if not method.startswith("moelora")]


def kbit(base: Any, **kwargs: Any) -> Any:
    base.is_loaded_in_8bit = True  # what PEFT looks at; the weights stay as they are
    return prepare_model_for_kbit_training(base, **kwargs)


def before(enable: Callable[[Any], Any]) -> Callable[[str], Any]:
    return lambda method: adapted(METHODS[method](), enable(tiny_llama()))


def after(enable: Callable[[Any], Any]) -> Callable[[str], Any]:
    def made(method: str) -> Any:
        model = adapted(METHODS[method]())
        model.enable_input_require_grads()
        enable(model)
        return model

    return made


def every(_: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


WAYS = {
    "kbit": before(kbit),
    "kbit, not reentrant": before(lambda base: kbit(base, gradient_checkpointing_kwargs={"use_reentrant": False})),
    "plain": after(lambda model: model.gradient_checkpointing_enable()),
    "trainer": after(lambda model: model.activation_checkpointing_enable(activation_checkpointing_kwargs=None)),
    "every second layer": after(lambda model: model.activation_checkpointing_enable(every_n_layers=2)),
    "selective": after(
        lambda model: model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": lambda: create_selective_checkpoint_contexts(every)}
        )
    ),
    "nothing of its own": after(
        lambda model: model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": lambda: (nullcontext(), nullcontext())}
        )
    ),
    "with our keywords": after(lambda model: model.gradient_checkpointing_enable(checkpointing_kwargs(model))),
}


def gradients(model: Any, steps: int = 2) -> list[torch.Tensor]:
    """Of some training steps, prototypes and running averages included."""
    found = []
    for _ in range(steps):
        loss = forward(model.train(), *batch(ROWS)).loss
        extra = auxiliary_loss(model)
        (loss if extra is None else loss + extra).backward()
        found += [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        after_step(model)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_just_works_and_gradients_are_the_same_bits(method, way):
    plain = adapted(METHODS[method]())
    plain.enable_input_require_grads()
    want, got = gradients(plain), gradients(WAYS[way](method))
    assert len(want) == len(got) > 0
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("method", ROUTED)
def test_the_reentrant_form_is_refused_in_one_line(method):
    model = WAYS["plain"](method)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UserError, match="cannot be checkpointed in the reentrant form") as caught:
        forward(model.train(), *batch(ROWS))
    assert "\n" not in str(caught.value)
    model.eval()
    with torch.no_grad():
        assert torch.isfinite(forward(model, *batch(ROWS)).logits).all()


def test_an_adapter_after_another_has_the_context_of_its_own():
    model = WAYS["plain"]("frozen")
    gradients(model, 1)
    again = adapted(METHODS["strlora"](), model.unload())
    want = adapted(METHODS["strlora"]())
    want.enable_input_require_grads()
    assert all(torch.equal(a, b) for a, b in zip(gradients(want), gradients(again), strict=True))
    block = again.base_model.model.model.layers[0]
    assert block._gradient_checkpointing_func.keywords["context_fn"].__self__ is tuner_of(again).routing


def test_a_copy_recomputes_under_its_own_context():
    model = WAYS["plain"]("prototype")
    gradients(model, 1)
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(twin), strict=True))


def test_trainer_with_gradient_checkpointing_learns_as_without(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Routed(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
            return forward(model, *batch(ROWS)).loss

    losses = []
    for checkpointed in (False, True):
        model = adapted(METHODS["strlora"](distill_lambda=0))
        model.enable_input_require_grads()
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=3, gradient_checkpointing=checkpointed, report_to=[], use_cpu=True,
            save_strategy="no", learning_rate=1e-2, logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        data = [{"input_ids": torch.ones(3, dtype=torch.long)}] * 8
        trainer = Routed(model, arguments, train_dataset=data)
        trainer.train()
        assert model.is_gradient_checkpointing == checkpointed
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("method", METHODS)
def test_adapters_active_on_the_layers_alone_add_up_as_on_the_model(method):
    inputs, routing = batch(ROWS)
    found = []
    for on_layers in (False, True):
        model = adapted(METHODS[method]())
        torch.manual_seed(7)
        model.add_adapter("other", METHODS[method]())
        names = ["default", "other"]
        if on_layers:
            for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
                layer.set_adapter(names)
        else:
            model.base_model.set_adapter(names)
        found.append(forward(model.eval(), inputs, routing).logits)
        loss = forward(model.train(), inputs, routing).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert close(*found, 1e-6)


def test_an_adapter_active_on_the_layers_alone_routes_itself_once_a_call():
    model = adapted(METHODS["prototype"](visual_warmup=0))
    model.add_adapter("other", METHODS["prototype"]())
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        layer.set_adapter("other")
    tuner = tuner_of(model)
    inputs, routing = batch(ROWS)
    forward(model.train(), inputs, routing).loss.backward()
    for bank in ("visual", "instruction"):
        used = {name: int(prototypes.used) for name, prototypes in tuner.prototypes(bank).items()}
        assert used["other"] > 0
        assert used["default"] == used["other"]  # the model's own is decided, too
    after_step(model)
    with torch.no_grad(), tuner.routing.using(RoutingInputs(routing.instruction, routing.visual)) as call:
        assert call.late is not None
        assert torch.equal(call.late("other"), call.shared["default"])
