"""The recipes of published benchmarks: every one is run whole, and its published rows are what its paper says."""

from __future__ import annotations

import json
import os
import re
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamcvit import cli
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.models.tiny import TINY, save_tiny
from streamcvit.monitoring import RunRecord
from streamcvit.pipeline import builtin, load_config
from streamcvit.preflight import reach_of
from streamcvit.rehearsal import rehearsal

RECIPES = [
    "strcvit-25", "strcvit-20", "strcvit-15", "cvit-single", "cvit-five", "coin", "ucit", "mllm-cl-dcl", "mllm-cl-acl",
    "he-nine",
]  # fmt: skip


def recipe(name: str) -> RunConfig:
    return load_config(builtin(name))


def test_these_are_all_recipes_that_come_with_streamcvit() -> None:
    found = {path.stem for path in builtin("coin").parent.glob("*.yaml")}
    assert found == {*RECIPES, "embedded", "embedded-hard", "real-small"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_whole_in_its_dry_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["run", name, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    config, folder = recipe(name), tmp_path / "runs" / f"{name}-dry-run"
    assert os.listdir(tmp_path) == ["runs"] and os.listdir(tmp_path / "runs") == [folder.name]
    assert "no score means anything" in done.output and f"report: {folder / 'report.html'}" in done.output
    page = (folder / "report.html").read_text()
    learned = set()
    for method, settings in config.methods.items():
        record = RunRecord.load(folder / method)
        assert record.finished, method
        summary = json.loads((folder / method / "summary.json").read_text())
        assert summary["tasks"] == list(config.stream.tasks)
        last = dict(zip(summary["tasks"], summary["matrix"][-1], strict=True))
        assert [task for task, score in last.items() if score is None] == [], method
        if settings.adapter != "none":
            learned.add(record.position)
            assert record.position == record.plan.sum() > 0, method
        assert method in page and method in done.output
    assert len(learned) == 1  # every method the same samples, all of them


@pytest.mark.parametrize(("name", "architecture"), [("strcvit-25", "internvl"), ("cvit-single", "llava")])
def test_published_ranks_and_rates_fit_the_architecture(name: str, architecture: str, tmp_path: Path) -> None:
    config = recipe(name)
    assert config.model.architecture == architecture
    base = str(save_tiny(architecture, tmp_path / "base"))
    lines = reach_of(config.model_copy(update={"model": config.model.model_copy(update={"name_or_path": base})}))
    assert list(lines) == [method for method, settings in config.methods.items() if settings.adapter != "none"]
    assert all("projector" in line for line in lines.values())


def test_a_qformer_and_its_projection_learn_and_the_language_model_next_to_nothing(tmp_path: Path) -> None:
    config = recipe("he-nine")
    base = str(save_tiny(config.model.architecture, tmp_path / "base"))
    lines = reach_of(config.model_copy(update={"model": config.model.model_copy(update={"name_or_path": base})}))
    assert set(lines) == set(config.methods) - {"zero-shot"}
    for line in lines.values():
        found = re.search(
            r"trains qformer, language_projection whole, .*language model ([\d,]+), projector ([\d,]+)", line
        )
        assert found is not None, line
        language, projector = (int(number.replace(",", "")) for number in found.groups())
        assert language < 0.01 * projector


@pytest.mark.parametrize("name", RECIPES)
def test_published_means_are_the_means_of_their_tasks(name: str) -> None:
    config, told = recipe(name), 0
    learned = {task for task, files in config.stream.tasks.items() if files.train}
    for table in config.published:
        assert table.source and table.model
        for method, row in table.rows.items():
            if set(row.tasks) != learned or (name, method) == ("cvit-five", "EWC"):
                continue  # that one is printed so, 0.06 points beside the mean of its tasks
            for metric in ("ap", "mfn"):
                if metric in row.metrics:
                    assert statistics.mean(row.tasks.values()) == pytest.approx(row.metrics[metric], abs=0.02)
                    told += 1
    assert told == {"cvit-single": 10, "cvit-five": 6, "mllm-cl-dcl": 1}.get(name, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["run", "coin"],
            "stream.data and model.name_or_path are not set. Set both in the file, or with --data FOLDER",
        ),
        (["run", "coin", "--data", "x"], "model.name_or_path is not set. Set it in the file, or with --model FOLDER"),
        (["check", "coin", "--model", "x"], "stream.data is not set. Set it in the file, or with --data FOLDER"),
        (["shard", "coin", "out"], "stream.data is not set"),
        (["scenario", "show", "coin"], "stream.data is not set"),
        (["run", "embedded", "--dry-run"], "makes up the files of a published benchmark, and this pipeline is of none"),
        (["run", "coin", "--dry-run", "--set", "model.architecture=bert"], "no tiny model of the architecture 'bert'"),
    ],
)
def test_what_a_recipe_lacks_is_one_line(words: list[str], said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(cli.app, words)
    assert isinstance(found.exception, UserError) and said in str(found.exception)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("architecture", TINY)
def test_a_tiny_model_of_each_architecture_can_be_rehearsed_on(architecture: str, tmp_path: Path) -> None:
    from streamcvit.models.base import load_base

    base = load_base(str(save_tiny(architecture, tmp_path / "base")), device="cpu", dtype="float32")
    assert base.model.config.model_type == architecture
    assert sum(p.numel() for p in base.model.parameters()) < 300_000


def test_a_dry_run_takes_the_architecture_of_the_model_that_is_named(tmp_path: Path) -> None:
    named = str(save_tiny("gemma3", tmp_path / "mine"))
    config = load_config(builtin("cvit-single"), [f"model.name_or_path={named}"])
    with rehearsal(config) as (small, lines):
        assert "a tiny gemma3" in lines[0]
        assert small.model.name_or_path != named and small.methods.keys() == config.methods.keys()
        made = Path(small.stream.data)
        assert made.is_dir()
    assert not made.exists()
