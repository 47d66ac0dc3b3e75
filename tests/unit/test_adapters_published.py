"""Published checkpoints, rebuilt from the recorded weights in the published key layout."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from adapter_models import LINEARS, tiny_llama, tiny_llava
from peft import PeftModel
from published_files import moelora_of, moelora_weights, publish, publish_case, published_tensors
from test_adapters_golden import CASES
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from streamcvit.adapters import RoutingInputs, load_published, routing_kwargs
from streamcvit.adapters.published import convert, import_adapter
from streamcvit.errors import UserError


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_imported_adapter_computes_the_recorded_output(shared_dir, tmp_path, case, pickled):
    t, linear = publish_case(shared_dir / "golden" / f"{case}.safetensors", tmp_path / "theirs", pickled)
    import_adapter(tmp_path / "theirs", tmp_path / "ours")
    embedding = t["inst_emb"] if "inst_emb" in t else t["text"].mean(1) if "text" in t else None
    loaded = PeftModel.from_pretrained(nn.Sequential(linear), str(tmp_path / "ours"))
    with torch.no_grad():
        out = loaded(t["x"], **routing_kwargs(loaded, RoutingInputs(instruction=embedding)))
    assert float((out - t["out"]).abs().max()) < 1e-4 * float(t["out"].abs().max())
    held = dict(loaded.named_buffers())
    for name, ours in {"wq": "query", "wk": "key", "proto": "prototypes", "w_sub": "token_router"}.items():
        if f"ema0.{name}" in t:
            average = held[f"base_model.model.0.strlora_average_{ours}.default"]
            assert torch.equal(average, t[f"ema0.{name}"])


def test_loading_and_importing_are_one_conversion(shared_dir, tmp_path):
    case = shared_dir / "golden" / "strlora_k2_s1_D8_distill.safetensors"
    _, linear = publish_case(case, tmp_path / "theirs", pickled=True)
    direct = load_published(tmp_path / "theirs", nn.Sequential(linear)).state_dict()
    import_adapter(tmp_path / "theirs", tmp_path / "ours")
    _, linear = publish_case(case, tmp_path / "again", pickled=True)
    stored = PeftModel.from_pretrained(nn.Sequential(linear), str(tmp_path / "ours")).state_dict()
    assert direct.keys() == stored.keys()
    assert all(torch.equal(direct[name], stored[name]) for name in direct)


def test_token_router_that_attention_leaves_unused_is_dropped_and_named(shared_dir, tmp_path):
    t, _ = publish_case(shared_dir / "golden" / "strlora_k2_s1_D8.safetensors", tmp_path, pickled=True)
    tensors = torch.load(tmp_path / "adapter_model.bin", weights_only=True)
    experts, inputs = len(t["A"]), t["A"].shape[2]
    torch.save(
        tensors | {"base_model.model.0.lora_sub_router.weight": torch.ones(experts, inputs)},
        tmp_path / "adapter_model.bin",
    )
    found = convert(tmp_path)
    assert not any("token_router" in name for name in found.state)
    assert any("lora_sub_router.weight of 0" in line for line in found.left)


def test_averages_inside_the_adapter_file_are_taken(shared_dir, tmp_path):
    t, _ = publish_case(shared_dir / "golden" / "strlora_k2_s1_D8_distill.safetensors", tmp_path, pickled=True)
    (tmp_path / "router_distill_ema.bin").unlink()
    tensors = torch.load(tmp_path / "adapter_model.bin", weights_only=True)
    names = {"wq": "wq_weight", "wk": "wk_weight", "proto": "expert_proto"}
    kept = {f"base_model.model.0.lora_ema_attn_{theirs}": t[f"ema0.{ours}"] for ours, theirs in names.items()}
    torch.save(tensors | kept, tmp_path / "adapter_model.bin")
    state = convert(tmp_path).state
    assert torch.equal(state["base_model.model.0.strlora_average_query"], t["ema0.wq"])
    assert torch.equal(state["base_model.model.0.strlora_average_prototypes"], t["ema0.proto"])


def test_modules_are_found_where_the_language_model_is_nested_otherwise(tmp_path):
    folder = publish(tmp_path, "MOELORA", moelora_of(tiny_llama(), LINEARS), lora_alpha=12, topk=0)
    model = load_published(folder, tiny_llava())
    adapted = [name for name, module in model.named_modules() if hasattr(module, "moelora_A")]
    assert len(adapted) == 14
    assert all("language_model.layers" in name for name in adapted)


def internvl_style(model: nn.Module) -> dict[str, torch.Tensor]:
    """Published tensors whose language model is nested as in InternVL's own code."""
    tensors = moelora_of(model, LINEARS)
    return {name.replace("base_model.model.model.", "base_model.model.language_model.model."): tensors[name]
            for name in tensors}  # fmt: skip


