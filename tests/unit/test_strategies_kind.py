"""What holds for every strategy there is: options are looked at, state is missed, labels are asked for in the open."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_strategies_importance import learner_for

from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.learning import STRATEGIES, Sequential
from streamcvit.preflight import check_options
from streamcvit.run.resume import check_strategies, setting_changes
from tests.models import picture

STATEFUL = [name for name in STRATEGIES if name != "sequential"]


def config_of(folder: Path, strategy: str, **options: Any) -> RunConfig:
    method = {"adapter": "lora", "strategy": strategy, "strategy_options": options}
    return RunConfig.model_validate({"name": "r", "out": str(folder), "methods": {"mine": method}})


@pytest.mark.parametrize("name", STATEFUL)
def test_an_option_outside_its_range_is_one_line_that_names_key_option_and_value(tmp_path: Path, name: str) -> None:
    options = [key for key in inspect.signature(STRATEGIES[name]).parameters if key != "seed"]
    assert options
    for option in options:
        for value in (-7, "much"):
            with pytest.raises(UserError) as caught:
                check_options(config_of(tmp_path, name, **{option: value}))
            said = str(caught.value)
            assert said.startswith(f"methods.mine.strategy_options: {name}: ") and "\n" not in said
            assert "docs/settings.md" in said


@pytest.mark.parametrize("name", STATEFUL)
def test_a_commit_without_a_strategys_state_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    commit = learner_for(Sequential(3)).commit(tmp_path)
    with pytest.raises(UserError) as caught:
        learner_for(STRATEGIES[name](3)).resume(commit)
    said = str(caught.value)
    assert said.startswith("strategy ") and "\n" not in said and "another run" in said


def test_a_run_that_has_committed_does_not_take_up_another_strategy_even_if_that_is_allowed(tmp_path: Path) -> None:
    before, after = config_of(tmp_path, "mas"), config_of(tmp_path, "tir")
    before.folder("mine").mkdir(parents=True)
    (before.folder() / "config.yaml").write_text(before.dump())
    check_strategies(after, setting_changes(after))  # nothing is learned yet
    learner_for(Sequential(3)).commit(before.folder("mine") / "commits")
    with pytest.raises(UserError) as caught:
        check_strategies(after, setting_changes(after))
    said = "methods.mine.strategy: the commits of this run hold the state of mas, and none of tir. Resume with mas, or"
    assert str(caught.value).startswith(said)
    check_strategies(before, setting_changes(before))
    plain = config_of(tmp_path, "sequential")
    check_strategies(plain, setting_changes(plain))  # which wants none


@pytest.fixture
def one_task(tmp_path: Path) -> dict[str, Any]:
    """A stream of files whose samples are all of one task."""
    (tmp_path / "a.png").write_bytes(picture())
    talk = [{"from": "human", "value": "<image>\nWhat?\nOne word."}, {"from": "gpt", "value": "cat"}]
    rows = [{"id": f"r{k}", "image": "a.png", "conversations": talk} for k in range(4)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    test = [{"question_id": 1, "image": "a.png", "text": "What?\nOne word.", "answer": "cat"}]
    (tmp_path / "test.json").write_text(json.dumps(test))
    scenario = {"preset": "generate", "chunks": 1, "tasks_per_chunk": 1, "recurrence_gap": 0}
    tasks = {"cats": {"train": "train.json", "test": "test.json"}}
    return {"source": "files", "data": str(tmp_path), "scenario": scenario, "tasks": tasks}


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.needs_task])
def test_a_strategy_that_is_told_tasks_is_refused_on_a_stream_that_tells_none_apart(
    tmp_path: Path, one_task: dict[str, Any], name: str
) -> None:
    before = sorted(tmp_path.iterdir())
    config = config_of(tmp_path / "runs", name)
    tree = yaml.safe_load(config.dump())
    with pytest.raises(UserError) as caught:
        execute(RunConfig.model_validate({**tree, "stream": one_task}), local=True)
    said = str(caught.value)
    assert said.startswith("methods.mine: mine must be told the task of each sample") and "only 'cats'" in said
    assert "\n" not in said and sorted(tmp_path.iterdir()) == before
