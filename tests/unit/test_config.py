"""The config tree: what it accepts, and what it says of what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.pipeline import builtin, load_config

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
        ("name=../up", ["name", "letters, digits", "the first a letter or digit", "../up"]),
        ("name=my run", ["name", "letters, digits", "my run"]),
        ("name=12", ["name", "must be a text: put it in quotes", "12"]),
        ("learner.lr=.inf", ["learner.lr", "finite"]),
        ("train.layers=", ["train.layers: must be a number, a text or a list (got None)"]),
        ("train.modules=[q_proj, 3]", ["train.modules: must be a text or a list"]),
        ("learner=", ["learner: is empty: remove the line, or put settings below it"]),
        ("learner=[1]", ["learner: must be a section with settings below it (got [1])"]),
        ("methods.x=", ["methods.x: is empty"]),
        ("methods.stream.adapter=lora", ["methods.stream: the name must be", "none of stream, config.yaml"]),
        ("methods.a/b.adapter=lora", ["methods.a/b: the name must be"]),
        ("learner={lr: 1, lr: 2}", ["--set learner: bad value", "the key lr stands twice"]),
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nseed: 1\nname: b\n", "the key name stands twice, in lines 1 and 3"),
        (
            "methods:\n  lora: {adapter: lora}\n  m: {adapter: moelora}\n  'lora': {adapter: none}\n",
            "methods.lora stands twice, in lines 2 and 4",
        ),
        ("learner: {lr: 1, betas: [{a: 1, a: 2}]}\n", "learner.betas.0.a stands twice, in lines 1 and 1"),
        ("stream:\n  tasks: &t\n    a: {train: x,\n  train: y}\nmodel: *t\n", "stream.tasks.a.train stands twice"),
    ],
)
def test_a_key_given_twice_is_named_with_its_sections_and_lines(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml: the key ") as caught:
        load_config(path)
    assert said in str(caught.value) and "Keep one of them" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "defaults: &d {adapter: lora, lr: 0.5}\nmethods:\n  a: {<<: *d, lr: 0.25}\n  b: *d\n",  # merged, not doubled
        "\ufeffname: x\n",
    ],
)
def test_what_only_looks_doubled_or_odd_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    if "defaults" in text:
        with pytest.raises(UserError, match="defaults: no such setting. Allowed here"):
            load_config(tmp_path / "c.yaml")
    else:
        assert load_config(tmp_path / "c.yaml").name == "x"


def test_a_file_nested_without_end_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: " + "[" * 5000)
    with pytest.raises(UserError, match="not valid YAML .it is nested too deeply"):
        load_config(tmp_path / "c.yaml")


def test_a_task_name_that_no_file_can_have_is_refused_with_the_rule(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("stream: {source: files, tasks: {a/b: {test: t.json}}}\n")
    with pytest.raises(UserError, match="'a/b' is no name of a task: .*no / or"):
        load_config(tmp_path / "c.yaml")


def test_a_pipeline_of_the_package_goes_by_its_name_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("embedded") == load_config(builtin("embedded"))
    with pytest.raises(UserError, match="the name of one that comes with streamcvit: coin, cvit-five, "):
        load_config("embeded")
    (tmp_path / "embedded").write_text("name: own\n")
    assert load_config("embedded").name == "own"


def run_of_ours(folder: Path) -> Path:
    """What a run of two methods leaves, as far as its settings are concerned."""
    config = RunConfig(name="first", out="/gone", methods={"a": {"adapter": "lora"}})  # type: ignore[dict-item]
    (folder / "a").mkdir(parents=True)
    for path in (folder, folder / "a"):
        (path / "config.yaml").write_text(config.dump())
    (folder / "a" / "run.json").write_text("{}")
    return folder


def test_a_runs_config_means_the_run_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_of_ours(tmp_path / "moved" / "renamed")
    for path in (folder / "config.yaml", folder / "a" / "config.yaml"):
        assert load_config(path).folder() == folder
    monkeypatch.chdir(folder)
    assert load_config("config.yaml").folder() == folder
    assert load_config("config.yaml", name="other").folder() == folder.parent / "other"
    assert load_config("config.yaml", ["out=/elsewhere"]).folder() == Path("/elsewhere/renamed")


def test_a_config_without_a_run_beside_it_is_a_pipeline_like_any_other(tmp_path: Path) -> None:
    folder = run_of_ours(tmp_path / "run")
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    assert load_config(tmp_path / "config.yaml").folder() == Path("/gone/first")
    (folder / "mine.yaml").write_text("name: mine\n")
    assert load_config(folder / "mine.yaml").folder() == Path("runs/mine")


def test_a_folder_whose_name_no_run_can_have_is_said_in_words(tmp_path: Path) -> None:
    folder = run_of_ours(tmp_path / "first (copy)")
    with pytest.raises(UserError, match=r"name: must be 1 to 64 letters.* \(got 'first \(copy\)'\). Rename the folder"):
        load_config(folder / "config.yaml")