def test_projector_is_carried_over_to_a_model_that_has_one(tmp_path):
    folder = publish(tmp_path / "theirs", "MOELORA", internvl_style(tiny_llama()), topk=0)
    model = tiny_llava()
    own = {n: p.detach() for n, p in model.named_parameters() if "multi_modal_projector" in n}
    theirs = {"linear_1": "mlp1.1", "linear_2": "mlp1.3"}
    trained = {
        f"base_model.model.{theirs[name.split('.')[-2]]}.{name.split('.')[-1]}": torch.randn_like(value)
        for name, value in own.items()
    }
    torch.save(trained, folder / "non_lora_trainables.bin")
    left = import_adapter(folder, tmp_path / "without", tiny_llava())
    assert any("mlp1.#.weight (x2)" in line and "was left" in line for line in left.left)
    import_adapter(folder, tmp_path / "with", tiny_llava(), carry_projector=True)
    loaded = PeftModel.from_pretrained(model, str(tmp_path / "with"))
    state = loaded.state_dict()
    for name, value in trained.items():
        path = name.removeprefix("base_model.model.").replace("mlp1.1", "linear_1").replace("mlp1.3", "linear_2")
        module, kind = path.split(".")
        (key,) = [k for k in state if f"{module}.modules_to_save.default.{kind}" in k]
        assert torch.equal(state[key], value)


def test_projector_of_another_size_or_without_a_model_is_refused(tmp_path):
    folder = publish(tmp_path, "MOELORA", moelora_of(tiny_llama(), LINEARS), topk=0)
    torch.save({"base_model.model.model.mm_projector.0.weight": torch.ones(2, 2)}, folder / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="mm_projector.0.weight .2, 2., not .32, 32."):
        convert(folder, tiny_llava(), carry_projector=True)
    with pytest.raises(UserError, match="--model"):
        convert(folder, carry_projector=True)
    torch.save({"model.mm_projector.0.weight": torch.ones(32, 32)}, folder / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="missing, where PEFT saves modules whole .1.: .*linear_1.bias"):
        convert(folder, tiny_llava(), carry_projector=True)


def test_conversion_reads_only_names_and_shapes_of_the_model(tmp_path):
    folder = publish(tmp_path, "MOELORA", moelora_of(tiny_llama(), LINEARS), topk=0)
    with torch.device("meta"):
        model = tiny_llava()
    places = {place for place, _, _ in convert(folder, model).modules.values()}
    assert all(place.startswith("model.language_model.layers.") for place in places)


def small(**config: Any) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """A base of one linear, and published MoELoRA tensors for it."""
    base = nn.Sequential(nn.Linear(4, 5))
    return base, published_tensors(moelora_weights(base[0]), "0")  # type: ignore[arg-type]


def drop_expert(t: dict[str, torch.Tensor], e: int = 1) -> None:
    for name in ("mlp.weight", "weight"):
        del t[f"base_model.model.0.lora_B.loraB.{e}.{name}"]


