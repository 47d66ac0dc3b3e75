"""One LoRA a task with the task told: what moves, what it equals, what is said where the task is not told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_llava, tiny_samples
from peft import PeftModel
from rich.console import Console
from streams import TASKS, stream_samples, test_sets

from streamcvit.adapters import ADAPTERS, RoutingInputs, attach, told_tasks
from streamcvit.data.sample import Sample
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError
from streamcvit.evaluation.generate import Generator
from streamcvit.export import export
from streamcvit.launch import execute
from streamcvit.learning import OnlineLearner
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.page import render_report
from streamcvit.monitoring.report.tables import latex_table
from streamcvit.monitoring.runs import compared, told_task
from streamcvit.monitoring.terminal import results_table
from streamcvit.pipeline import load_config
from streamcvit.predict import predictor_of
from streamcvit.preflight import check_settings
from streamcvit.questions import question
from streamcvit.trained import find

NAMES = ["colour", "shape", "count"]
LORA = {"r": 4, "lora_alpha": 8}


def learner_for(adapter: str = "tasklora", base: Base | None = None, **more: Any) -> OnlineLearner:
    base = base or Base(*tiny_llava(layers=1))
    model = attach(base.model, adapter, seed=3, options=LORA, sizes={"tasks": NAMES})
    return OnlineLearner(base, model, seed=3, lr=1e-2, **more)


def of_tasks(*tasks: str, first: int = 0) -> tuple[Sample, ...]:
    made = tiny_samples(first + len(tasks))[first:]
    return tuple(
        Sample(one.sample_id, task, one.question, one.instruction, one.answers, one.pictures)
        for one, task in zip(made, tasks, strict=True)
    )


def learn(learner: OnlineLearner, batches: list[tuple[Sample, ...]]) -> OnlineLearner:
    for own in batches:
        start = learner.cursor
        places = tuple(range(start, start + len(own)))
        learner.learn(Batch(start, start + len(own), 0, places, own, learner.base.collator.train(own)))
    return learner


def weights(learner: OnlineLearner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_sample_changes_the_weights_of_its_own_task_alone(micro_batch: int) -> None:
    learner = learner_for(micro_batch=micro_batch)
    assert all(torch.equal(p[0], p[task]) for p in weights(learner).values() for task in (1, 2))
    learn(learner, [of_tasks("colour", "count", "count")])
    before = weights(learner)
    learn(learner, [of_tasks("shape", "shape", first=3), of_tasks("shape", first=5)])
    for name, now in weights(learner).items():
        assert torch.equal(before[name][[0, 2]], now[[0, 2]])
        assert not torch.equal(before[name][1], now[1]), name


def test_it_is_a_stock_lora_of_the_same_seed_that_learned_its_task_alone() -> None:
    todo = [
        of_tasks("shape", "shape", first=4 * k) if k % 2 else of_tasks("count", "count", first=4 * k) for k in range(6)
    ]
    ours = learn(learner_for(), todo)
    held = weights(ours)
    asked = of_tasks(*["shape"] * 4, first=1)
    generator = Generator(ours.base)
    answers = {task: generator.answer(ours.model.eval(), generator.prepare(_as(asked, task)), 6) for task in NAMES}
    for number, task in ((1, "shape"), (2, "count")):
        alone = learn(learner_for("lora"), [batch for batch in todo if batch[0].task == task])
        own = weights(alone)
        assert len(own) == len(held)
        for name, p in own.items():
            half = "A" if "lora_A" in name else "B"
            mine = held[name.replace(f"lora_{half}.default.weight", f"tasklora_{half}.default")][number]
            torch.testing.assert_close(mine if half == "A" else mine.T, p, rtol=1e-4, atol=1e-6)
            assert p.abs().max() > 0
        stock = Generator(alone.base)
        assert answers[task] == stock.answer(alone.model.eval(), stock.prepare(asked), 6)
    assert answers["shape"] != answers["count"]


def _as(samples: tuple[Sample, ...], task: str) -> list[Sample]:
    return [Sample(s.sample_id, task, s.question, s.instruction, s.answers, s.pictures) for s in samples]


def test_answers_of_a_mixed_batch_are_those_given_one_by_one() -> None:
    learner = learner_for()
    learn(learner, [of_tasks(task, task, first=6 * place) for place, task in enumerate(NAMES * 2)])
    asked = [one for task in NAMES for one in _as(of_tasks(*["x"] * 3, first=2), task)]
    asked = [Sample(f"{s.sample_id}-{s.task}", s.task, s.question, s.instruction, s.answers, s.pictures) for s in asked]
    generator = Generator(learner.base)
    requests = generator.prepare(asked)
    together = generator.answer(learner.model.eval(), requests, 6, batch_size=9)
    assert together == generator.answer(learner.model, requests, 6, batch_size=1)
    assert len(set(together)) > 1


def test_it_resumes_to_the_bit_and_its_commit_loads_with_stock_peft(tmp_path: Path) -> None:
    todo = [of_tasks("colour", "shape", "count", "shape", first=4 * k) for k in range(5)]
    whole = learn(learner_for(gradient_checkpointing=True), todo)
    commit = learn(learner_for(gradient_checkpointing=True), todo[:3]).commit(tmp_path)
    again = learner_for(gradient_checkpointing=True)
    again.resume(commit)
    learn(again, todo[3:])
    assert again.snapshot().digest == whole.snapshot().digest
    base = Base(*tiny_llava(layers=1))
    loaded = PeftModel.from_pretrained(base.model, commit / "adapter")
    assert loaded.peft_config["default"].tasks == NAMES  # type: ignore[attr-defined]
    numbers = told_tasks(loaded, ["count", "colour"])
    assert numbers is not None and numbers.tolist() == [2, 0]


def test_what_is_not_told_is_said_in_one_line() -> None:
    learner = learner_for()
    with pytest.raises(
        UserError, match="that of one is 'taste', of which it has none. Name one of colour, shape, count"
    ):
        learn(learner, [of_tasks("colour", "taste")])
    with pytest.raises(UserError, match=r"must be told the task of each sample. Pass routing=RoutingInputs\(task="):
        learner.model(input_ids=torch.ones(1, 3, dtype=torch.long), routing=RoutingInputs())
    with pytest.raises(UserError, match="one LoRA a task needs the names of the tasks"):
        attach(Base(*tiny_llava(layers=1)).model, "tasklora", sizes={})
    assert [name for name, adapter in ADAPTERS.items() if adapter.needs_task] == ["tasklora"]
    assert told_tasks(learner_for("lora").model, ["whatever"]) is None


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain LoRA and one LoRA a task on two chunks, by the one way in."""
    folder = tmp_path_factory.mktemp("told")
    write_stream(folder / "data", stream_samples(24, 6), TASKS, test_sets(), 0)
    methods = "{lora: {adapter: lora}, oracle: {adapter: tasklora, options: {r: 4}}}"
    settings = [f"methods={methods}", "stream.source=shards", f"stream.data={folder / 'data'}", f"out={folder}"]
    execute(load_config("embedded", [*settings, "evaluation.draws=50", "name=run"]), local=True)
    return folder / "run"


