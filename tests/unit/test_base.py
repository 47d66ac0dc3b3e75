"""Loading a base model: whole, frozen, or a message that says what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from streamcvit.adapters.targets import target_modules
from streamcvit.errors import UserError
from streamcvit.models import base as base_module
from streamcvit.models.base import Base, load_base, skeleton
from streamcvit.models.processor import load_processor
from tests.models import TINY, save, tiny_base, tiny_llava, tiny_samples

KINDS = sorted(TINY)


@pytest.fixture
def folder(tmp_path) -> Path:
    return save(tiny_llava(), tmp_path / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back_frozen_with_a_processor_that_sees_images(kind, tmp_path):
    pair = TINY[kind]()
    loaded = load_base(save(pair, tmp_path), device="cpu")
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.dtype == torch.float32 and loaded.device.type == "cpu"
    inputs = loaded.collator.prompts(tiny_samples(2))
    with torch.no_grad():
        assert torch.equal(loaded.model(**inputs.tensors).logits, pair[0](**inputs.tensors).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_target_modules_are_the_linear_layers_of_the_language_model_only(kind):
    model = tiny_base(kind).model
    wanted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model.layers" in name
    }
    found = target_modules(model)
    assert isinstance(found, str)
    assert {name for name, _ in model.named_modules() if re.fullmatch(found, name)} == wanted
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=found))
    adapted = {name for name, _ in peft_model.named_modules() if name.endswith("lora_A.default")}
    assert len(adapted) == len(wanted) == 14
    assert not any(word in name for name in adapted for word in ("vision", "visual", "projector", "lm_head"))


def test_dtype_can_be_asked_for(folder):
    assert load_base(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(UserError, match="unknown dtype"):
        load_base(folder, device="cpu", dtype="int4")


def test_digest_follows_weights_and_processor_and_not_the_place(folder, tmp_path):
    again = save(tiny_llava(), tmp_path / "elsewhere")
    digest = load_base(folder).digest
    assert digest == load_base(again).digest
    weights = load_file(again / "model.safetensors")
    weights[min(weights)] += 1
    save_file(weights, again / "model.safetensors", metadata={"format": "pt"})
    assert digest != load_base(again).digest
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(settings))
    assert digest != load_base(folder).digest
    assert len(Base(*tiny_llava()).digest) == 64


def test_a_bare_tokenizer_in_place_of_a_processor_is_refused(folder):
    (folder / "processor_config.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["processor_class"] = "SomebodysOwnProcessor"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="processor"):
        load_base(folder)


def test_a_processor_class_that_nobody_knows_is_refused(folder, monkeypatch):
    import transformers

    tokenizer = tiny_llava()[1].tokenizer
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *args, **kwargs: tokenizer)
    with pytest.raises(UserError, match="without an image processor"):
        load_processor(folder)


def test_a_missing_folder_says_so():
    with pytest.raises(UserError, match="no such model folder"):
        load_base("./not/there")
    with pytest.raises(UserError, match="no such model folder"):
        load_base("/not/there")


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(UserError, match="config.json is missing"):
        load_base(tmp_path)


def test_a_text_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="without an image processor"):
        load_base(tmp_path)


def test_a_hub_name_without_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="Check the name and the network"):
        load_base("nobody/such-a-model-exists")


def test_weights_missing_from_the_files_are_an_error_and_not_random(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "language_model" in name and "q_proj" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="would start at random"):
        load_base(folder)


def test_too_little_memory_is_said_before_loading(folder, monkeypatch):
    monkeypatch.setattr(base_module, "_free_memory", lambda: 1000)
    with pytest.raises(UserError, match="GiB are free on cpu"):
        load_base(folder, device="cpu")


def test_model_and_processor_must_agree_on_the_image_token():
    model, processor = tiny_llava()
    model.config.image_token_index = 9
    with pytest.raises(UserError, match="disagree on the image token"):
        Base(model, processor)


def test_the_packaged_model_loads_by_name():
    loaded = load_base("embedded", device="cpu")
    assert loaded.model.config.model_type == "llava" and loaded.collator.max_length


def test_the_digest_of_a_model_from_no_folder_is_not_that_of_its_adapters():
    built, wrapped = Base(*tiny_llava()), Base(*tiny_llava())
    get_peft_model(wrapped.model, LoraConfig(r=2, target_modules=target_modules(wrapped.model)))
    assert built.digest == wrapped.digest


def test_a_family_that_takes_no_image_features_is_refused(monkeypatch):
    model, processor = tiny_llava()
    monkeypatch.setattr(model, "forward", lambda input_ids=None, pixel_values=None: None)
    with pytest.raises(UserError, match="computed beforehand"):
        Base(model, processor)


@pytest.mark.parametrize("known", [True, False])
def test_no_code_of_a_model_folder_is_run_or_asked_for_whatever_someone_types(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = save(tiny_llava(), tmp_path / "model"), tmp_path / "marker"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (folder / "own.py").write_text(code + "class Config: ...\nclass Model: ...\nclass Processor: ...\n")
    path = folder / "config.json"
    classes = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model", "AutoProcessor": "own.Processor"}
    config = json.loads(path.read_text()) | {"auto_map": classes}
    path.write_text(json.dumps(config | ({} if known else {"model_type": "own"})))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": (asked.append(question), "y")[1])
    if known:  # transformers has a class for it, and that is taken
        assert type(load_base(folder, device="cpu").model).__name__ == "LlavaForConditionalGeneration"
        assert type(skeleton(folder)).__name__ == "LlavaForConditionalGeneration"
    else:
        for load in (load_base, skeleton):
            with pytest.raises(UserError, match="needs Python code from the model's folder, which is never run here"):
                load(folder)
    assert not marker.exists() and asked == []