KEY = "base_model.model.0.lora_router.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (drop_expert, r"missing tensors \(1\): 0.lora_B.loraB.1.mlp.weight"),
        (lambda t: t.update({"base_model.model.0.lora_magic.weight": torch.ones(1)}), r"unknown tensors .*lora_magic"),
        (lambda t: t.update({"base_model.model.0.lora_fc_A.weight": torch.ones(1, 5)}), r"does not have .*lora_fc_A"),
        (lambda t: t.update({KEY: torch.ones(2, 9)}), r"wrong shape .*lora_router.weight \[2, 9\], not \[2, 4\]"),
        (lambda t: t.update({KEY: torch.ones(2, 4, 1)}), r"wrong shape"),
        (lambda t: t.update({KEY: torch.ones(2, 4, dtype=torch.int64)}), r"type int64"),
        (lambda t: t.update({KEY: torch.full((2, 4), float("nan"))}), r"NaN or infinity \(1\): .*lora_router"),
        (lambda t: t.update({KEY: [[1.0] * 4] * 2}), r"no tensors but list"),
        (lambda t: t.update({KEY: {"deep": {"er": torch.ones(1)}}}), r"no tensors but dict \(1\): .*deep"),
        (lambda t: t.update({KEY: torch.ones(1).expand(2**20, 2**20)}), r"larger than what is stored"),
        (lambda t: t.update({"base_model.model.0.lora_A.loraA.0.weight": torch.ones(3, 4)}), r"two names"),
        (lambda t: t.clear(), "no adapter weights"),
    ],
)
def test_damaged_checkpoints_are_refused_with_what_is_wrong(tmp_path, change, message):
    base, tensors = small()
    change(tensors)
    with pytest.raises(UserError, match=message):
        load_published(publish(tmp_path, "MOELORA", tensors, pickled=True, topk=0), base)


def test_all_faults_are_named_at_once_and_alike_ones_together(tmp_path):
    tensors = moelora_of(tiny_llama(), LINEARS)
    for name in [name for name in tensors if "gate_proj" in name and "router" in name]:
        del tensors[name]
    for layer in range(2):
        tensors[f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_magic.weight"] = torch.ones(1)
    tensors["base_model.model.model.layers.1.mlp.down_proj.lora_router.weight"] = torch.ones(3)
    with pytest.raises(UserError) as caught:
        convert(publish(tmp_path, "MOELORA", tensors, topk=0))
    text = str(caught.value)
    assert "unknown tensors (2): base_model.model.model.layers.#.mlp.up_proj.lora_magic.weight (x2)" in text
    assert "missing tensors (2): model.layers.#.mlp.gate_proj.lora_router.weight (x2)" in text
    assert "model.layers.1.mlp.down_proj.lora_router.weight [3], not [2, 64]" in text


@pytest.mark.parametrize(
    "config, message",
    [
        ({"expert_num": 4}, "expert_num is 4 in the configuration, the tensors hold 2 experts"),
        ({"r": 3}, "r is 3 in the configuration, the tensors hold 2 experts of rank 3, 6 together"),
        ({"r": "6"}, "r in the configuration is '6', not a whole number"),
        ({"lora_alpha": [1]}, "lora_alpha in the configuration is .1., not a number"),
        ({"topk": -1}, "topk in the configuration is -1"),
        ({"topk": 9}, "top_k must be between 0 and num_experts"),
        ({"use_dora": True}, "use_dora is set"),
        ({"peft_type": ["MOELORA"] * 1000}, "are not known"),
    ],
)
def test_configuration_at_odds_with_the_tensors_is_refused(tmp_path, config, message):
    base, tensors = small()
    with pytest.raises(UserError, match=message) as caught:
        load_published(publish(tmp_path, **{"kind": "MOELORA", "tensors": tensors, "topk": 0, **config}), base)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 600


def test_strlora_sizes_are_compared_with_the_configuration(shared_dir, tmp_path):
    publish_case(shared_dir / "golden" / "strlora_k2_s1_D8.safetensors", tmp_path, pickled=False)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"attn_proj_dim": 64, "task_embedding_dim": 7}))
    with pytest.raises(UserError, match="attn_proj_dim is 64 .* and 8 in the tensors; task_embedding_dim is 7"):
        convert(tmp_path)


@pytest.mark.parametrize("keep", [0, 300, 900])
@pytest.mark.parametrize("zipped", [False, True])
def test_file_cut_short_is_named(tmp_path, keep, zipped):
    base, tensors = small()
    publish(tmp_path, "MOELORA", {}, topk=0)
    (tmp_path / "adapter_model.safetensors").unlink()
    path = tmp_path / "adapter_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"no readable adapter_model\.bin"):
        load_published(tmp_path, base)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match=r"no readable adapter_model\.safetensors"):
        load_published(tmp_path, base)


