"""Which attention a base computes with, and which revision of a hub model it is: said in the config, kept to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import save, tiny_llava

from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.models.attention import check_attention
from streamcvit.models.base import fetch, load_base, skeleton
from streamcvit.models.collate import Collator
from streamcvit.preflight import check_settings
from streamcvit.run.loading import collation, load_model
from streamcvit.trained import with_model

NAME = "somebody/tiny"
OLD, NEW = "a" * 40, "b" * 40


def config(**model: str) -> RunConfig:
    return RunConfig.model_validate({"model": {"device": "cpu", **model}, "methods": {"lora": {"adapter": "lora"}}})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_run_loads_its_base_with_the_attention_that_the_config_names(attention: str) -> None:
    model = load_model(config(attention=attention)).model
    for part in (model, model.model.language_model, model.model.vision_tower):
        assert part.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        (
            "flash_attention_2",
            "model.attention: flash_attention_2 learns on a GPU only, and the model is on the CPU. Set",
        ),
        ("flex_attention", "model.attention: flex_attention learns on a GPU only"),
        ("sdqa", "model.attention: the model cannot have 'sdqa' here: Specified `attn_implementation="),
    ],
)
def test_an_attention_that_the_base_cannot_have_is_refused_before_anything_is_learned(
    attention: str, said: str
) -> None:
    for check in (lambda run: check_settings(run, local=True), load_model):
        with pytest.raises(UserError) as caught:
            check(config(attention=attention))
        assert said in str(caught.value) and "\n" not in str(caught.value)
        assert str(caught.value).rstrip(".").endswith("Set it to sdpa or eager")


def test_an_attention_without_its_package_or_its_dtype_is_refused() -> None:
    with pytest.raises(UserError, match="cannot have 'flash_attention_2' here: .*package.*Set it to sdpa or eager"):
        skeleton("embedded", attn="flash_attention_2")
    with pytest.raises(UserError, match="no kernel for float32. Set model.dtype to bfloat16"):
        check_attention("flash_attention_2", torch.device("cuda"), torch.float32)
    check_attention("flash_attention_2", torch.device("cuda"), torch.bfloat16)


def test_what_answers_on_a_cpu_computes_without_the_attention_of_a_gpu() -> None:
    run = config(attention="flash_attention_2", revision=OLD)
    assert with_model(run, device="cpu").model.attention == "sdpa"
    assert with_model(run, device="cuda:1").model.attention == "flash_attention_2"
    assert with_model(run).model.revision == OLD and with_model(run, name_or_path="embedded").model.revision == ""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache on this machine, which is asked no further: two commits of one model, `main` and a tag."""
    place = tmp_path / "models--somebody--tiny"
    (place / "refs").mkdir(parents=True)
    for name, commit, width in (("main", NEW, 32), ("v1", OLD, 16)):
        (place / "refs" / name).write_text(commit)
        save(tiny_llava(width), place / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return place


def test_a_revision_is_the_one_that_every_part_of_a_run_loads(hub: Path) -> None:
    assert fetch(NAME, OLD) == fetch(NAME, "v1")
    for revision, commit, width in (("", NEW, 32), ("v1", OLD, 16)):
        run = config(name_or_path=NAME, revision=revision)
        folder = hub / "snapshots" / commit
        assert fetch(NAME, revision) == str(folder)
        base = load_model(run)
        assert base.model.config.text_config.hidden_size == width
        assert base.digest == load_base(folder, device="cpu").digest
        assert skeleton(NAME, revision).config.text_config.hidden_size == width  # type: ignore[union-attr]
        assert Collator.from_pretrained(NAME, **collation(run)).tokenizer.get_vocab()
        assert f"; {base.model.num_parameters():,} in all" in check_settings(run, local=True)[0]


def test_a_revision_of_what_has_none_and_one_that_is_not_there_are_refused(hub: Path, tmp_path: Path) -> None:
    for name in ("embedded", str(hub / "snapshots" / OLD)):
        for check in (lambda run: check_settings(run, local=True), load_model):
            with pytest.raises(UserError, match=r"model.revision v1: .* has no revisions.*Leave it out, or give"):
                check(config(name_or_path=name, revision="v1"))
    with pytest.raises(UserError, match="Check the name and the network"):
        fetch(NAME, "v2")
