"""Probes between chunk boundaries: they take whole weights, change nothing, keep to their share, and last."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_run_folder import COUNTS, answer

from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.evaluation.interval import score_interval
from streamcvit.models.snapshot import Snapshot, adapter_state, state_digest
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.probes import PROBES, read_probes
from streamcvit.monitoring.record import RunRecord
from streamcvit.pipeline import load_config
from streamcvit.run.evaluating import EvaluatorWorker
from streamcvit.run.folder import RunFolder
from streamcvit.run.loading import local_feed
from streamcvit.run.mailbox import Mailbox
from streamcvit.run.messages import ChunkReport, Job, Probed, Weights
from streamcvit.run.probes import Prober, append, keep_until
from streamcvit.run.resume import changes, setting_changes
from streamcvit.run.stream import prepare_stream
from streamcvit.run.workers import LearnerWorker

METHOD = (
    "methods={m: {adapter: smolora, strategy: replay, strategy_options: {memory: 8}, "
    "options: {router: prototype, r: 4, num_experts_visual: 4, num_experts_instruction: 4}}}"
)


class Learned(NamedTuple):
    """Two chunks, learned by a learner that nobody asked, and again by one that was asked all the time.

    Attributes:
        digests: of the weights after each step of the second, by version.
        letters: what it gave.
    """

    config: RunConfig
    stream: str
    reports: list[ChunkReport]
    again: list[ChunkReport]
    digests: dict[int, str]
    letters: list[Weights]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    root = tmp_path_factory.mktemp("probes")
    settings = ["stream.scenario.chunks=2", "stream.scenario.samples_per_chunk=40", "stream.test_samples=9", METHOD]
    config = load_config(None, settings, out=str(root / "plain"))
    stream = str(root / "stream")
    prepare_stream(config, Path(stream))
    worker = LearnerWorker(config, stream, local_feed(config, stream))
    reports = [worker.learn_chunk("m", chunk) for chunk in range(2)]

    other = config.model_copy(update={"out": str(root / "asked")})
    mailbox, digests, letters, over = Mailbox(), {}, [], threading.Event()

    def ask() -> None:
        while not over.is_set():
            if letter := mailbox.ask(0.2):
                letters.append(letter)

    def between(method: str, learner: Any) -> None:
        mailbox.look_in(method, learner)
        digests[learner.step] = state_digest(adapter_state(learner.model))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        worker = LearnerWorker(other, stream, local_feed(other, stream), between=between)
        again = [worker.learn_chunk("m", chunk) for chunk in range(2)]
    finally:
        over.set()
        asking.join()
    return Learned(config, stream, reports, again, digests, letters)


def test_a_learner_that_is_asked_all_the_time_learns_the_same_to_the_bit(learned: Learned) -> None:
    assert len(learned.letters) > 3
    for one, two in zip(learned.reports, learned.again, strict=True):
        assert (one.version, one.digest) == (two.version, two.digest)
    # The last commit holds optimizer, routers, the memory of replay and the state of every random generator.
    for name in ("adapter/adapter_model.safetensors", "resume/state.safetensors", "resume/state.json"):
        assert (Path(one.commit) / name).read_bytes() == (Path(two.commit) / name).read_bytes()


def test_weights_are_those_that_one_step_left_behind(learned: Learned) -> None:
    ends = {report.version for report in learned.reports}
    for letter in learned.letters:
        snapshot = letter.snapshot
        assert letter.digest == snapshot.digest == state_digest(snapshot.tensors) == learned.digests[letter.version]
        assert letter.version not in ends and (letter.cursor, letter.chunk) == (snapshot.cursor, snapshot.chunk)
        assert letter.cursor // 40 == letter.chunk
    assert len({letter.digest for letter in learned.letters}) > 1


def test_a_mailbox_that_nobody_asks_copies_nothing_and_an_answer_that_does_not_come_is_none() -> None:
    mailbox = Mailbox()
    mailbox.look_in("m", None)  # type: ignore[arg-type]  # what there is to copy is not looked at
    assert mailbox.ask(0.01) is None
    mailbox.look_in("m", None)  # type: ignore[arg-type]  # nor is it for a question that was given up


@pytest.fixture(scope="module")
def scorer(learned: Learned) -> EvaluatorWorker:
    return EvaluatorWorker(learned.config, learned.stream)


def boundary(report: ChunkReport, task: str = "colour") -> Job:
    return Job("m", report.chunk, task, report.version, report.digest, report.commit)


def probe_of(letter: Weights, task: str = "colour", samples: int = 4) -> Job:
    return Job("m", letter.chunk, task, letter.version, letter.digest, "", probe=samples)


def test_a_probe_scores_the_same_few_samples_each_time_as_a_boundary_scores_them(
    learned: Learned, scorer: EvaluatorWorker
) -> None:
    first, last = learned.letters[0], learned.letters[-1]
    found = [scorer.probe(probe_of(letter), letter.snapshot).scores for letter in (first, last, first)]
    assert [one.digest for one in found if one] == [first.digest, last.digest, first.digest]
    assert found[0] and found[2] and found[0].predictions == found[2].predictions
    assert [one.sample_ids for one in found if one] == [found[0].sample_ids] * 3 and len(found[0].points) == 4

    whole = scorer.evaluate(boundary(learned.reports[1]))
    end = Weights("m", 1, whole.job.version, 80, whole.digest, None)
    drawn = scorer.probe(probe_of(end), Snapshot(adapter_state(scorer.model), 0, 80, 1, whole.digest)).scores
    assert drawn is not None and len(whole.points) == 9
    said = dict(zip(whole.sample_ids, zip(whole.predictions, whole.points, whole.follows, strict=True), strict=True))
    assert list(zip(drawn.predictions, drawn.points, drawn.follows, strict=True)) == [
        said[name] for name in drawn.sample_ids
    ]


def test_a_probe_that_goes_wrong_is_told_and_the_boundary_after_it_is_right(
    learned: Learned, scorer: EvaluatorWorker
) -> None:
    expected = scorer.evaluate(boundary(learned.reports[0])).predictions
    letter = learned.letters[-1]
    wrong = scorer.probe(replace(probe_of(letter), digest="0" * 64), letter.snapshot)
    assert wrong.scores is None and "\n" not in wrong.fault
    assert wrong.fault.startswith(f"colour: m, version {letter.version}: the weights that arrived have digest")
    again = scorer.evaluate(boundary(learned.reports[0]))
    assert (again.digest, again.predictions) == (learned.reports[0].digest, expected)


@dataclass
class Steps:
    """A learner that takes a step a second, and gives the weights of a second ago when it is asked again."""

    now: float = 0.0
    asked: int = 0
    shown: list[dict[str, Any]] = field(default_factory=list)
    learns: bool = True

    def newest(self, seconds: float) -> Weights | None:
        self.asked += 1
        step = int(self.now)
        return Weights("lora", step // 5, step, 2 * step, f"digest-{step}", None) if self.learns else None

    def probed(self, method: str, rows: list[dict[str, Any]]) -> None:
        self.shown += rows


class Rig(NamedTuple):
    steps: Steps
    prober: Prober
    folder: RunFolder
    said: list[str]


@pytest.fixture
def stream(tmp_path: Path) -> StreamIndex:
    from streams import TASKS, stream_samples, test_sets

    from streamcvit.data.shards.write import write_stream

    return write_stream(tmp_path / "stream", stream_samples(), TASKS, test_sets(), 0)


def rig(tmp_path: Path, stream: StreamIndex, evaluators: int = 1, **evaluation: Any) -> Rig:
    tree = {"name": "r", "out": str(tmp_path), "methods": {"lora": {"adapter": "lora"}}, "evaluation": evaluation}
    config = RunConfig.model_validate(tree)
    folder, steps, said = RunFolder(config, "lora", stream, COUNTS, "base"), Steps(), []

    class Offers:
        probing = steps

    Offers.evaluators = evaluators  # type: ignore[attr-defined]
    prober = Prober(config, Offers(), {"lora": folder}, said.append, lambda: steps.now)  # type: ignore[arg-type]
    return Rig(steps, prober, folder, said)


def probing(on: Rig, until: float, takes: float = 0.5, every: float = 0.1) -> Iterator[Job]:
    """Let time pass in small steps; a probe takes `takes` seconds of an evaluator."""
    due: list[tuple[float, Job]] = []
    while on.steps.now < until:
        for at, job in [one for one in due if one[0] <= on.steps.now]:
            due.remove((at, job))
            on.prober.done(Probed(job, answer(job)))
        while job := on.prober.next():
            due.append((on.steps.now + takes, job))
            yield job
        on.steps.now = round(on.steps.now + every, 6)


@pytest.mark.parametrize(("share", "evaluators"), [(1.0, 1), (0.5, 1), (0.1, 1), (0.25, 2), (0.75, 2), (1.0, 3)])
def test_probes_keep_to_their_share_of_the_evaluators_time(
    tmp_path: Path, stream: StreamIndex, share: float, evaluators: int
) -> None:
    on = rig(tmp_path, stream, evaluators, probe_share=share)
    on.steps.now = 11.0  # both tasks are seen
    busy = 0.5 * len(list(probing(on, 111.0)))
    assert busy <= share * evaluators * 100 + 0.5 * evaluators
    # A task is not probed twice with one step's weights, and these learn a step a second.
    assert busy >= 0.8 * min(share * evaluators * 100, 100)


def test_tasks_take_turns_and_only_those_that_were_seen(tmp_path: Path, stream: StreamIndex) -> None:
    on = rig(tmp_path, stream, probe_share=1.0, probe_samples=3)
    jobs = list(probing(on, 18.0))
    # `shape` comes first with sample 21, two samples a step.
    assert {job.task for job in jobs if job.version <= 10} == {"colour"} and jobs[0].version == 1
    both = [job.task for job in jobs if job.version >= 12]
    assert abs(both.count("colour") - both.count("shape")) <= 1
    assert len({(job.task, job.version) for job in jobs}) == len(jobs)
    assert {job.probe for job in jobs} == {3} and {job.commit for job in jobs} == {""}


def test_nothing_is_probed_while_nothing_is_learned_or_where_it_is_not_wanted(
    tmp_path: Path, stream: StreamIndex
) -> None:
    on = rig(tmp_path, stream)
    on.steps.learns = False
    assert not list(probing(on, 3.0)) and on.steps.asked > 0
    off = rig(tmp_path, stream, probe_samples=0)
    assert not list(probing(off, 3.0)) and off.steps.asked == 0
    assert not (off.folder.path / PROBES).exists()


def test_rows_have_the_columns_of_the_scores_their_interval_and_place_and_reach_whoever_watches(
    tmp_path: Path, stream: StreamIndex
) -> None:
    on = rig(tmp_path, stream)
    (job,) = probing(on, 2.0)
    (row,) = on.steps.shown
    value, low, high = score_interval(np.array([100.0, 0.0, 100.0]))[0]
    assert (row["score"], row["low"], row["high"], row["n"]) == (value, low, high, 3)
    assert (row["task"], row["version"], row["cursor"], row["digest"]) == ("colour", 1, 2, "digest-1")
    assert (row["kind"], row["family"], row["metric"], row["following"]) == ("live", "strict", "exact", 1.0)
    record = RunRecord.load(on.folder.path)
    assert record.probes == [row] and not record.scores and not record.matrix()[~np.isnan(record.matrix())].size
    store = MetricStore()
    store.load(record)
    shown = {s.name: s.value for metric in store.collect() for s in metric.samples if "probe" in s.name}
    names = ("task_probe_points", "task_probe_low_points", "task_probe_high_points", "probe_version")
    assert shown == dict(zip([f"streamcvit_{name}" for name in names], (value, low, high, 1), strict=True))


def test_weights_that_were_lost_cost_nothing_and_a_fault_ends_the_probes_with_one_line(
    tmp_path: Path, stream: StreamIndex
) -> None:
    on = rig(tmp_path, stream, probe_share=1.0)
    on.steps.now = 1.0
    assert (job := on.prober.next()) is not None
    on.prober.done(Probed(job))
    on.steps.now = 2.0
    assert (job := on.prober.next()) is not None and not on.said
    on.prober.done(Probed(job, None, "colour: out of memory"))
    on.steps.now = 9.0
    assert on.prober.next() is None
    assert on.said == ["no more probes between chunks: colour: out of memory"]
    assert not (on.folder.path / PROBES).exists()


def line(version: int, **more: Any) -> dict[str, Any]:
    row = {"version": version, "chunk": 0, "cursor": 8 * version, "n": 4, "task": "colour", "family": "strict"}
    return row | {"kind": "live", "score": 50.0, "low": 10.0, "high": 90.0} | more


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    append(tmp_path / PROBES, [line(1), line(2), line(2, score=25.0)])  # taken again by a learner's successor
    with open(tmp_path / PROBES, "a") as file:
        file.write(json.dumps(line(3))[:40])
    rows, said = read_probes(tmp_path)
    assert [(row["version"], row["score"]) for row in rows] == [(1, 50.0), (2, 25.0)] and not said
    hostile = ["[1]", "nonsense", *(json.dumps(line(4) | {key: value}) for key, value in HOSTILE)]
    (tmp_path / PROBES).write_text("\n".join([*hostile, json.dumps(line(5)), ""]))
    rows, said = read_probes(tmp_path)
    assert [row["version"] for row in rows] == [5]
    assert said == f"{PROBES} line 1 is no row of a probe, nor are {len(hostile) - 1} more"
    assert read_probes(tmp_path / "nothing") == ([], "")


HOSTILE = [("version", "4"), ("task", None), ("score", float("nan")), ("low", True), ("kind", "boundary"), ("n", 1.5)]


def test_a_run_that_goes_on_drops_the_probes_of_steps_that_it_takes_again(tmp_path: Path) -> None:
    keep_until(tmp_path / PROBES, 0)
    append(tmp_path / PROBES, [line(1), line(5), line(6), line(9)])
    with open(tmp_path / PROBES, "a") as file:
        file.write(json.dumps(line(2)))  # whole, but for its end
    keep_until(tmp_path / PROBES, 5)
    append(tmp_path / PROBES, [line(6)])
    assert [row["version"] for row in read_probes(tmp_path)[0]] == [1, 5, 6]


def test_a_run_may_go_on_with_other_settings_of_its_probes(tmp_path: Path, stream: StreamIndex) -> None:
    on = rig(tmp_path, stream)
    (on.folder.config.folder() / "config.yaml").write_text(on.folder.config.dump())
    other = rig(tmp_path, stream, probe_samples=0, probe_share=0.9)
    assert not setting_changes(other.folder.config) and not changes(other.folder.config, "base", stream.digest)
