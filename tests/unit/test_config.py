"""The config tree: what it accepts, and what it says of what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from streamcvit.config import RunConfig, builtin, load_config
from streamcvit.errors import UserError

PIPELINES = sorted((Path(__file__).resolve().parents[2] / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_every_pipeline_validates(path: Path) -> None:
    assert isinstance(load_config(path), RunConfig)


def test_the_dump_reads_back_as_the_same_config() -> None:
    config = load_config(builtin("embedded"))
    assert RunConfig.model_validate(yaml.safe_load(config.dump())) == config


def test_set_overrides_a_nested_value() -> None:
    config = load_config(None, ["learner.batch_size=4", "stream.scenario.chunks=3"])
    assert (config.learner.batch_size, config.stream.scenario.chunks) == (4, 3)


def test_a_rate_set_by_hand_is_the_rate_of_every_method() -> None:
    config = load_config(builtin("embedded"), ["learner.lr=1e-3"])
    assert config.learner.lr == 1e-3
    assert all(method.lr is None for method in config.methods.values())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learner.lrr=1", ["learner.lrr", "no such setting", "batch_size"]),
        ("learner.lr=-1", ["learner.lr", "greater than 0", "-1"]),
        ("model.dtype=int8", ["model.dtype", "bfloat16", "int8"]),
        ("methods.x.adapter=nonsense", ["methods.x.adapter", "nonsense", "smolora"]),
        ("methods.x.strategy=nonsense", ["methods.x.strategy", "sequential"]),
        ("name=../up", ["name", "pattern"]),
        ("learner", ["--set", "key.path=value"]),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(setting: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [setting])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_bad_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("learner: {lr: [}\n")
    with pytest.raises(UserError, match="line 1"):
        load_config(path)


@pytest.mark.parametrize("methods", ["", "[lora]", "lora"])
def test_a_rate_beside_methods_that_are_none_is_a_mistake_in_one_line(tmp_path: Path, methods: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"name: c\nmethods: {methods}\n")
    with pytest.raises(UserError, match="methods"):
        load_config(path, ["learner.lr=0.1"])
