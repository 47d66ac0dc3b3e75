"""What PEFT's own suite asks of every tuner, asked of each routed one on a text model."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from operator import attrgetter
from typing import Any

import pytest
import torch
from adapter_models import METHODS, adapted, batch, close, forward, learned, prompt, row
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file

from streamcvit.adapters import expert_usage, routing_kwargs, tuner_of
from streamcvit.errors import UserError
from tests.models import tiny_llama

ROWS = [row("llama", seed, text=5 + seed) for seed in range(2)]


@pytest.fixture(scope="module", params=METHODS)
def method(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def shared(method: str) -> Any:
    """A model that tests leave as it was; `model` is one of their own."""
    return learned(method, "llama")


@pytest.fixture
def model(shared: Any) -> Any:
    return copy.deepcopy(shared)


def logits(model: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return forward(model, *batch(ROWS), **options).logits


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def trains(layer: Any, name: str) -> bool:
    """Whether the adapter's experts train; its routers may be frozen for good."""
    (experts,) = (getattr(layer, attribute) for attribute in layer.adapter_layer_names if attribute.endswith("_A"))
    return experts[name].requires_grad


def held(layer: Any) -> list[torch.Tensor]:
    """The layer's weights that are never to train."""
    named = [(kind, adapter) for adapter, kinds in layer.frozen_peft_weight_names.items() for kind in kinds]
    return [getattr(layer, kind)[adapter] for kind, adapter in named if adapter in getattr(layer, kind)]


def test_configuration_survives_json_copy_and_pickle(method, tmp_path):
    names = ["q_proj", "k_proj"]
    config = METHODS[method](
        target_modules=names, exclude_modules=["k_proj"], layers_to_transform=[0], layers_pattern="layers"
    )
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    expected = config.to_dict() | {"inference_mode": True}
    assert loaded.to_dict() | {"inference_mode": True} == expected
    assert type(config).from_pretrained(tmp_path).to_dict() == loaded.to_dict()
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


def test_configuration_of_a_later_version_loads_with_a_warning(method, tmp_path):
    METHODS[method]().save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"colour": "red"}))
    with pytest.warns(UserWarning, match="colour"):
        assert PeftConfig.from_pretrained(tmp_path).r == 3


@pytest.mark.parametrize("task", ["CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
def test_every_task_type_hands_the_routing_on(method, task):
    model = adapted(METHODS[method](task_type=task))
    assert type(model) is not PeftModel
    inputs, routing = batch(ROWS)
    with torch.no_grad():
        out = model(input_ids=inputs["input_ids"], return_dict=True, **routing_kwargs(model, routing))
    assert torch.isfinite(out.logits).all()


def test_copies_and_pickles_answer_the_same_by_their_own_context(model):
    before = logits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        tuner = tuner_of(twin)
        assert torch.equal(logits(twin), before)
        assert tuner.routing is not tuner_of(model).routing
        assert all(layer.routing is tuner.routing for layer in layers(twin))
        assert tuner.routing._begin.__self__ is tuner


@pytest.mark.parametrize("active", [True, False])
def test_deleted_adapters_leave_nothing_behind(model, active):
    model.add_adapter("extra", copy.deepcopy(model.peft_config["default"]))
    if active:
        model.set_adapter("extra")
    for name, left in (("extra", ["default"]), ("default", [])):
        model.delete_adapter(name)
        assert name not in model.peft_config
        assert model.active_adapters == left
        assert not any(f".{name}" in key for key in model.state_dict())
        for layer in layers(model):
            assert layer.active_adapters == left
            attributes = (*layer.adapter_layer_names, *layer.other_param_names, "frozen_peft_weight_names")
            assert not any(name in attrgetter(attribute)(layer) for attribute in attributes)
    inputs, _ = batch(ROWS)
    with torch.no_grad():
        assert torch.equal(model.base_model(**inputs).logits, tiny_llama()(**inputs).logits)
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("extra")


def test_deleting_the_active_adapter_of_three_turns_to_the_next(model):
    for name in ("second", "third"):
        model.add_adapter(name, copy.deepcopy(model.peft_config["default"]))
    for name in ("default", "third"):
        model.delete_adapter(name)
        assert model.active_adapters == ["second"]
        assert torch.isfinite(logits(model)).all()


def test_adapters_of_one_model_may_differ_in_every_setting(model, method, tmp_path):
    others = {"wide": METHODS[method](r=5, target_modules=["q_proj"], seed=3)}
    if method in ("frozen", "straight_through", "prototype"):
        routers = {"frozen": "prototype", "straight_through": "frozen", "prototype": "straight_through"}
        others["other"] = METHODS[method](router=routers[method], num_experts_visual=2, banks="instruction")
    elif method == "strlora":
        others["other"] = METHODS[method](num_experts=6, top_k=0, sub_top_k=2, attention_dim=0, distill_lambda=0)
    else:
        others["other"] = METHODS[method](num_experts=6, top_k=1)
    first, before = logits(model), {"default": logits(model)}
    for name, config in others.items():
        model.add_adapter(name, config)
        model.set_adapter(name)
        forward(model.train(), *batch(ROWS)).loss.backward()
        expert_usage(model)
        model.eval()
        before[name] = logits(model)
        assert not close(before[name], first)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    for name in others:
        loaded.load_adapter(tmp_path / name, name)
    for name, want in before.items():
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), want)


