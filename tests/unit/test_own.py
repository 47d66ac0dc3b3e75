"""What is wrong with a file of one's own is said in one line, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from streams import sample

from streamcvit.config import RunConfig
from streamcvit.data.files.tasks import TaskFiles, load_tasks
from streamcvit.data.references import BadRow
from streamcvit.data.sample import TaskSpec
from streamcvit.errors import UserError
from streamcvit.evaluation import SCORERS
from streamcvit.launch import execute
from streamcvit.pipeline import load_config
from streamcvit.run import own, ownkinds
from streamcvit.run.stream import _checked

STRATEGY = "from streamcvit.learning import Sequential\nclass Mine(Sequential):\n"


def loaded(folder: Path, code: str | None, setting: str) -> RunConfig:
    """A config of a pipeline with `my.py` beside it, which one setting names."""
    if code is not None:
        (folder / "my.py").write_text(code)
    (folder / "p.yaml").write_text("name: p\nmethods: {lora: {adapter: lora}}\n")
    return load_config(folder / "p.yaml", [setting], out=str(folder / "runs"))


def task(key: str) -> str:
    return f"stream={{source: files, tasks: {{t: {{train: a, test: b, {key}: 'my.py:Mine'}}}}}}"


METRIC = "evaluation.metrics=['my.py:Mine']"
STRATEGIES = "methods.lora.strategy=my.py:Mine"
SCORER, FORMAT = task("scorer"), task("format")


@pytest.mark.parametrize(
    ("setting", "code", "told"),
    [
        (SCORER, "def Mine(:\n", r"stream.tasks.t.scorer \(my.py\).*SyntaxError: .*, line 1"),
        (SCORER, "x = 1\ny = x.nothing\n", r"\(my.py\).*cannot be loaded: AttributeError: .*\(my.py, line 2\)"),
        (SCORER, "import sys\nsys.exit(3)\n", r"cannot be loaded: SystemExit: 3 \(my.py, line 2\)"),
        (SCORER, "import not_there\n", r"cannot be loaded: ModuleNotFoundError: .*'not_there'"),
        (SCORER, "def other(): ...\n", r"defines no 'Mine'.*It defines other"),
        (SCORER, "Mine = 3\n", r"stream.tasks.t.scorer: my.py:Mine cannot be called.*\(predictions, samples\)"),
        (SCORER, "def Mine(answers): ...\n", r"is not called as \(predictions, samples\): too many positional"),
        (FORMAT, "class Mine:\n    def __init__(self, x): ...\n", r"stream.tasks.t.format: my.py:Mine cannot be made"),
        (FORMAT, "def Mine(row, more): ...\n", r"is not called as \(row\): missing a required argument: 'more'"),
        (STRATEGIES, "class Mine: ...\n", r"methods.lora.strategy: my.py:Mine is no strategy.*learning.Sequential"),
        (METRIC, "def Mine(scores, plan, counted):\n    return 1 / 0\n", r"my.py:Mine: ZeroDivisionError: .*line 2\)"),
        (
            METRIC,
            "def Mine(scores, plan, counted):\n    return scores\n",
            r"gave numbers of shape \[5, 3, 2\] for scores",
        ),
        (METRIC, "def Mine(scores, plan, counted):\n    return 'x'\n", r"ValueError: could not convert string"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line_with_its_place(
    tmp_path: Path, setting: str, code: str, told: str
) -> None:
    with pytest.raises(UserError, match=told) as error:
        ownkinds.check(loaded(tmp_path, code, setting))
    assert "\n" not in str(error.value) and error.value.fix


def test_a_file_that_is_not_there_or_no_text_or_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"methods.lora.strategy \(my.py\): there is no file .*/my.py"):
        loaded(tmp_path, None, STRATEGIES)
    (tmp_path / "my.py").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as text"):
        loaded(tmp_path, None, STRATEGIES)
    with pytest.raises(UserError, match="more than 1048576 bytes"):
        loaded(tmp_path, "#" * (own.MOST + 1), STRATEGIES)


def test_options_and_errors_of_a_strategys_making_are_named(tmp_path: Path) -> None:
    body = "    def __init__(self, seed=0, pull=1.0):\n        self.pull = {1.0: 1}[pull]\n"
    for value, told in (
        ({"push": 1}, "no option 'push'.*It has pull"),
        ({"pull": 2}, r"KeyError: 2.*\(my.py, line 4\)"),
    ):
        config = loaded(tmp_path, STRATEGY + body, STRATEGIES)
        methods = {"lora": config.methods["lora"].model_copy(update={"strategy_options": value})}
        with pytest.raises(UserError, match=told):
            execute(config.model_copy(update={"methods": methods}), local=True)
    assert not list((tmp_path / "runs").rglob("*.*"))  # nothing was written


def test_names_of_metrics_do_not_meet(tmp_path: Path) -> None:
    code = "def ap(scores, plan, counted): return scores[..., 0, 0]\n"
    config = loaded(tmp_path, code, "evaluation.metrics=['my.py:ap']")
    with pytest.raises(UserError, match="the second metric called ap"):
        ownkinds.check(config)
    with pytest.raises(UserError, match="evaluation.metrics: 'ap' is not of the form my.py:Mine"):
        loaded(tmp_path, code, "evaluation.metrics=[ap]")


def test_a_scorer_is_a_function_or_a_class_and_its_numbers_are_looked_at(tmp_path: Path) -> None:
    spec = TaskSpec("t", "my.py:Mine", "single_word")
    code = "class Mine:\n    def __call__(self, predictions, samples):\n        return [len(p) for p in predictions]\n"
    config = loaded(tmp_path, code, SCORER)
    assert ownkinds.scorer_of(config, spec)(["a", "bcd"], [sample(0), sample(1)]).tolist() == [1.0, 3.0]
    for result, told in (
        ("[1.0]", r"shape \[1\] for 2 answers"),
        ("[0, float('nan')]", "some not finite"),
        ("p.x", "line 2"),
    ):
        config = loaded(tmp_path, f"def Mine(p, s):\n    return {result}\n", SCORER)
        with pytest.raises(UserError, match=told):
            ownkinds.scorer_of(config, spec)(["a", "b"], [sample(0), sample(1)])


def test_a_stream_that_names_a_file_has_it_run_only_where_the_config_does_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = loaded(tmp_path, "open('was-run', 'w')\ndef Mine(p, s): ...\n", STRATEGIES)
    for name in ("my.py:Mine", "/etc/other.py:Mine", "nothing"):
        with pytest.raises(UserError, match="the stream names the scorer .*, the config does not"):
            ownkinds.scorer_of(config, TaskSpec("t", name, "single_word"))
    assert ownkinds.scorer_of(config, TaskSpec("t", "exact", "single_word")) is SCORERS["exact"]
    assert not (tmp_path / "was-run").exists()


def test_a_scorer_of_ones_own_is_tried_on_a_whole_sample(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "p" / "a.png")
    rows = [{"question_id": name, "image": "a.png", "text": "What?", "answer": "red"} for name in ("1", "2")]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    config = loaded(tmp_path, "def Mine(p, s):\n    return [float(len(x.pictures[0].data)) for x in s]\n", SCORER)
    files = config.stream.tasks["t"].model_copy(update={"train": "", "test": "test.json", "images": "p"})
    data = load_tasks(tmp_path, {"t": TaskFiles(**files.model_dump())})["t"]
    assert [found.sample_id for found in _checked(config, data.spec, data.test)] == ["1", "2"]


def test_a_stream_folder_is_not_made_with_a_scorer_that_it_cannot_bring(tmp_path: Path) -> None:
    ownkinds.check_portable(loaded(tmp_path, "def Mine(row): ...\n", FORMAT))
    with pytest.raises(UserError, match="t.scorer: my.py:Mine is a scorer that a stream folder cannot bring"):
        ownkinds.check_portable(loaded(tmp_path, "def Mine(p, s): ...\n", SCORER))


def test_any_error_of_a_reader_makes_the_row_a_bad_one_and_no_record_does_too(tmp_path: Path) -> None:
    code = "def Mine(row):\n    return row['a']\n"
    read = ownkinds.formats_of(loaded(tmp_path, code, FORMAT))["my.py:Mine"]
    with pytest.raises(BadRow, match=r"KeyError: 'a' \(my.py, line 2\)"):
        read({})
    with pytest.raises(BadRow, match="gave int and no Record"):
        read({"a": 1})


def test_an_error_while_it_learns_names_the_line_and_only_ones_own_is_blamed(tmp_path: Path) -> None:
    body = "    def penalty(self, model):\n        raise RuntimeError('no\\nway')\n"
    config = loaded(tmp_path, STRATEGY + body, STRATEGIES)
    strategy = ownkinds.strategy_of(config, "lora")(0)
    with pytest.raises(RuntimeError) as error:
        strategy.penalty(None)
    assert str(own.blamed(error.value, config)).startswith("code of your own: RuntimeError: no way (my.py, line 4)")
    with pytest.raises(ValueError, match="invalid literal") as other:
        int("x")
    assert own.blamed(other.value, config) is None


def test_a_damaged_or_lost_copy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = loaded(tmp_path, STRATEGY + "    x = 1\n", STRATEGIES)
    own.keep(config)
    monkeypatch.setattr(own, "_modules", {})
    monkeypatch.setattr(own, "_sources", {})
    assert ownkinds.strategy_of(config, "lora").x == 1
    own.copy_of(config, "my.py").write_text("import os\n")
    for wrong in ("has another SHA-256", "is not there"):
        monkeypatch.setattr(own, "_modules", {})
        monkeypatch.setattr(own, "_sources", {})
        with pytest.raises(UserError, match=wrong):
            ownkinds.strategy_of(config, "lora")
        own.copy_of(config, "my.py").unlink(missing_ok=True)


def test_a_digest_that_a_pipeline_names_is_held_to(tmp_path: Path) -> None:
    config = loaded(tmp_path, STRATEGY + "    x = 2\n", STRATEGIES)
    (tmp_path / "q.yaml").write_text(config.dump())
    assert load_config(tmp_path / "q.yaml").own_code == config.own_code
    (tmp_path / "my.py").write_text("x = 3\n")
    with pytest.raises(UserError, match="`own_code` names"):
        load_config(tmp_path / "q.yaml")