def test_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    for where in ("adapter_model.bin", "non_lora_trainables.bin", "router_distill_ema.bin"):
        base, tensors = small()
        folder = publish(tmp_path / where, "MOELORA", tensors, pickled=True, topk=0)
        torch.save({"base_model.model.0.lora_router.weight": Evil()}, folder / where)
        with pytest.raises(UserError, match=r"more than tensors \(posix.mkdir\), and nothing in it is run") as caught:
            load_published(folder, base)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_unknown_method_and_missing_files_are_named(tmp_path):
    base, tensors = small()
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        load_published(tmp_path, base)
    with pytest.raises(UserError, match="'DORA'"):
        load_published(publish(tmp_path, "DORA", tensors), base)
    (tmp_path / "adapter_config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="holds a list"):
        load_published(tmp_path, base)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"no readable adapter_config\.json"):
        load_published(tmp_path, base)
    with (tmp_path / "adapter_config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match="1024 MiB, more than any configuration"):
        load_published(tmp_path, base)


def test_table_of_instruction_embeddings_in_the_configuration_is_no_hindrance(tmp_path):
    base, tensors = small()
    folder = publish(tmp_path, "MOELORA", tensors, topk=0, ins_emb=[[0.25] * 384] * 50)
    load_published(folder, base)


def test_setting_that_the_configuration_leaves_out_must_be_given(tmp_path):
    base, tensors = small()
    folder = publish(tmp_path, "MOELORA", tensors)
    with pytest.raises(UserError, match="top_k"):
        load_published(folder, base)
    assert load_published(folder, base, top_k=1).peft_config["default"].top_k == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"nonsense": 1}, "has no setting of this name .*nonsense"),
        ({"r": 8}, "follow from the tensors .*: r"),
        ({"lora_alpha": "much"}, "lora_alpha .*'much', not a number"),
        ({"top_k": "two"}, "bad setting"),
    ],
)
def test_settings_that_cannot_be_given_are_named(tmp_path, options, message):
    _, tensors = small()
    with pytest.raises(UserError, match=message):
        convert(publish(tmp_path, "MOELORA", tensors, topk=0), options=options)


def test_smolora_cannot_come_with_a_router_that_has_no_gates(shared_dir, tmp_path):
    publish_case(shared_dir / "golden" / "smolora_E4_r16_64x96.safetensors", tmp_path, pickled=False)
    with pytest.raises(UserError, match="gates for both banks"):
        convert(tmp_path, options={"router": "prototype", "visual_dim": 8})


def test_folder_that_exists_is_left_and_nothing_stays_half_written(tmp_path, monkeypatch):
    _, tensors = small()
    folder = publish(tmp_path / "theirs", "MOELORA", tensors, topk=0)
    (tmp_path / "ours").mkdir()
    with pytest.raises(UserError, match="exists already"):
        import_adapter(folder, tmp_path / "ours")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streamcvit.adapters.published.conversion.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        import_adapter(folder, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_modules_that_fit_no_or_two_modules_are_all_named_and_can_be_skipped(tmp_path):
    tensors = moelora_of(tiny_llama(), LINEARS)
    linear = nn.Linear(4, 5)
    for name in ("model.thinker.0", "model.thinker.1"):
        tensors |= published_tensors(moelora_weights(linear), name)
    folder = publish(tmp_path, "MOELORA", tensors, topk=0)
    with pytest.raises(UserError, match=r"fit none of the model's \(2\): model.thinker.# \(x2\)"):
        convert(folder, tiny_llava())
    found = convert(folder, tiny_llava(), skip="thinker")
    assert len(found.modules) == 14
    assert "2 adapted modules were skipped" in found.left


def test_model_of_another_size_is_refused(tmp_path):
    wide = LlamaForCausalLM(
        LlamaConfig(hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=9)
    )
    folder = publish(tmp_path, "MOELORA", moelora_of(tiny_llama(), LINEARS), topk=0)
    with pytest.raises(UserError, match=r"another size than the model's \(14\)"):
        convert(folder, wide)
