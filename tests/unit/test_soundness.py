"""What is not finite is skipped, counted, never committed, and ends the run where it does not end by itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from test_learner import batches, learner_for

from streamcvit.config import RunConfig
from streamcvit.data.sample import Quarantined
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.learning import OnlineLearner, read_ledger
from streamcvit.learning import commit as commits
from streamcvit.learning.ledger import SCHEMA
from streamcvit.learning.soundness import Diverged, judge
from streamcvit.models.base import Base, load_base
from streamcvit.models.batch import Batch
from streamcvit.monitoring.record import RunRecord
from streamcvit.pipeline import load_config
from streamcvit.run.boundaries import boundary_reports
from streamcvit.run.drive import task_counts
from streamcvit.run.folder import RunFolder
from streamcvit.run.loading import local_feed
from streamcvit.run.stream import prepare_stream
from streamcvit.run.workers import LearnerWorker

BAD = 3


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("embedded", device="cpu")


@pytest.fixture(scope="module")
def todo(base: Base) -> list[Batch]:
    samples = [sample for task in list(embedded.TASKS)[:3] for sample in embedded.train_samples(task, 12, seed=5)]
    return batches(base, samples)


def poisoned(batch: Batch) -> Batch:
    """The same batch with pictures of NaN."""
    assert batch.inputs is not None
    tensors = {**batch.inputs.tensors, "pixel_values": torch.full_like(batch.inputs.tensors["pixel_values"], torch.nan)}
    return dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, tensors=tensors))


def emptied(batch: Batch) -> Batch:
    return dataclasses.replace(batch, positions=(), samples=(), inputs=None)


@pytest.fixture
def learner(base: Base) -> Iterator[Callable[..., OnlineLearner]]:
    """Makes learners on one base, one after another."""
    made: list[OnlineLearner] = []

    def make(*args: Any, **options: Any) -> OnlineLearner:
        if made:
            made[-1].model.unload()
        made.append(learner_for(base, *args, **options))
        return made[-1]

    yield make
    made[-1].model.unload()


def state_of(learner: OnlineLearner) -> dict[str, Any]:
    tensors, values = learner._resume_state()
    return {**tensors, **learner.snapshot().tensors, "kept": values["strategy"].get("kept")}


@pytest.mark.parametrize(
    ("adapter", "strategy"),
    [("lora", "replay"), ("smolora", "sequential"), ("moelora", "sequential"), ("strlora", "sequential")],
)
def test_a_poisoned_batch_changes_nothing_and_the_run_goes_on(
    learner: Callable[..., OnlineLearner], todo: list[Batch], adapter: str, strategy: str
) -> None:
    ours = learner(adapter, strategy)
    for batch in todo[:BAD]:
        ours.learn(batch)
    before = state_of(ours)
    report = ours.learn(poisoned(todo[BAD]))
    assert report is not None and bool(report.skipped) and not report.loss.isfinite().any()
    assert (ours.step, ours.cursor) == (BAD + 1, todo[BAD].next_cursor)
    assert dict(ours.verdicts.total) == {"loss": 1}
    after = state_of(ours)
    assert before.keys() == after.keys()
    assert [
        n for n, v in before.items() if not (torch.equal(v, after[n]) if torch.is_tensor(v) else v == after[n])
    ] == []
    good = ours.learn(todo[BAD + 1])
    assert good is not None and not bool(good.skipped) and bool(good.loss.isfinite().all())
    assert ours.verdicts.in_a_row == 0


@pytest.mark.parametrize("adapter", ["lora", "smolora"])
def test_a_skipped_step_is_as_if_its_samples_had_been_unreadable(
    learner: Callable[..., OnlineLearner], todo: list[Batch], adapter: str
) -> None:
    digests = []
    for instead in (poisoned, emptied):
        ours = learner(adapter)
        for i, batch in enumerate(todo):
            ours.learn(instead(batch) if i == BAD else batch)
        digests.append(ours.snapshot().digest)
    assert digests[0] == digests[1]


def test_the_device_skips_by_itself_where_the_verdict_is_read_a_step_late(
    learner: Callable[..., OnlineLearner], todo: list[Batch]
) -> None:
    found = []
    for reads in (True, False):
        ours = learner("lora")
        ours.reads = reads
        for i, batch in enumerate(todo):
            ours.learn(poisoned(batch) if i == BAD else batch)
            assert len(ours.verdicts._open) == (0 if reads else 1)
        ours.verdicts.settle()
        (skip,) = ours.verdicts.take()
        assert (skip.step, skip.positions, skip.reason) == (BAD + 1, todo[BAD].positions, "loss")
        found.append(ours.snapshot().digest)
    assert found[0] == found[1]


@pytest.mark.parametrize("reads", [True, False])
def test_resuming_across_a_skipped_step_gives_the_same_weights_and_counts(
    learner: Callable[..., OnlineLearner], todo: list[Batch], tmp_path: Path, reads: bool
) -> None:
    stream = [poisoned(batch) if i in (2, BAD) else batch for i, batch in enumerate(todo)]
    ours = learner("lora", "replay" if reads else "sequential")
    ours.reads = reads
    for i, batch in enumerate(stream):
        if i == BAD:
            commit = ours.commit(tmp_path)
        ours.learn(batch)
    expected = ours.snapshot().digest
    again = learner("lora", "replay" if reads else "sequential")
    again.reads = reads
    assert again.resume(commit)["skips"] == {"total": {"loss": 1}, "in_a_row": 1}
    for batch in stream[BAD:]:
        again.learn(batch)
    again.verdicts.settle()
    assert again.snapshot().digest == expected
    assert dict(again.verdicts.total) == {"loss": 2}


def test_steps_skipped_in_a_row_end_the_learning_also_across_a_commit(
    learner: Callable[..., OnlineLearner], todo: list[Batch], tmp_path: Path
) -> None:
    ours = learner("lora")
    ours.learn(todo[0])
    for batch in todo[1:3]:
        ours.learn(poisoned(batch))
    again = learner("lora")
    again.resume(ours.commit(tmp_path))
    again.learn(poisoned(todo[3]))
    again.learn(poisoned(todo[4]))
    with pytest.raises(Diverged, match=r"5 steps in a row.*up to step 6 at position 35: the loss is not finite"):
        again.learn(poisoned(todo[5]))


def test_weights_and_moments_that_are_not_finite_are_never_committed(
    learner: Callable[..., OnlineLearner], todo: list[Batch], tmp_path: Path
) -> None:
    ours = learner("lora")
    ours.learn(todo[0])
    moment = ours.optimizer.state[ours.parameters[0]]["exp_avg"]
    moment[0, 0] = torch.inf
    with pytest.raises(Diverged, match=r"1 tensors are not finite after step 1 \(optimizer.0.exp_avg first\)"):
        ours.commit(tmp_path)
    moment.zero_()
    with torch.no_grad():
        ours.parameters[3][0, 0] = torch.nan
    ours._snapshot = None
    with pytest.raises(Diverged, match="not finite"):
        ours.commit(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_verdict_names_the_first_thing_that_is_not_finite() -> None:
    one, nan, inf = (torch.tensor(value) for value in (1.0, float("nan"), float("inf")))
    assert [int(judge(*pair)) for pair in ((one, one), (nan, nan), (inf, one), (one, nan), (one, inf))] == [
        0,
        1,
        1,
        2,
        2,
    ]


# -- a whole run -------------------------------------------------------------------------------------------------------


def small(out: Path, *settings: str) -> RunConfig:
    return load_config(
        None,
        ["methods.mine={adapter: lora, options: {r: 4}}", "stream.scenario.chunks=3", "stream.test_samples=2"]
        + ["stream.scenario.samples_per_chunk=24", "evaluation.draws=10", *settings],
        out=str(out),
    )


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def commits_of(folder: Path) -> list[Path]:
    return commits.list_commits(folder / "commits")


def all_finite(commit: Path) -> bool:
    return all(bool(t.isfinite().all()) for t in load_file(commit / "adapter" / "adapter_model.safetensors").values())


def test_one_poisoned_batch_in_a_run_is_skipped_marked_and_told(tmp_path: Path) -> None:
    config = small(tmp_path, "learner.commit_every=2")
    stream = tmp_path / "stream"
    prepare_stream(config, stream)
    feed = local_feed(config, str(stream))

    def bad_feed(order: str, cursor: int, stop: int) -> Iterator[Batch]:
        for batch in feed(order, cursor, stop):
            yield poisoned(batch) if batch.cursor == 32 else batch

    told: list[Any] = []
    worker = LearnerWorker(config, str(stream), bad_feed, told.append)
    reports = [worker.learn_chunk("mine", chunk) for chunk in range(3)]
    assert [report.info["skipped"] for report in reports] == [{}, {"loss": 1}, {}]
    (skip,) = reports[1].skipped
    assert skip == {"step": 5, "chunk": 1, "positions": list(range(32, 40)), "position": 32, "reason": "loss"}
    assert all(isinstance(report.info["loss"], float) and report.info["loss"] < 100 for report in reports)
    ledger = read_ledger(config.folder("mine") / "ledger").to_pydict()
    assert ledger["position"] == list(range(72))
    assert [p for p, skipped in zip(ledger["position"], ledger["skipped"], strict=True) if skipped] == skip["positions"]
    for commit in commits_of(config.folder("mine")):
        assert all_finite(commit)
        strict((commit / "state.json").read_text())
    # The last word on a chunk is told, however quick it was: nobody is left at 93 %.
    assert [report.progress.cursor for report in reports if report.progress] == [24, 48, 72]
    assert told[-1] == reports[-1].progress and told[-1].skipped == {"loss": 1}
    assert sum(told[-1].step_seconds.counts) == 9
    kept = boundary_reports(config.folder("mine"), "mine")
    assert kept[1].skipped == [skip] and not kept[2].skipped

    again = LearnerWorker(config, str(stream), bad_feed)  # a learner that comes after says the same of it
    assert again.learn_chunk("mine", 1).skipped == [skip]
    assert again.learner.verdicts.total == {"loss": 1}


def test_a_run_that_diverges_stops_at_its_last_good_commit_and_goes_on_as_its_message_says(tmp_path: Path) -> None:
    config = small(tmp_path, "learner.lr=1e9", "learner.batch_size=4")
    with pytest.raises(UserError, match="5 steps in a row could not be taken.*last good commit") as told:
        execute(config, local=True)
    folder = config.folder("mine")
    assert all(all_finite(commit) for commit in commits_of(folder))
    events = [strict(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "failed" and "last good commit" in events[-1]["what"]
    words = told.value.fix.split()
    settings, allowed = words[words.index("--set") + 1], words[words.index("--allow-change") + 1]
    again = load_config(words[words.index("run") + 1], [settings])
    execute(again, local=True, resume=True, allow=[allowed.rstrip(".")])
    assert len(commits_of(folder)) == 3
    assert read_ledger(folder / "ledger")["position"].to_pylist() == list(range(72))
    assert strict((folder / "run.json").read_text())["finished"]
    for line in (folder / "events.jsonl").read_text().splitlines():
        strict(line)


def test_commits_made_amid_skips_are_withdrawn_and_the_one_before_them_stays_whole(tmp_path: Path) -> None:
    folder = tmp_path / "commits"

    def make(step: int, in_a_row: int) -> Path:
        def fill(draft: Path) -> None:
            (draft / commits.RESUME).mkdir()
            (draft / commits.RESUME / "state").write_text("x")

        state = {"skips": {"total": {}, "in_a_row": in_a_row}, "boundary": True}
        return commits.write_commit(folder, step, fill, state)

    good = [make(step, 0) for step in (1, 2)]
    bad = [make(step, step - 2) for step in (3, 4, 5)]
    commits.prune(folder, 2)
    assert [(path / commits.RESUME).is_dir() for path in (*good, *bad)] == [False, True, True, True, True]
    commits.withdraw(folder, commits.Epoch(tmp_path, 0))
    assert commits.list_commits(folder) == good
    found = commits.newest_resumable(folder)
    assert found is not None and found[0] == good[-1] and not found[2]


def test_parts_of_a_ledger_from_before_skips_were_marked_are_read(tmp_path: Path) -> None:
    names = ["position", "sample_id", "task", "chunk", "step", "loss", "correct"]
    row = {
        "position": [0],
        "sample_id": ["a"],
        "task": ["t"],
        "chunk": [0],
        "step": [1],
        "loss": [1.0],
        "correct": [True],
    }
    (tmp_path / "ledger").mkdir()
    table = pa.table(row, schema=pa.schema([SCHEMA.field(name) for name in names]))
    pq.write_table(table, tmp_path / "ledger" / "00000001-0.parquet")
    assert read_ledger(tmp_path / "ledger").to_pylist()[0]["skipped"] is None


def test_a_chunk_of_which_too_much_cannot_be_learned_stops_the_run_and_a_borne_loss_leaves_the_position_right(
    tmp_path: Path,
) -> None:
    config = small(tmp_path, "methods.mine.order=joint", "stream.bad_share=0.1")
    stream = tmp_path / "stream"
    index = prepare_stream(config, stream)
    feed = local_feed(config, str(stream))

    def losing(count: int) -> Any:
        def batches_of(order: str, cursor: int, stop: int) -> Iterator[Batch]:
            for batch in feed(order, cursor, stop):
                bad = batch.next_cursor > 72 - count
                lost = tuple(Quarantined(p, f"s{p}", "too_long", "900 tokens") for p in batch.positions)
                yield dataclasses.replace(emptied(batch), quarantined=lost) if bad else batch

        return batches_of

    with pytest.raises(UserError, match=r"16 of 72 samples of chunk 1 cannot be learned, .*s\d+: too_long: 900"):
        LearnerWorker(config, str(stream), losing(16)).learn_chunk("mine", 0)
    assert commits_of(config.folder("mine")) == []
    borne = config.model_copy(update={"stream": config.stream.model_copy(update={"bad_share": 0.2})})
    report = LearnerWorker(borne, str(stream), losing(8)).learn_chunk("mine", 0)
    assert len(report.quarantined) == 8
    folder = RunFolder(borne, "mine", index, task_counts(borne, index, "mine"), "base")
    folder.chunk_done(report)
    record = RunRecord.load(folder.path)
    assert record.position == record.total_samples == 72
