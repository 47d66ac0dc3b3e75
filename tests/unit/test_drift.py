"""Drift of routes and experts: what is measured is what was moved, and measuring changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from models import tiny_samples
from running import StopAfter
from streams import TASKS as STREAM_TASKS
from streams import sample
from synthetic_run import write_run
from test_learner import TASKS, batches, learner_for

from streamcvit.adapters import cluster_assignments, compile_layers, expert_usage, plain_layers, tuner_of
from streamcvit.adapters.build import attach
from streamcvit.adapters.moelora import MoELoraLayer
from streamcvit.adapters.smolora import SMoLoraLayer
from streamcvit.data.sample import Picture
from streamcvit.data.shards.write import write_stream
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import Stopped
from streamcvit.learning import OnlineLearner
from streamcvit.learning.commit import RESUME
from streamcvit.learning.drift import FILE, DriftMeter, ProbeSet
from streamcvit.models.base import Base, load_base
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.drifts import ALL, missing_points, split
from streamcvit.monitoring.report.page import render_report
from streamcvit.monitoring.runs import compared
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.loading import local_feed
from streamcvit.run.workers import LearnerWorker

ADAPTERS = {
    "lora": ("lora", {}),
    "prototype": ("smolora", {"router": "prototype", "visual_warmup": 0}),
    "frozen": ("smolora", {"router": "frozen"}),
    "straight_through": ("smolora", {"router": "straight_through", "fusion": "learned"}),
    "strlora": ("strlora", {}),
    "strlora, sample": ("strlora", {"sub_top_k": 0}),
    "moelora": ("moelora", {}),
}
BANKS = {
    "lora": ["adapter"], "strlora": ["instruction", "token"], "strlora, sample": ["instruction"], "moelora": ["token"],
}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("embedded", device="cpu")


@pytest.fixture(scope="module")
def probes(base: Base) -> dict[str, ProbeSet]:
    found = {}
    for task in TASKS[:3]:
        samples = embedded.test_samples(task, 3)
        found[task] = ProbeSet(tuple(s.sample_id for s in samples), base.collator.train(samples))
    return found


@pytest.fixture(scope="module")
def samples() -> list:
    return [sample for task in TASKS[:4] for sample in embedded.train_samples(task, 12, seed=5)]


def learning(base: Base, kind: str) -> OnlineLearner:
    """A learner of that kind whose experts give something."""
    adapter, options = ADAPTERS[kind]
    made = learner_for(base, adapter, **options)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.model.named_parameters():
        if "_B." in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


@torch.no_grad()
def scaled(learner: OnlineLearner, by: float, experts: slice = slice(None)) -> None:
    for name, parameter in learner.model.named_parameters():
        if "_B." in name:
            parameter[experts if parameter.dim() == 3 else slice(None)] *= by


@pytest.mark.parametrize("kind", ADAPTERS)
def test_weights_changed_by_hand_give_exactly_that_expert_drift(
    base: Base, probes: dict[str, ProbeSet], kind: str
) -> None:
    learner = learning(base, kind)
    meter = DriftMeter(learner, probes)
    first, second, third = probes
    assert meter.measure([first, second], [first, second])["drift"] == {
        bank: {"router": 0.0, "expert": 0.0, "tasks": {}} for bank in BANKS.get(kind, ["visual", "instruction"])
    }
    still = meter.measure([third], [])
    assert [(own["router"], own["expert"], list(own["tasks"])) for own in still["drift"].values()] == [
        (0.0, 0.0, [first, second])
    ] * len(still["drift"])
    scaled(learner, 1.25)
    found = meter.measure([third], [])["drift"]
    assert [own["expert"] for own in found.values()] == pytest.approx([0.25] * len(found), abs=1e-5)
    if kind in ("lora", "prototype"):  # what others route by are activations, which the experts before them change
        assert [own["router"] for own in found.values()] == [0.0] * len(found)
    learner.model.unload()


def test_experts_of_one_bank_leave_the_other_where_it_is_and_the_task_that_learns_is_left_out(
    base: Base, probes: dict[str, ProbeSet]
) -> None:
    learner = learning(base, "prototype")
    meter = DriftMeter(learner, probes)
    meter.measure(list(probes), list(probes))
    scaled(learner, 0.5, slice(0, 4))  # the visual bank's four
    first, second, third = probes
    found = meter.measure([second], [second])
    assert found["drift"]["visual"]["expert"] == pytest.approx(0.5, abs=1e-5)
    assert found["drift"]["instruction"]["expert"] == 0.0
    assert list(found["drift"]["visual"]["tasks"]) == [first, third]
    assert set(found["routes_moved"]) == {first, second, third}
    scaled(learner, 4.0, slice(0, 4))
    now = meter.measure([third], [third])["drift"]["visual"]["tasks"]
    # Twice what it was for the one that was not learned since, four times for the other.
    assert {task: own["expert"] for task, own in now.items()} == pytest.approx({first: 1.0, second: 3.0}, abs=1e-4)
    learner.model.unload()


def test_prototypes_that_change_places_flip_exactly_the_routes_of_their_samples(
    base: Base, probes: dict[str, ProbeSet], samples: list
) -> None:
    learner = learning(base, "prototype")
    meter = DriftMeter(learner, probes)
    for batch in batches(base, samples)[:6]:
        learner.learn(batch)
    facts = {task: learner.look(probe.inputs).facts for task, probe in probes.items()}

    def routes() -> dict[str, dict[str, torch.Tensor]]:
        found = {task: cluster_assignments(learner.model, one) for task, one in facts.items()}
        return {task: {bank: own.clone() for bank, own in by_bank.items()} for task, by_bank in found.items()}

    learner.model.eval()
    meter.measure(list(probes), list(probes))
    before, prototypes = routes(), tuner_of(learner.model).prototypes("visual")["default"]
    assert int(prototypes.used) >= 2
    used = prototypes.centroids[:2].clone()
    prototypes.centroids[0], prototypes.centroids[1] = used[1], used[0]
    after, found = routes(), meter.measure([], [])
    flips = {task: before[task]["visual"] != after[task]["visual"] for task in probes}
    assert any(flip.any() for flip in flips.values()) and not all(flip.all() for flip in flips.values())
    for task, flip in flips.items():
        assert found["drift"]["visual"]["tasks"][task]["router"] == pytest.approx(float(flip.float().mean()))
        assert list(found["routes_moved"][task].values()) == flip.float().tolist()
    assert found["drift"]["instruction"]["router"] == 0.0
    assert [own["expert"] for own in found["drift"].values()] == [0.0, 0.0]
    learner.model.unload()


@torch.no_grad()
def test_a_gate_that_is_moved_in_one_module_counts_as_that_module_of_all(
    base: Base, probes: dict[str, ProbeSet]
) -> None:
    learner = learning(base, "frozen")
    meter = DriftMeter(learner, probes)
    meter.measure(list(probes), list(probes))
    layers = [module for module in learner.model.modules() if isinstance(module, SMoLoraLayer)]
    gate = layers[-1].smolora_gate_instruction["default"]  # of the last: no gate behind it reads what changes
    gate.copy_(gate.roll(1, 0))
    found = meter.measure([], [])
    assert found["drift"]["instruction"]["router"] == pytest.approx(1 / len(layers))
    assert found["drift"]["visual"]["router"] == 0.0
    moved = [share for own in found["routes_moved"].values() for share in own.values()]
    assert moved == pytest.approx([1 / len(layers)] * 9)
    learner.model.unload()


@torch.no_grad()
def test_soft_weights_drift_by_the_total_variation_of_their_means(base: Base, probes: dict[str, ProbeSet]) -> None:
    learner = learning(base, "moelora")
    meter = DriftMeter(learner, probes)
    layers = [module for module in learner.model.modules() if isinstance(module, MoELoraLayer)]
    router = layers[-1].moelora_router["default"]
    router.zero_()  # all experts alike
    meter.measure(list(probes), list(probes))
    router.normal_(generator=torch.Generator().manual_seed(2))
    found = meter.measure([], [])["drift"]["token"]["tasks"]
    for task, probe in probes.items():
        seen = []
        hook = layers[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # noqa: B023
        learner.model(**probe.inputs.tensors)
        hook.remove()
        mask = probe.inputs.prompt_mask | probe.inputs.image_mask
        shares = torch.softmax(seen[0] @ router.T, -1)
        means = torch.stack([own[held].mean(0) for own, held in zip(shares, mask, strict=True)])
        expected = (means - 1 / len(router)).abs().sum(-1).mean() / 2 / len(layers)
        assert found[task]["router"] == pytest.approx(float(expected), rel=1e-4)
    learner.model.unload()


@pytest.mark.parametrize(("kind", "strategy"), [("prototype", "replay"), ("strlora", "sequential")])
def test_learning_is_the_same_to_the_bit_with_and_without_it(
    base: Base, probes: dict[str, ProbeSet], samples: list, kind: str, strategy: str
) -> None:
    ends = []
    adapter, options = ADAPTERS[kind]
    for measured in (False, True):
        learner = learner_for(base, adapter, strategy, lora_dropout=0.2, **options)
        meter = DriftMeter(learner, probes)
        for k, batch in enumerate(batches(base, samples)[:4]):
            learner.learn(batch)
            if measured and k % 2:
                meter.measure(list(probes)[k:], list(probes)[:2])
        drawn = torch.rand(3).tolist(), random.random(), np.random.random()  # noqa: NPY002
        ends.append((learner.snapshot().digest, drawn, expert_usage(learner.model)))
        learner.model.unload()
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", ["prototype", "strlora"])
def test_references_go_with_the_commit_and_a_resumed_learner_measures_the_same(
    base: Base, probes: dict[str, ProbeSet], samples: list, tmp_path: Path, kind: str
) -> None:
    todo = batches(base, samples[:12] * 2)  # one task, so that the experts of its probe go on learning
    first, second, third = probes
    learner = learning(base, kind)
    meter = DriftMeter(learner, probes)
    for k, batch in enumerate(todo):
        learner.learn(batch)
        if k == 1:
            meter.measure([first, second], [first, second])
            commit = learner.commit(tmp_path, also=meter.save)
    expected = [meter.measure([third], [third]), meter.measure([], [])]
    assert any(own["expert"] > 0 for own in expected[0]["drift"].values())
    learner.model.unload()

    again = learning(base, kind)
    meter = DriftMeter(again, probes)
    again.resume(commit)
    meter.load(commit / RESUME)
    for batch in todo[2:]:
        again.learn(batch)
    assert [meter.measure([third], [third]), meter.measure([], [])] == expected
    again.model.unload()
    fewer = {first: ProbeSet(probes[first].sample_ids[:2], probes[first].inputs), second: probes[second]}
    other = DriftMeter(learning(base, kind), fewer)  # `learner.drift_samples` was allowed to change
    other.load(commit / RESUME)
    assert [list(own["tasks"]) for own in other.measure([], [])["drift"].values()] == [[second]] * len(
        expected[0]["drift"]
    )
    assert (commit / RESUME / FILE).is_file()
    off = DriftMeter(other.learner, {})  # nor does anything of it go on where it was switched off
    off.load(commit / RESUME)
    (folder := tmp_path / "off").mkdir()
    off.save(folder)
    assert not list(folder.iterdir())
    other.learner.model.unload()


def test_compiled_layers_are_looked_at_as_they_are_written(base: Base, probes: dict[str, ProbeSet]) -> None:
    found = []
    for compiled in (False, True):
        learner = learning(base, "moelora")
        if compiled:
            compile_layers(learner.model, backend="eager")
        meter = DriftMeter(learner, probes)
        meter.measure(list(probes), list(probes))
        scaled(learner, 1.5)
        found.append(meter.measure([], []))
        plain_layers(base.model)
        learner.model.unload()
    assert found[0] == found[1]


def test_experts_of_a_sparse_model_that_are_no_layers_are_left_out() -> None:
    sparse = Base(*FAMILIES["glm4v_moe"]())
    learner = OnlineLearner(sparse, attach(sparse.model, "lora"))
    own = tiny_samples(2)
    meter = DriftMeter(learner, {"tiny": ProbeSet(("a", "b"), sparse.collator.train(own))})
    meter.measure(["tiny"], ["tiny"])
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if "_B." in name:
                parameter += 0.1
    assert meter.measure([], [])["drift"]["adapter"]["expert"] == 1.0  # of nothing something


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three chunks of 12: colours, shapes, colours again; of the test samples of shapes none can be used."""
    chunks = [(k // 12, sample(k, ("colour", "shape", "colour")[k // 12], answers=("red",))) for k in range(36)]
    tests = {"colour": [sample(90 + k) for k in range(5)], "shape": [sample(99, "shape", pictures=(Picture(b"none"),))]}
    folder = tmp_path_factory.mktemp("drift") / "stream"
    write_stream(folder, chunks, STREAM_TASKS, tests, 0)
    return str(folder)


def test_a_run_learns_the_same_without_and_measures_the_same_where_it_was_stopped(stream: str, tmp_path: Path) -> None:
    digests, drifts = [], []
    for count, lives in ((0, (99,)), (3, (99,)), (3, (4, 99))):
        settings = [f"learner.drift_samples={count}", "learner.batch_size=6", "methods.m={adapter: lora}"]
        config = load_config(builtin("embedded"), [*settings, f"out={tmp_path / str(len(digests))}"])
        for after in lives:
            worker = LearnerWorker(config, stream, local_feed(config, stream), stop=StopAfter(after))
            reports = {}
            try:
                for chunk in range(3):
                    reports[chunk] = worker.learn_chunk("m", chunk)
            except Stopped:
                assert worker.learner.cursor == 18  # inside the chunk that leaves the colours alone
        digests.append([reports[chunk].digest for chunk in range(3)])
        drifts.append(
            [{k: v for k, v in reports[chunk].info.items() if "drift" in k or "routes" in k} for chunk in range(3)]
        )
    assert digests[0] == digests[1] == digests[2]
    assert drifts[0] == [{}] * 3
    for found in drifts[1:]:
        assert all(info.pop("drift_s") > 0 for info in found)
    assert drifts[1] == drifts[2]
    first, second, third = drifts[1]
    assert first["drift"] == {"adapter": {"router": 0.0, "expert": 0.0, "tasks": {}}}
    assert list(second["drift"]["adapter"]["tasks"]) == ["colour"] and second["drift"]["adapter"]["expert"] > 0
    assert third["drift"] == first["drift"]  # colours are learned again, and shapes cannot be measured
    assert [info["drift_without"] for info in drifts[1]] == [[], ["shape"], ["shape"]]
    assert len(second["routes_moved"]["colour"]) == 3


def test_a_lost_point_goes_to_the_router_by_the_share_of_the_route_that_moved() -> None:
    assert split(1.0, [100.0, 0.0], True) == (100.0, 0.0, 0.0, 0.0)
    assert split(0.0, [0.0, 100.0, 0.0], True) == (0.0, 100.0, 0.0, 0.0)
    assert split(0.0, [100.0, 0.0], False) == (0.0, 0.0, 100.0, 0.0)
    assert split(0.25, [80.0, 40.0], True) == (10.0, 30.0, 0.0, 20.0)
    assert split(1.0, [0.0, 0.0], True) == (0.0, 0.0, 0.0, 100.0)
    assert split(1.0, [0.0, 100.0], True) == (0.0, 0.0, 0.0, 0.0)


def test_the_report_splits_the_missing_points_of_each_task_so_that_they_sum_up(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "smolora", chunks=6, tasks=("shape", "digit", "ocr"), per_chunk=40)
    plan = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1]])
    (folder / "plan.json").write_text(json.dumps({"tasks": ["shape", "digit"], "chunks": plan.tolist()}))
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "chunk":
            away = {"shape": {"router": 0.3, "expert": 0.5}} if event["chunk"] > 1 else {}
            own = {"router": 0.3, "expert": 0.5} if away else {"router": 0.0, "expert": 0.0}
            event["drift"] = {"visual": {**own, "tasks": away}}
            # Every second sample of `shape` goes elsewhere.
            event["routes_moved"] = {
                task: {f"{task}-{k}": float(task == "shape" and k % 2) for k in range(20)}
                for task in ("shape", "digit")
            }
            event["drift_without"] = ["chart"]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    record = RunRecord.load(folder)
    rows = {row.task: row for row in missing_points(record)}
    assert list(rows) == ["shape", "digit", ALL]
    version = {(row["task"], row["chunk"]): row["version"] for row in record.scores if row["kind"] == "boundary"}

    def right(task: str, chunk: int) -> np.ndarray:
        return np.array([row["score"] > 0 for row in record.predictions(version[task, chunk], task)])

    now = right("shape", 5)
    ever = np.any([right("shape", chunk) for chunk in range(1, 6)], axis=0)
    odd = np.arange(20) % 2 == 1
    lost, row = ever & ~now, rows["shape"]
    assert lost.any()
    expected = [100 * part.mean() for part in (now, lost & odd, lost & ~odd, ~ever)]
    assert [row.score, row.router, row.expert, row.capacity] == pytest.approx(expected)
    for row in rows.values():
        assert row.score + row.router + row.expert + row.neither + row.capacity == pytest.approx(100)
    page = render_report([record])
    assert "What the missing points were lost to" in page and "Routes moved, visual" in page
    assert "No test samples to measure by: chart" in page


def test_training_on_all_tasks_at_once_has_no_drift_and_what_it_lacks_is_capacity(tmp_path: Path) -> None:
    stream = write_run(tmp_path / "lora", "lora", chunks=6, tasks=("shape", "digit", "ocr"))
    joint = write_run(tmp_path / "joint", "joint", chunks=6, tasks=("shape", "digit", "ocr"), once=True)
    lines = [json.loads(line) for line in (joint / "events.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "chunk":
            event |= {"drift": {}, "routes_moved": {"ocr": {f"ocr-{k}": 0.0 for k in range(20)}}}
    (joint / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    (label, record), alone = compared([RunRecord.load(stream), RunRecord.load(joint)])[-1], RunRecord.load(joint)
    assert label == "joint" and record.single
    for one in (record, alone):
        row = missing_points(one)[0]
        assert (row.task, row.router, row.expert) == ("ocr", 0.0, 0.0)
        assert row.score + row.capacity == pytest.approx(100)