def test_saving_one_adapter_takes_no_part_of_others_with_similar_names(model, tmp_path):
    model.save_pretrained(tmp_path / "alone")
    for name in ("default2", "other_default", "foodefault_bar", "efaul"):
        model.add_adapter(name, copy.deepcopy(model.peft_config["default"]))
    model.save_pretrained(tmp_path / "of_five", selected_adapters=["default"])
    assert [path.name for path in (tmp_path / "of_five").iterdir() if path.is_dir()] == []
    alone, of_five = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("alone", "of_five"))
    assert alone.keys() == of_five.keys()
    assert all(torch.equal(tensor, of_five[name]) for name, tensor in alone.items())


def test_name_within_the_prefix_is_warned_of_and_odd_names_work(model, method, tmp_path):
    before = logits(model)
    config = METHODS[method]()
    with pytest.warns(UserWarning, match="should not be contained in the prefix"):
        model.add_adapter(model.prefix[:4], config)
    named = get_peft_model(tiny_llama(), METHODS[method](), adapter_name=f"{model.prefix}A").eval()
    want = logits(named)
    named.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / f"{model.prefix}A").eval()
    assert torch.equal(logits(loaded), want)
    assert torch.equal(logits(model), before)


def test_wrong_additions_are_refused_and_leave_the_model_as_it_was(model, method):
    before = set(model.state_dict())
    config = copy.deepcopy(model.peft_config["default"])
    for name, wrong in {
        "default": config,
        "stock": LoraConfig(target_modules=["q_proj"]),
        "nowhere": METHODS[method](target_modules=["no_such_module"]),
    }.items():
        with pytest.raises(ValueError):
            model.add_adapter(name, wrong)
    assert set(model.peft_config) == {"default"}
    assert set(model.state_dict()) == before
    with pytest.raises(ValueError):
        model.set_adapter("nowhere")


def test_gradients_follow_the_active_adapter_and_what_is_asked(model):
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("default", inference_mode=True)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_adapter("default")
    assert all(trains(layer, "default") and not trains(layer, "other") for layer in layers(model))
    model.set_requires_grad("other")
    assert all(trains(layer, "default") and trains(layer, "other") for layer in layers(model))
    assert not any(weight.requires_grad for layer in layers(model) for weight in held(layer))
    model.set_requires_grad(["default", "other"], requires_grad=False)
    assert not any(p.requires_grad for p in model.parameters())


