"""A stream of conversations: samples without a picture, with two, of several turns, with a system prompt."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from running import boundaries

from streamcvit.config import RunConfig
from streamcvit.data.sample import PICTURE, Sample, TaskSpec, Turn
from streamcvit.data.shards.write import write_stream
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.learning import read_ledger
from streamcvit.models.processor import resolve
from streamcvit.monitoring import RunRecord
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.evaluating import EvaluatorWorker
from streamcvit.run.loading import load_encoder, load_model
from streamcvit.run.workers import LearnerWorker

TASKS = {name: TaskSpec(name, "exact", "single_word", max_new_tokens=8) for name in ("one", "none", "two", "turns")}


def shaped(task: str, number: int, one: Sample, other: Sample) -> Sample:
    """An embedded sample made over into the task's kind of conversation."""
    name = f"{task}-{one.sample_id}"
    if task == "none":
        return Sample(name, task, f"What is {number % 5} more than 2?", "", (f"Number {number % 5 + 2}.",))
    if task == "two":
        pictures = (*one.pictures, *other.pictures)
        question = f"{PICTURE} and {PICTURE}: {one.question}"
        return replace(one, sample_id=name, task=task, pictures=pictures, question=question, system="You see two.")
    if task == "turns":
        turns = (Turn(f"{PICTURE}{one.prompt}", one.answer),)
        return replace(other, sample_id=name, task=task, turns=turns, pictures=one.pictures, question=f"{number}?")
    return replace(one, sample_id=name, task=task)


def write(folder: Path) -> None:
    def samples(task: str, made: list[Sample]) -> list[Sample]:
        return [shaped(task, k, one, made[k - 1]) for k, one in enumerate(made)]

    of = {task: iter(samples(task, embedded.train_samples("colour", 24, seed=k))) for k, task in enumerate(TASKS)}
    rows = [(chunk, next(of[task])) for chunk in range(2) for _ in range(8) for task in TASKS]
    tests = {task: samples(task, embedded.test_samples("colour", 5)) for task in TASKS}
    write_stream(folder, rows, TASKS, tests, 0)


def config(out: Path, stream: Path, *settings: str) -> RunConfig:
    words = ["stream.source=shards", f"stream.data={stream}", "evaluation.draws=20", "learner.batch_size=6", *settings]
    made = load_config(builtin("embedded"), words, name="r", out=str(out))
    return made.model_copy(update={"methods": {"smolora": made.methods["smolora"]}})


def test_a_mixed_stream_is_learned_scored_and_resumed_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data")
    whole = config(tmp_path / "whole", tmp_path / "data")
    execute(whole, local=True)
    record = RunRecord.load(whole.folder("smolora"))
    assert record.finished and record.summary["seen"][-1] == list(TASKS)
    assert not record.events_of("quarantine")
    rows = read_ledger(whole.folder("smolora") / "ledger")
    assert rows["position"].to_pylist() == list(range(64)) and set(rows["task"].to_pylist()) == set(TASKS)

    def stopped(self: LearnerWorker, method: str, chunk: int, *orders: object):  # type: ignore[no-untyped-def]
        if chunk == 1:
            self.stop = lambda: True
        return learn(self, method, chunk, *orders)

    learn = LearnerWorker.learn_chunk
    parted = config(tmp_path / "parted", tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(LearnerWorker, "learn_chunk", stopped)
        with pytest.raises(KeyboardInterrupt):
            execute(parted, local=True)
    execute(parted, local=True, resume=True)
    assert boundaries(parted.folder("smolora")) == boundaries(whole.folder("smolora"))


def test_answers_to_a_mixed_test_set_are_the_same_in_batches_and_alone(tmp_path: Path) -> None:
    write(tmp_path / "data")
    worker = EvaluatorWorker(config(tmp_path, tmp_path / "data"), str(tmp_path / "data"))
    assert worker.evaluator.generator.thoughts == "drop"
    for task in TASKS:
        assert worker.evaluator.audit(worker.base.model, task, n=5) == []


def test_a_run_hands_its_settings_of_conversations_to_the_collator(tmp_path: Path) -> None:
    made = config(tmp_path, tmp_path, "learner.turns=last", "model.max_length=500", "evaluation.thoughts=keep")
    base = load_model(made)
    assert (base.collator.turns, base.collator.max_length) == ("last", 500)
    assert load_encoder(made, base).dim == 128


@pytest.mark.parametrize("name", ["refusing", "option"])
def test_a_template_that_cannot_be_served_is_said_before_anything_is_written(tmp_path: Path, name: str) -> None:
    base = Path(shutil.copytree(resolve("embedded"), tmp_path / "base"))
    settings = [f"model.name_or_path={base}"]
    if name == "refusing":
        template = base / "chat_template.jinja"
        refusal = "{% if messages | length > 1 %}{{ raise_exception('turns must alternate') }}{% endif %}"
        template.write_text(refusal + template.read_text())
    else:
        settings.append("model.template_options={enable_thinking: false}")
    made = load_config(builtin("embedded"), settings, name="r", out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="turns must alternate" if name == "refusing" else "enable_thinking"):
        execute(made, local=True)
    assert not list((tmp_path / "out").rglob("*.tar"))
