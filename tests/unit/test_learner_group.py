"""Several learners share each batch: the same adapter to the bit on any number of ranks, or the same to rounding."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_base, tiny_conversations, tiny_samples

from streamcvit.adapters import InstructionEncoder, attach, expert_usage
from streamcvit.adapters.calls import put_usage, take_usage
from streamcvit.cluster.placing import check_there, gpu_shares
from streamcvit.config import LearnerConfig, MethodConfig, RunConfig
from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.learning import STRATEGIES, OnlineLearner
from streamcvit.learning.group import Group, fingerprint
from streamcvit.learning.meeting import Lead, Member
from streamcvit.learning.wires import GroupBroken
from streamcvit.models.batch import Batch
from streamcvit.models.vision import vision_dim
from streamcvit.run.leading import Leading
from streamcvit.run.resume import setting_changes
from streamcvit.sections import ClusterConfig
from streamcvit.sharing import check_learners, check_local

MICRO = 2
CPU = torch.device("cpu")
SAMPLES = [*tiny_samples(4), *tiny_conversations().values()][:9]
CUTS = ((0, 4, 0), (4, 8, 0), (8, 9, 1))
"""(first sample, the one after the last, chunk) of each batch: two, two and one micro-batches."""


def learner_for(adapter: str, strategy: str = "sequential", **options: Any) -> OnlineLearner:
    base = tiny_base("llava")
    encoder = InstructionEncoder.from_model(base.model, base.processor.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, adapter, seed=3, options=options, sizes=sizes)
    given: dict[str, Any] = {"encoder": encoder, "seed": 3, "micro_batch": MICRO}
    return OnlineLearner(base, model, STRATEGIES[strategy](3), **given)


def batch_of(learner: OnlineLearner, samples: list[Sample], start: int, chunk: int, group: Group | None) -> Batch:
    """As ingest makes it; without what the pictures of other ranks' micro-batches show, where nothing is replayed."""
    parts = learner.base.collator.micro_batches(samples, MICRO)
    stop = start + len(samples)
    whole, more = (parts[0], ()) if len(parts) == 1 else (None, parts)
    batch = Batch(start, stop, chunk, tuple(range(start, stop)), tuple(samples), whole, micro=more)
    if group is None or type(learner.strategy) is STRATEGIES["replay"]:
        return batch
    return batch.only(group.share(len(parts)))


def learn(learner: OnlineLearner, group: Group | None = None, cuts: Any = CUTS) -> list[Any]:
    """What a learner says of each step, and all it holds after it."""
    learner.group = group
    found: list[Any] = []
    for first, stop, chunk in cuts:
        report = learner.learn(batch_of(learner, SAMPLES[first:stop], first, chunk, group))
        assert report is not None
        found += [report.loss.tolist(), report.correct.tolist(), float(report.grad_norm), fingerprint(learner)]
    return found


def in_ranks(count: int, do: Callable[[Group], Any], exact: bool = True, seed: int = 0) -> list[Any]:
    """Do something as every rank of a group, each in a thread of its own; what went wrong is an answer too."""
    lead = Lead(count, exact, seed, seconds=20)
    others = [Member(rank, count, exact, seed, where=lambda: lead.meeting, seconds=20) for rank in range(1, count)]

    def run(group: Any) -> Any:
        group.meet(CPU)
        try:
            return do(group)
        except (GroupBroken, UserError) as error:
            group.close()
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, [lead, *others]))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("adapter", "strategy"),
    [("lora", "ewc"), ("moelora", "sequential"), ("smolora", "replay"), ("smolora", "lwf"), ("strlora", "sequential")],
)
def test_any_number_of_ranks_learns_the_same_to_the_bit(adapter: str, strategy: str, ranks: int) -> None:
    alone = learner_for(adapter, strategy)
    wanted = learn(alone)
    learners = [learner_for(adapter, strategy) for _ in range(ranks)]
    found = in_ranks(ranks, lambda group: learn(learners[group.rank], group))
    assert all(each == wanted for each in found)
    for learner in learners[1:]:
        put_usage(learners[0].model, take_usage(learner.model))
    for bank, use in expert_usage(alone.model).items():
        assert expert_usage(learners[0].model, reset=False)[bank].shares == pytest.approx(use.shares, abs=1e-5)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    alone = learner_for("smolora", router="prototype")
    wanted = learn(alone, cuts=CUTS[:1]) + learn(alone, None, CUTS[1:])
    two = [learner_for("smolora", router="prototype") for _ in range(2)]
    begun = in_ranks(2, lambda group: learn(two[group.rank], group, CUTS[:1]))
    commit = two[0].commit(tmp_path)
    three = [learner_for("smolora", router="prototype") for _ in range(3)]
    for learner in three:
        learner.resume(commit)
    ended = in_ranks(3, lambda group: learn(three[group.rank], group, CUTS[1:]))
    assert all(begun[0] + each == wanted for each in ended)


