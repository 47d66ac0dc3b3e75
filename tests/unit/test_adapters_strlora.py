"""StrLoRA's distillation, running averages and freezing."""

from __future__ import annotations

import pytest
import torch
from adapter_models import adapted, samples, strlora, tiny_llama
from peft import PeftModel

from streamcvit.adapters import after_step, auxiliary_loss, expert_usage, tuner_of

AVERAGE, WEIGHT = "strlora_average_prototypes", "strlora_prototypes"


def first_layer(model):
    return next(module for module in model.modules() if hasattr(module, "strlora_A"))


def disturb(model):
    """Move every router away from its running average."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(kind in name for kind in ("query", "key", "prototypes", "token_router")):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))


def train_forward(model, ids, routing, **kwargs):
    return model.train()(input_ids=ids, labels=ids, routing=routing, **kwargs).loss


def pending(model):
    loss = auxiliary_loss(model)
    assert loss is not None
    return loss


@pytest.fixture(params=[6, 0], ids=["attention", "linear"])
def model(request):
    return adapted(strlora(attention_dim=request.param))


def test_nothing_is_distilled_before_the_router_has_moved(model):
    ids, routing = samples()
    train_forward(model, ids, routing)
    assert abs(pending(model).item()) < 1e-7


def test_moved_router_is_pulled_back_to_its_average(model):
    ids, routing = samples()
    disturb(model)
    train_forward(model, ids, routing)
    loss = pending(model)
    assert loss.item() > 0
    assert auxiliary_loss(model) is None
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert any("query" in name or "token_router" in name for name in moved)


def test_loss_is_only_made_in_training(model):
    ids, routing = samples()
    model.eval()(input_ids=ids, routing=routing)
    assert auxiliary_loss(model) is None


def test_average_follows_the_weights_after_each_step():
    model = adapted(strlora(distill_beta=0.9))
    layer = first_layer(model)
    before = getattr(layer, AVERAGE)["default"].clone()
    disturb(model)
    after_step(model)
    want = 0.9 * before + 0.1 * getattr(layer, WEIGHT)["default"]
    assert torch.allclose(getattr(layer, AVERAGE)["default"], want, atol=1e-6)


def test_averages_are_saved_with_the_adapter(tmp_path):
    model = adapted(strlora(distill_beta=0.9))
    disturb(model)
    after_step(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    ours, theirs = getattr(first_layer(model), AVERAGE), getattr(first_layer(loaded), AVERAGE)
    assert torch.equal(ours["default"], theirs["default"])


def test_frozen_router_stays_while_the_experts_learn():
    model = adapted(strlora())
    tuner_of(model).freeze_routers()
    ids, routing = samples()
    train_forward(model, ids, routing).backward()
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {
        "strlora_A",
        "strlora_B",
    }
    assert first_layer(model).strlora_A["default"].grad is not None
    assert first_layer(model).strlora_query["default"].grad is None
    model.set_adapter("default")
    assert not first_layer(model).strlora_query["default"].requires_grad
    assert model.peft_config["default"].freeze_prototypes


@pytest.mark.parametrize("options", [{"attention_dim": 0}, {"sub_top_k": 0}])
def test_every_kind_of_router_is_held(options):
    model = adapted(strlora(**options))
    assert any("router" in name for name, p in model.named_parameters() if p.requires_grad)
    tuner_of(model).freeze_routers()
    assert not any("router" in name for name, p in model.named_parameters() if p.requires_grad)


def test_loss_without_distillation_or_tuner_is_none():
    ids, routing = samples()
    model = adapted(strlora(distill_lambda=0))
    train_forward(model, ids, routing)
    assert auxiliary_loss(model) is None
    assert not any("average" in name for name in model.state_dict())
    assert auxiliary_loss(tiny_llama()) is None


def test_usage_counts_the_experts_each_sample_may_use():
    ids, routing = samples(8)
    model = adapted(strlora())
    train_forward(model, ids, routing)
    usage = expert_usage(model)
    assert list(usage) == ["instruction", "token"]
    assert all(len(use.shares) == 4 for use in usage.values())
    assert all(abs(sum(use.shares) - 1) < 1e-6 for use in usage.values())