def test_a_run_says_which_method_was_told_the_task_wherever_it_is_shown(run: Path) -> None:
    records = [RunRecord.load(run / name) for name in ("lora", "oracle")]
    assert [told_task(record) for record in records] == [False, True]
    screen = Console(file=io.StringIO(), width=140)
    screen.print(results_table(records))
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (place,) = (number for number, line in enumerate(lines) if "told the task" in line)
    assert any("oracle" in line for line in lines[place - 1 : place + 1])
    page = render_report(records)
    assert page.count("told the task") >= 3  # the table of the head, and those for a paper and a spreadsheet
    assert "oracle (told the task)" in latex_table(compared(records)) and "lora (told" not in latex_table(
        compared(records)
    )


def test_it_answers_where_the_task_is_named_and_says_so_where_it_is_not(run: Path) -> None:
    predictor = predictor_of(run, ["oracle"])
    (found,) = predictor.ask(question("What?", task="shape", instruction="Answer with one word."))
    assert found.trained.method == "oracle"
    for task, said in (("", "and none is given"), ("taste", "and 'taste' is none that it knows")):
        with pytest.raises(UserError) as error:
            predictor.ask(Sample("q", task, "What?", "Answer with one word.", ("-",)))
        assert f"oracle must be told the task, {said}: colour, shape" in str(error.value)
        assert "--task" in str(error.value) and "\n" not in str(error.value)


def test_its_export_says_what_it_must_be_told_and_that_it_is_not_merged(run: Path, tmp_path: Path) -> None:
    list(export(run, tmp_path / "out", "oracle"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| told | the task of each sample, to train and to answer |" in card and "must be told the task" in card
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["tasks"] == ["colour", "shape"]
    with pytest.raises(UserError, match="TASKLORA cannot be merged"):
        list(export(run, tmp_path / "merged", "oracle", merged=True))
    assert find(run, ["lora"])[0].told is None


@pytest.mark.parametrize(
    ("tasks", "options", "said"),
    [
        (["colour"], {}, "and the stream has no tasks to tell apart (only 'colour'). Name the stream's tasks"),
        (["colour", "shape"], {"tasks": ["colour"]}, "methods.oracle.options.tasks: tasks are those of the stream"),
    ],
)
def test_a_stream_without_tasks_is_refused_before_anything_is_written(
    tasks: list[str], options: dict, said: str, tmp_path: Path
) -> None:
    rows = [(number // 4, sample) for number, (_, sample) in enumerate(stream_samples(8, 4)) if sample.task in tasks]
    sets = {task: test_sets()[task] for task in tasks}
    write_stream(tmp_path / "data", rows, {task: TASKS[task] for task in tasks}, sets, 0)
    methods = {"oracle": {"adapter": "tasklora", "options": options}}
    settings = [f"methods={methods!r}", "stream.source=shards", f"stream.data={tmp_path / 'data'}"]
    with pytest.raises(UserError) as error:
        check_settings(load_config("embedded", [*settings, f"out={tmp_path / 'runs'}"]), local=True)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()
