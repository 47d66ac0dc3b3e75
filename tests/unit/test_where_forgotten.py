"""What counts as forgotten, what the guard orders then, and that what it needs is asked for before a run starts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from streams import TASKS, stream_samples, test_sets
from synthetic_run import write_run
from test_states import a_run, say

from streamcvit import cliguard
from streamcvit.config import RunConfig
from streamcvit.data.shards.write import write_stream
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.evaluation.lost import Loss, loss_of
from streamcvit.guarding import GuardConfig
from streamcvit.learning import OnlineLearner, Replay, Sequential
from streamcvit.learning.putback import put_back
from streamcvit.learning.strategies import EWC
from streamcvit.learning.strategies.rehearsing import Rehearsing
from streamcvit.models.base import load_base
from streamcvit.models.batch import Batch
from streamcvit.models.snapshot import adapter_state, state_digest
from streamcvit.monitoring.guarded import GO_ON
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.page import render_report
from streamcvit.monitoring.states import state_of
from streamcvit.monitoring.terminal import LiveView
from streamcvit.pipeline import load_config
from streamcvit.run.folder import RunFolder
from streamcvit.run.forgetting import Boundary, Guard, decide, line_of
from streamcvit.run.guard import Stop, alone
from streamcvit.run.loading import load_encoder, local_feed, wrap
from streamcvit.run.messages import Order
from streamcvit.run.workers import LearnerWorker

DEEP = Loss(40.0, 20.0, 60.0, 1, True)
NEAR = Loss(4.0, -3.0, 9.0, 1, False)
ENDS = {chunk: Boundary(10 * (chunk + 1), f"weights {chunk}") for chunk in range(4)}


def guard(action: str, **more: float) -> GuardConfig:
    return GuardConfig(action=action, **more)  # type: ignore[arg-type]


def whats(told: list[dict]) -> list[tuple[str, str | None]]:
    return [(event["what"], event.get("task")) for event in told]


# -- what is lost ------------------------------------------------------------------------------------------------------


def test_a_loss_on_the_same_samples_is_found_where_two_apart_would_not_show_it() -> None:
    hard = np.arange(100) % 2 * 100.0
    now = np.where(np.arange(100) < 16, 0.0, hard)  # eight right answers of fifty are lost, and none is won
    found = loss_of(np.stack([hard, hard, now]), 500)
    assert found.points == pytest.approx(8.0) and found.best == 0
    assert found.decided and 0 < found.low < 8 < found.high
    few = loss_of(np.stack([hard, np.where(np.arange(100) < 10, 0.0, hard)]), 500)
    assert few.points == pytest.approx(5.0) and not few.decided  # five samples decide nothing


def test_the_best_of_many_noisy_boundaries_is_no_loss() -> None:
    rng = np.random.default_rng(0)
    alarms = plain = 0
    for number in range(60):
        points = 100.0 * (rng.random((13, 60)) < 0.5)  # nothing is ever lost
        found = loss_of(points, 200, (number,))
        alarms += found.decided
        one = loss_of(points[[found.best, -1]], 200, (number,))  # as if nobody had picked
        plain += one.decided
    assert alarms <= 6 < plain


def test_samples_and_boundaries_without_a_score_are_left_out() -> None:
    points = np.full((3, 40), 100.0)
    points[1], points[2, :30] = np.nan, 0.0
    points[:, -5:] = np.nan  # cannot be read
    found = loss_of(points[[0, 2]], 200)
    assert found.points == pytest.approx(100 * 30 / 35) and found.decided


# -- what is ordered ---------------------------------------------------------------------------------------------------


def test_the_same_loss_is_acted_on_once_and_again_only_after_it_has_recovered() -> None:
    order, told = decide(guard("rollback"), {"colour": DEEP}, Order(), ENDS, False)
    assert (order.held, order.version, order.digest, order.boundary) == (("colour",), 20, "weights 1", 1)
    assert whats(told) == [("lost", "colour"), ("rolled back", "colour")]
    assert (told[1]["to_version"], told[1]["version"]) == (20, 41)
    for found in (DEEP, NEAR._replace(points=8.0)):  # below half of the points alone it has recovered
        order, told = decide(guard("rollback"), {"colour": found}, order, ENDS, False)
        assert order == Order(("colour",)) and not told
    order, told = decide(guard("rollback"), {"colour": NEAR}, order, ENDS, False)
    assert not order and whats(told) == [("recovered", "colour")]
    assert decide(guard("rollback"), {"colour": DEEP}, order, ENDS, False)[0].boundary == 1


def test_the_task_that_lost_most_says_how_far_back() -> None:
    found = {"count": DEEP._replace(points=12.0, best=2), "colour": DEEP, "held": DEEP._replace(points=90.0, best=0)}
    order, told = decide(guard("rollback"), found, Order(("held",)), ENDS, False)
    assert order.boundary == 1 and order.held == ("colour", "count", "held")
    assert whats(told) == [("lost", "count"), ("lost", "colour"), ("rolled back", "colour")]


def test_less_than_the_points_or_undecided_is_no_loss_and_after_the_last_chunk_nothing_is_done() -> None:
    small = {"colour": DEEP._replace(points=9.9), "count": DEEP._replace(decided=False)}
    assert decide(guard("pause"), small, Order(), ENDS, False) == (Order(), [])
    order, told = decide(guard("pause"), {"colour": DEEP}, Order(), ENDS, True)
    assert not order and whats(told) == [("lost", "colour")]


def test_replay_is_raised_while_anything_is_held_and_falls_back() -> None:
    order, told = decide(guard("replay", share=2.0), {"colour": DEEP}, Order(), ENDS, False)
    assert (order.share, whats(told)[-1]) == (2.0, ("replay raised", None))
    order, told = decide(guard("replay", share=2.0), {"colour": NEAR, "count": DEEP}, order, ENDS, False)
    assert order == Order(("count",), 2.0) and whats(told) == [("recovered", "colour"), ("lost", "count")]
    order, told = decide(guard("replay", share=2.0), {"count": NEAR}, order, ENDS, False)
    assert not order and whats(told) == [("recovered", "count"), ("replay lowered", None)]


def test_what_a_rollback_undid_is_not_on_the_line_of_the_weights() -> None:
    assert line_of(3, {}) == [0, 1, 2]
    assert line_of(5, {3: Order(("colour",), 0.0, 10, "", 0)}) == [0, 3, 4]
    assert Order.from_json(json.loads(json.dumps(Order(("a",), 0.0, 10, "x", 0).to_json()))) == Order(
        ("a",), 0.0, 10, "x", 0
    )


# -- what is done ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples() -> list:
    return [sample for task in list(embedded.TASKS)[:2] for sample in embedded.train_samples(task, 12, seed=5)]


def learner_of(method: str = "smolora", strategy: Sequential | None = None) -> OnlineLearner:
    config = load_config("embedded", [])
    base = load_base("embedded", device="cpu")
    encoder = load_encoder(config, base)
    model = wrap(base, encoder, config, method)
    return OnlineLearner(base, model, strategy, encoder=encoder if method == "smolora" else None, lr=5e-3)


def learn(learner: OnlineLearner, samples: list, stop: int) -> None:
    for start in range(learner.cursor, stop, 4):
        part = tuple(samples[start : start + 4])
        places = tuple(range(start, start + 4))
        inputs = learner.base.collator.train(part)
        learner.learn(Batch(start, start + 4, start // 8, places, part, inputs))


def test_weights_and_routers_are_put_back_and_the_stream_goes_on(tmp_path: Path, samples: list) -> None:
    learner = learner_of()
    learn(learner, samples, 8)
    best = learner.commit(tmp_path / "commits")
    digest = learner.snapshot().digest
    learn(learner, samples, 16)
    assert learner.snapshot().digest != digest
    put_back(learner, tmp_path / "commits", 2, digest)
    assert (learner.step, learner.cursor, learner.snapshot().version) == (5, 16, 5)
    assert learner.snapshot().digest == digest and not learner.optimizer.state
    learn(learner, samples, 20)
    assert learner.snapshot().digest != digest and learner.step == 6
    with pytest.raises(UserError, match="holds other weights than were scored.*guard.action=none"):
        put_back(learner, tmp_path / "commits", 2, "another")
    (best / "adapter/adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="checksum differs.*the guard goes back to it"):
        put_back(learner, tmp_path / "commits", 2, digest)
    with pytest.raises(UserError, match="version 9, to which the guard goes back, is lost"):
        put_back(learner, tmp_path / "commits", 9, digest)


def test_a_strategy_with_a_memory_beside_it_learns_as_alone_until_it_is_asked_to_rehearse(samples: list) -> None:
    alone_, beside = learner_of("lora", EWC(0)), learner_of("lora", Rehearsing(EWC(0), 0, 6))
    for learner in (alone_, beside):
        learn(learner, samples, 16)
    assert state_digest(adapter_state(alone_.model)) == state_digest(adapter_state(beside.model))
    tensors, values = beside.strategy.state_dict()
    json.dumps(values)
    other = Rehearsing(EWC(0), 0, 6)
    learner_of("lora", other)
    other.load_state_dict(tensors, values)
    again, rehearsed = other.state_dict(), []
    assert again[1] == values and all(torch.equal(again[0][name], tensor) for name, tensor in tensors.items())
    for strategy in (beside.strategy, other):
        assert isinstance(strategy, Rehearsing) and len(strategy.own.kept) == 6
        strategy.raised = 1.25
        batch = Batch(0, 4, 0, (0, 1, 2, 3), tuple(samples[:4]), None)
        rehearsed.append([sample.sample_id for sample in strategy.extend_batch(batch)])
    assert rehearsed[0] == rehearsed[1] and len(rehearsed[0]) == 5
    EWC.load_state_dict(alone_.strategy, tensors, values)  # type: ignore[arg-type]  # switched off again


def test_replay_rehearses_its_own_number_or_the_share_where_that_is_more(samples: list) -> None:
    replay = Replay(0, memory=16)
    batch = Batch(0, 8, 0, tuple(range(8)), tuple(samples[:8]), None)
    for _ in range(2):
        replay.after_step(batch, torch.nn.Identity())
    counts = []
    for share in (0.0, 0.25, 1.5, 8.0):
        replay.raised = share
        counts.append(len(replay.extend_batch(batch)))
    assert counts == [4, 4, 12, 16]


# -- what is refused, and what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"guard": {"action": "stop"}}, "guard.action"),
        ({"guard": {"action": "pause", "points": 0}}, "guard.points"),
        ({"guard": {"action": "replay", "memory": 0}}, "nothing to rehearse for methods.smolora"),
        ({"guard": {"action": "pause"}, "methods": {"zero": {"adapter": "none"}}}, "chunk by chunk; none does"),
        ({"guard": {"action": "rollback"}, "methods": {"joint": {"adapter": "lora", "order": "joint"}}}, "none does"),
        (
            {"guard": {"action": "replay", "share": 0.5}, "methods": {"r": {"adapter": "lora", "strategy": "replay"}}},
            "methods.r rehearses 4 samples beside a batch of 8 of its own; 0.5 of it, from a memory of 4, is no more",
        ),
    ],
)
def test_a_guard_that_could_do_nothing_is_refused_in_one_line(tree: dict, said: str, tmp_path: Path) -> None:
    (path := tmp_path / "mine.yaml").write_text(json.dumps(tree))
    with pytest.raises(UserError) as error:
        load_config(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_needs_nothing_is_taken() -> None:
    methods = {"r": {"adapter": "lora", "strategy": "replay"}, "zero": {"adapter": "none"}}
    config = RunConfig.model_validate({"guard": {"action": "replay", "memory": 0}, "methods": methods})
    assert config.guard.on and not RunConfig().guard.on


def test_joint_training_which_cannot_forget_keeps_no_samples_for_the_guard(tmp_path: Path) -> None:
    write_stream(tmp_path / "stream", stream_samples(8, 4), TASKS, test_sets(), 0)
    methods = "{joint: {adapter: lora, order: joint}, r: {adapter: lora, strategy: replay}}"
    settings = [f"methods={methods}", "guard.action=replay", "guard.memory=0", f"out={tmp_path}"]
    config, stream = load_config("embedded", settings), str(tmp_path / "stream")
    worker = LearnerWorker(config, stream, local_feed(config, stream))
    assert worker.learn_chunk("joint", 0).info["samples"] == 8
    assert type(worker.learner.strategy) is Sequential


PAUSED = {"event": "guard", "action": "pause", "what": "paused", "task": "colour", "points": 40.0, "low": 20.0}
PAUSED |= {"high": 60.0, "best_chunk": 1, "chunk": 3, "time": "2026-01-01T11:00:00+00:00"}  # type: ignore[dict-item]


def test_a_paused_run_says_so_and_is_let_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run(tmp_path, lora=4)
    with pytest.raises(UserError, match="it is not paused, but stopped"):
        cliguard.resume(str(folder))
    say(folder / "lora", event="started", time="2026-01-01T10:00:00+00:00")
    say(folder / "lora", **PAUSED)  # type: ignore[arg-type]
    with alone(folder):
        state = state_of(folder)
        assert (state.state, state.methods[0].state) == ("paused", "paused")
        assert state.why == "lora paused: colour has lost 40.0 points (95 % interval 20.0 to 60.0)"
        assert state.go_on == f"streamcvit resume {folder}"
        with pytest.raises(UserError, match="it has not taken the word in 0 s"):
            cliguard.resume(str(folder), 0)
    assert state_of(folder).state == "stopped" and state_of(folder).go_on.endswith("config.yaml --resume")
    (folder / GO_ON).unlink()
    cliguard.resume(str(folder))
    assert state_of(folder).why.endswith("it goes on once it is started")
    assert (folder / GO_ON).exists() and "will not stand still again; start it" in capsys.readouterr().out
    say(folder / "lora", event="guard", what="resumed", chunk=3, time="2026-01-01T12:00:00+00:00")  # type: ignore[arg-type]
    with alone(folder):
        assert state_of(folder).state == "running"


def test_a_pause_ends_with_the_guard_that_made_it(tmp_path: Path) -> None:
    index = write_stream(tmp_path / "stream", stream_samples(), TASKS, test_sets(), 0)
    tree = {"name": "r", "out": str(tmp_path), "methods": {"lora": {"adapter": "lora"}}}
    view = LiveView(["lora"], 40, 4, console=Console(file=io.StringIO()))
    for action, acts in (("pause", ["paused"]), ("none", ["paused", "resumed"]), ("pause", ["paused", "resumed"])):
        config = RunConfig.model_validate({**tree, "guard": {"action": action}})
        folder = RunFolder(config, "lora", index, np.array([[10, 0], [10, 0], [5, 5], [5, 5]]), "base")
        if not folder.guarded:
            folder.event(**{("name" if key == "event" else key): value for key, value in PAUSED.items()})
        guard_ = Guard(config, {"lora": folder}, view, Stop())
        assert [event["what"] for event in folder.guarded] == acts and not guard_.standing


def test_the_report_lists_what_the_guard_did_and_bears_events_that_it_cannot_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "lora", "lora", done=5)
    before = render_report([RunRecord.load(folder)])
    say(folder, **PAUSED)  # type: ignore[arg-type]
    back = {**PAUSED, "what": "rolled back", "action": "rollback", "task": "<colour>"}
    say(folder, **back)  # type: ignore[arg-type]
    say(folder, event="guard", what="lost")
    page = render_report([RunRecord.load(folder)])
    assert 'id="guard"' not in before and 'id="guard"' in page
    assert "&lt;colour&gt;: chunk 3 to 4 undone" in page and "<colour>" not in page
    assert "4 ↶" in page and "4 ↶" not in before