@pytest.mark.parametrize("adapter", ["lora", "smolora"])
def test_the_fast_mode_learns_the_same_to_rounding_and_alike_on_all_ranks(adapter: str) -> None:
    alone = learner_for(adapter)
    wanted = learn(alone)
    learners = [learner_for(adapter) for _ in range(2)]
    overlapped = []

    def do(group: Group) -> Any:
        said = learn(learners[group.rank], group)
        overlapped.append(group._buckets.overlapped if group._buckets else None)
        return said

    found = in_ranks(2, do, exact=False)
    assert found[0] == found[1] and found[0] != []
    for ours, theirs in zip(found[0], wanted, strict=True):
        if not isinstance(ours, str):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    for ours, theirs in zip(learners[0].parameters, alone.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert any(overlapped), "no bucket was sent before the backward pass was over"


def test_what_drops_out_is_refused_where_it_would_depend_on_the_ranks() -> None:
    with pytest.raises(UserError, match="drops out"):
        Leading(Lead(2), 1).resume(learner_for("lora", lora_dropout=0.5), None)
    learners = [learner_for("lora", lora_dropout=0.5) for _ in range(2)]
    found = in_ranks(2, lambda group: learn(learners[group.rank], group, CUTS[:1])[-1], exact=False, seed=20261130)
    assert isinstance(found[0], str) and found[0] == found[1]


def test_a_rank_that_is_gone_breaks_the_group_for_all() -> None:
    learners = [learner_for("lora") for _ in range(3)]

    def do(group: Group) -> Any:
        learn(learners[group.rank], group, CUTS[:1])
        if group.rank == 2:
            raise GroupBroken("gone on purpose")
        return learn(learners[group.rank], group, CUTS[1:])

    assert [type(each) for each in in_ranks(3, do)] == [GroupBroken] * 3


def test_a_rank_that_holds_something_else_stops_the_run_by_its_number() -> None:
    learners = [learner_for("lora") for _ in range(2)]

    def do(group: Any) -> Any:
        learner, batch = learners[group.rank], batch_of(learners[group.rank], SAMPLES[:4], 0, 0, group)
        learner.group = group
        if group.rank == 0:
            return Leading(group, every=1).learn(learner, batch)
        with torch.no_grad():
            learner.parameters[0][0, 0] += 1e-3
        assert group.hear() == {"do": "learn", "cursor": 0, "stop": 4, "chunk": 0}
        learner.learn(batch)
        assert group.hear() == {"do": "compare"}
        return group.answer(fingerprint(learner))

    said, _ = in_ranks(2, do)
    assert isinstance(said, UserError) and "rank 1 holds other weights" in str(said) and "after step 1" in str(said)


def config(**tree: Any) -> RunConfig:
    tree["cluster"] = {"learners": 2, **tree.get("cluster", {})}
    return RunConfig.model_validate(tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "set learner.micro_batch to 4 or less, or cluster.learner_mode to fast"),
        ({"learner": {"micro_batch": 6}, "cluster": {"learners": 4}}, "2 micro-batches of 6, too few for 4 learners"),
        (
            {"learner": {"micro_batch": 4}, "methods": {"lora": {"adapter": "lora", "options": {"lora_dropout": 0.1}}}},
            "methods.lora drops out",
        ),
    ],
)
def test_settings_that_a_group_cannot_work_with_are_refused(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**tree)


@pytest.mark.parametrize("key", ["adapter", "strategy"])
def test_what_a_group_was_not_made_for_is_refused_by_name(key: str) -> None:
    methods = {"mine": MethodConfig.model_validate({key: "other"})}
    with pytest.raises(ValueError, match=f"methods.mine.{key}: 'other' is not made for several learners"):
        check_learners(ClusterConfig(learners=2), LearnerConfig(micro_batch=4), methods)


def test_a_fast_group_shares_a_whole_batch_and_an_exact_one_its_micro_batches() -> None:
    fast = config(cluster={"learner_mode": "fast", "learners": 3})
    assert fast.cluster.micro_batch(8, 0) == 3 and fast.cluster.micro_batch(8, 2) == 2
    assert config(learner={"micro_batch": 4}).cluster.micro_batch(8, 4) == 4
    assert RunConfig().cluster.micro_batch(8, 0) == 0


def test_what_a_cluster_lacks_is_named_in_one_line() -> None:
    run = config(learner={"micro_batch": 2}, cluster={"learners": 4}, model={"device": "cuda"})
    with pytest.raises(UserError, match=r"has 4 CPUs, the run asks for 8 \(4 learners, 2 ingest, 1 evaluators\)"):
        check_there(run, {"CPU": 4.0, "GPU": 8.0})
    with pytest.raises(UserError, match="has 3 GPUs, the run asks for one for each of 4 learners"):
        check_there(run, {"CPU": 8.0, "GPU": 3.0})
    check_there(run, {"CPU": 8.0, "GPU": 4.0})
    with pytest.raises(UserError, match="2 learners want actors of their own"):
        check_local(config(learner={"micro_batch": 4}))


@pytest.mark.parametrize(
    ("gpus", "learners", "evaluators", "wanted"),
    [(0, 2, 1, (0, 0)), (4, 2, 2, (1, 1)), (1, 1, 1, (0.5, 0.5)), (3, 2, 2, (1, 0.5)), (2, 2, 3, (0.6, 0.2))],
)
def test_each_of_several_learners_has_a_gpu_that_it_shares_with_no_other(
    gpus: int, learners: int, evaluators: int, wanted: tuple[float, float]
) -> None:
    assert gpu_shares(gpus, learners, evaluators) == pytest.approx(wanted)


def test_a_resumed_run_may_change_an_exact_group_freely_and_a_fast_one_by_name(tmp_path: Path) -> None:
    def with_group(**cluster: Any) -> RunConfig:
        run = config(learner={"micro_batch": 2}, cluster=cluster, out=str(tmp_path))
        run.folder().mkdir(exist_ok=True)
        return run

    before = with_group()
    (before.folder() / "config.yaml").write_text(before.dump())
    assert setting_changes(with_group(learners=4)) == {} == setting_changes(with_group(learners=1))
    assert "cluster.learner_mode" in setting_changes(with_group(learner_mode="fast"))