def test_status_tells_what_is_there(model, method):
    status = model.get_model_status()
    assert status.adapter_model_type == type(tuner_of(model)).__name__
    assert status.peft_types == {"default": model.peft_config["default"].peft_type}
    assert status.num_adapter_layers == len(layers(model)) == 14
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.devices == {"default": ["cpu"]}
    assert status.trainable_params == model.get_nb_trainable_parameters()[0] > 0
    # Routers that are frozen for good stand beside experts that train.
    mixed = method in ("frozen", "strlora")
    assert status.requires_grad == {"default": "irregular" if mixed else True}
    assert [each.module_type for each in model.get_layer_status()] == [type(layers(model)[0]).__name__] * 14
    assert len(model.base_model.targeted_module_names) == 14
    assert not model.supports_lora_conversion()
    assert model.get_base_model() is model.base_model.model
    assert all(isinstance(layer.in_features, int) and isinstance(layer.out_features, int) for layer in layers(model))


def test_disabling_nests_and_neither_routes_nor_teaches(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expert_usage(model)
    inputs, routing = batch(ROWS)
    want = forward(tiny_llama(), inputs, routing).logits
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    model.train()
    with model.disable_adapter():
        with model.disable_adapter():
            assert not model.has_active_enabled_adapter
        assert all(layer.disable_adapters for layer in layers(model))
        assert close(model(**inputs, position_ids=positions).logits, want)
        assert close(forward(model, inputs, routing).logits, want)
    model.base_model.disable_adapter_layers()
    assert close(forward(model, inputs, routing).logits, want)
    assert expert_usage(model) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.base_model.enable_adapter_layers()
    assert not close(forward(model, inputs, routing).logits, want)


def test_what_routing_forbids_is_refused_in_words(model, method, tmp_path):
    with pytest.raises(UserError, match="cannot be mixed within a batch"):
        logits(model, adapter_names=["default"] * 2)
    inputs, routing = batch([prompt(sample) for sample in ROWS], left=True)
    with pytest.raises(UserError, match="cannot be mixed within a batch"):
        model.generate(**inputs, **routing_kwargs(model, routing), adapter_names=["default"] * 2)
    with pytest.raises(UserError, match="cannot be combined into one"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports"):
        hotswap_adapter(model, tmp_path, adapter_name="default", torch_device="cpu")
    with pytest.raises(ValueError, match="not compatible"):
        get_peft_model(tiny_llama(), METHODS[method](), mixed=True)


def test_injection_is_for_adapters_that_need_no_routing(method, tmp_path):
    config, bare = METHODS[method](), tiny_llama()
    if not method.startswith("moelora"):
        for inject in (lambda: inject_adapter_in_model(config, bare), lambda: bare.add_adapter(config)):
            with pytest.raises(ValueError, match="Please use `get_peft_model`"):
                inject()
        return
    inputs, routing = batch(ROWS)
    bare.add_adapter(config)
    want = forward(bare, inputs, routing).logits
    assert not close(want, forward(tiny_llama(), inputs, routing).logits)
    bare.save_pretrained(tmp_path)
    again = tiny_llama()
    again.load_adapter(str(tmp_path))
    assert torch.equal(forward(again, inputs, routing).logits, want)
    again.disable_adapters()
    assert torch.equal(forward(again, inputs, routing).logits, forward(tiny_llama(), inputs, routing).logits)
    lean = inject_adapter_in_model(config, tiny_llama(), low_cpu_mem_usage=True)
    assert any(parameter.is_meta for parameter in lean.parameters())


def test_targets_can_be_chosen_as_in_peft(method):
    def adapts(base: Any = None, **options: Any) -> list[str]:
        return adapted(METHODS[method](**options), base).base_model.targeted_module_names

    assert len(adapts(target_modules="all-linear")) == 14
    assert not any("lm_head" in name for name in adapts(target_modules="all-linear"))
    assert {name.split(".")[-1] for name in adapts(target_modules=None)} == {"q_proj", "v_proj"}
    left = adapts(target_modules="all-linear", exclude_modules=["k_proj", "down_proj"])
    assert {name.split(".")[-1] for name in left} == {"q_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    for index in ([1], 1):
        only = adapts(target_modules=["q_proj", "v_proj"], layers_to_transform=index)
        assert only == [f"model.layers.1.self_attn.{name}_proj" for name in "qv"]
    with pytest.raises(UserError, match="layers_to_transform does not count beside a regular expression"):
        adapts(target_modules=r".*_proj", layers_to_transform=[1])
    with pytest.raises(ValueError, match="excluded"):
        adapts(target_modules=["q_proj"], exclude_modules=["q_proj"])
    with pytest.raises(ValueError, match="not found"):
        adapts(target_modules=["no_such_module"])
    with pytest.raises(UserError, match="only linear layers"):
        adapts(target_modules=["embed_tokens"])


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("cast", [False, True])
def test_adapters_take_the_bases_type_unless_cast(method, cast, lean, tmp_path):
    want = {torch.float32 if cast else torch.bfloat16}

    def types(model: Any) -> set[torch.dtype]:
        return {p.dtype for name, p in model.named_parameters() if model.prefix in name}

    half, options = tiny_llama().to(torch.bfloat16), {"autocast_adapter_dtype": cast}
    model = get_peft_model(copy.deepcopy(half), METHODS[method](), **options)
    model.add_adapter("other", METHODS[method](), **options)
    assert types(model) == want
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(half, tmp_path, low_cpu_mem_usage=lean, **options).eval()
    loaded.load_adapter(tmp_path / "other", "other", low_cpu_mem_usage=lean, **options)
    assert types(loaded) == want
    assert torch.isfinite(logits(loaded)).all()


def test_whole_model_can_be_cast_after_adapting(model):
    out = logits(model.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_loading_onto_bfloat16_keeps_weights_and_routes_exact(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama().to(torch.bfloat16), tmp_path)
    ours, theirs = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_loading_takes_a_given_configuration_and_trains_when_asked(model, method, tmp_path):
    model.save_pretrained(tmp_path)
    config = METHODS[method]()
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, config=config, device_map={"": "cpu"})
    assert loaded.peft_config["default"] is config
    assert config.inference_mode
    trained = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    ours, theirs = ([(n, p.requires_grad) for n, p in m.named_parameters()] for m in (model, trained))
    assert ours == theirs
    assert any(wanted for _, wanted in ours)


def test_embeddings_can_be_given_and_require_gradients(method):
    model = adapted(METHODS[method](), prepare_model_for_kbit_training(tiny_llama()))
    model.enable_input_require_grads()
    inputs, routing = batch(ROWS)
    embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert embedded.requires_grad
    out = model(inputs_embeds=embedded, **inputs, **routing_kwargs(model, routing))
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_modules_to_save_may_belong_to_one_adapter_only(model, method):
    first = logits(model)
    model.add_adapter("head", METHODS[method](modules_to_save=["lm_head"]))
    model.set_adapter("head")
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["head"].weight.mul_(2)
    assert not close(logits(model), first)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_layer_activates_several_adapters_at_once(model):
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    alone, layer = {}, layers(model)[0]
    x, (_, routing) = torch.randn(2, 6, layer.in_features), batch([row("llama", seed) for seed in range(2)])
    for names in ("default", "other", ["default", "other"]):
        model.base_model.set_adapter(names)
        with torch.no_grad(), tuner_of(model).routing.using(routing):
            alone[str(names)] = layer(x) - layer.base_layer(x)
    assert close(alone[str(["default", "other"])], alone["default"] + alone["other"])


def test_no_warning_without_cause(method, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        model = adapted(METHODS[method]())
        model.save_pretrained(tmp_path)
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
        model.unload()
