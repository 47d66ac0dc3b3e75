"""The prototype router: what spawns, what moves, and when."""

from __future__ import annotations

import pytest
import torch
from adapter_models import adapted, samples, smolora, tiny_llama
from peft import PeftModel

from streamcvit.adapters import RoutingInputs, after_step, cluster_assignments, decide_routes, tuner_of
from streamcvit.adapters.prototypes import Prototypes


def axes(*rows: int, dim: int = 5) -> torch.Tensor:
    """Unit vectors along the named axes."""
    return torch.eye(dim)[list(rows)]


@pytest.fixture
def prototypes() -> Prototypes:
    return Prototypes(3, 5, 0.5, standardise=False)


def test_prototypes_spawn_in_stream_order_until_none_is_free(prototypes):
    assert prototypes.learn(axes(2, 2, 0, 2, 4, 1)).tolist() == [0, 0, 1, 0, 2, 0]
    assert int(prototypes.used) == 3
    assert prototypes.assign(axes(4, 0, 2)).tolist() == [2, 1, 0]


def test_batch_is_routed_by_the_prototypes_as_they_stood_before_it(prototypes):
    prototypes.learn(axes(0))
    prototypes.step()
    before = prototypes.centroids.clone()
    near = torch.nn.functional.normalize(axes(0) + 0.5 * axes(1), dim=-1)
    assert prototypes.learn(near).tolist() == [0]
    assert torch.equal(prototypes.centroids, before)
    prototypes.step()
    assert torch.allclose(prototypes.centroids[0], (axes(0) + near)[0] / 2)


def test_prototype_is_the_mean_of_its_samples_and_keeps_moving_when_old():
    prototypes = Prototypes(1, 5, 0.5, standardise=False, cap=4)
    for row in (0, 1, 2, 3):
        prototypes.learn(axes(row))
        prototypes.step()
    assert torch.allclose(prototypes.centroids[0], axes(0, 1, 2, 3).mean(0))
    prototypes.learn(axes(4))
    prototypes.step()
    assert torch.allclose(prototypes.centroids[0, 4], torch.tensor(0.25))


def test_groups_keep_prototypes_of_their_own():
    prototypes = Prototypes(3, 5, 0.5, standardise=False)
    groups = torch.tensor([7, 7, 2, 2, 7])
    assert prototypes.learn(axes(0, 0, 0, 0, 1), groups).tolist() == [0, 0, 1, 1, 2]
    assert prototypes.group.tolist() == [7, 2, 7]
    prototypes.step()
    assert prototypes.assign(axes(0, 0, 1), torch.tensor([2, 7, 2])).tolist() == [1, 0, 1]


def test_group_without_a_prototype_shares_the_nearest_when_none_is_free():
    prototypes = Prototypes(2, 5, 0.5, standardise=False)
    prototypes.learn(axes(0, 1), torch.tensor([0, 0]))
    prototypes.step()
    assert prototypes.learn(axes(1, 0), torch.tensor([5, 5])).tolist() == [1, 0]
    assert prototypes.assign(axes(1), torch.tensor([5])).tolist() == [1]


def test_tasks_that_share_an_instruction_and_differ_in_pictures_get_visual_experts_of_their_own():
    generator = torch.Generator().manual_seed(0)
    instructions, pictures = torch.randn(2, 12, generator=generator), torch.randn(2, 10, generator=generator)
    names = torch.tensor([[0, 0], [0, 1], [1, 0]]).repeat(4, 1)  # which instruction, which picture
    ids, _ = samples(len(names))
    routing = RoutingInputs(instructions[names[:, 0]], pictures[names[:, 1]])
    found = {}
    for scope in ("instruction", "stream"):
        model = adapted(smolora(visual_scope=scope, spawn_below_visual=0.9)).train()
        model(input_ids=ids, routing=routing)
        after_step(model)
        routes = cluster_assignments(model, routing)
        found[scope] = len(set(routes["visual"].tolist()))
        assert len(set(routes["instruction"].tolist())) == 2
    assert found == {"instruction": 3, "stream": 2}


def test_assigning_changes_nothing(prototypes):
    prototypes.learn(axes(0, 1))
    prototypes.step()
    before = {name: tensor.clone() for name, tensor in prototypes.state_dict().items()}
    prototypes.assign(axes(3, 4, 0))
    prototypes.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in prototypes.state_dict().items())


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_feature_that_is_not_finite_neither_spawns_nor_moves_anything(standardise, value):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=generator)
    states = []
    for bad in (False, True):
        prototypes = Prototypes(4, 5, 0.5, standardise=standardise, warmup=4)
        for part in features.split(4):
            rows = torch.cat([part[:2], torch.full((1, 5), value), part[2:]]) if bad else part
            routes = prototypes.learn(rows)
            assert ((routes >= 0) & (routes < 4)).all()
            prototypes.step()
        assert (prototypes.assign(torch.full((2, 5), value)) >= 0).all()
        states.append({name: tensor.clone() for name, tensor in prototypes.state_dict().items()})
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])
    alone = Prototypes(4, 5, 0.5, standardise=standardise, warmup=0)
    alone.learn(torch.full((3, 5), value))
    alone.step()
    assert all(torch.isfinite(tensor).all() for tensor in alone.state_dict().values())
    assert int(alone.used) == 0


def test_what_a_step_that_is_not_taken_spawned_and_summed_is_forgotten(prototypes):
    prototypes.learn(axes(0))
    prototypes.step()
    before = {name: tensor.clone() for name, tensor in prototypes.state_dict().items()}
    prototypes.learn(axes(1, 2))
    prototypes.learn(axes(3))
    prototypes.undo()
    prototypes.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in prototypes.state_dict().items())


def test_nothing_learned_yet_routes_to_the_first_expert(prototypes):
    assert prototypes.assign(axes(3, 1)).tolist() == [0, 0]


def test_standardised_features_wait_for_statistics_then_tell_shifted_clusters_apart():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=generator)
    shared = 50 * torch.ones(8)  # a mean that all features share makes raw cosines useless

    def draw(cluster: int) -> torch.Tensor:
        return shared + centres[cluster] + 0.05 * torch.randn(8, generator=generator)

    prototypes = Prototypes(3, 8, 0.5, standardise=True, warmup=12)
    labels = [i % 3 for i in range(30)]
    features = torch.stack([draw(label) for label in labels])
    for start in range(0, 12, 4):
        assert prototypes.learn(features[start : start + 4]).tolist() == [0] * 4
        prototypes.step()
    for start in range(12, 30, 6):
        prototypes.learn(features[start : start + 6])
        prototypes.step()
    assert int(prototypes.used) == 3
    assert prototypes.assign(features).tolist() == labels
    assert torch.allclose(prototypes.mean, features.mean(0), atol=1e-4)
    assert torch.allclose(prototypes.square / 30, features.var(0, unbiased=False), rtol=0.02, atol=1e-3)


def test_state_keeps_its_precision_when_the_model_is_cast(prototypes):
    prototypes.learn(torch.randn(2, 5))
    before = prototypes.centroids.clone()
    prototypes.to(torch.bfloat16)
    assert torch.equal(prototypes.centroids, before)


def test_two_runs_over_the_same_stream_agree_to_the_bit():
    def run() -> list[torch.Tensor]:
        model = adapted(smolora()).train()
        for seed in range(4):
            ids, routing = samples(6, seed=seed)
            model(input_ids=ids, routing=routing)
            after_step(model)
        return [tensor for name, tensor in model.state_dict().items() if "prototypes" in name]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_evaluation_neither_spawns_nor_moves():
    ids, routing = samples(6)
    model = adapted(smolora())
    with torch.no_grad():
        model(input_ids=ids, routing=routing)
    with torch.no_grad():
        model.train()(input_ids=ids, routing=routing)
    after_step(model)
    assert int(tuner_of(model).prototypes("instruction")["default"].used) == 0


def test_saved_prototypes_give_identical_routes_and_go_on_learning(tmp_path):
    model = adapted(smolora()).train()
    ids, routing = samples(8)
    model(input_ids=ids, routing=routing)
    after_step(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True).train()
    _, fresh = samples(16, seed=7)
    for bank, experts in cluster_assignments(model, fresh).items():
        assert torch.equal(experts, cluster_assignments(loaded, fresh)[bank])
        assert len(set(experts.tolist())) > 1
    for each in (model, loaded):
        each(input_ids=ids, routing=samples(8, seed=8)[1])
        after_step(each)
    ours = {name: tensor for name, tensor in model.state_dict().items() if "prototypes" in name}
    theirs = loaded.state_dict()
    assert ours
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_routes_decided_for_the_whole_batch_serve_its_micro_batches():
    ids, routing = samples(6)
    whole, split = adapted(smolora()).train(), adapted(smolora()).train()
    together = whole(input_ids=ids, routing=routing).logits
    decided = decide_routes(split, routing)
    parts = [split(input_ids=ids[rows], routing=decided.select(rows)).logits for rows in (slice(0, 4), slice(4, 6))]
    assert torch.allclose(together, torch.cat(parts), atol=1e-5)
    for model in (whole, split):
        after_step(model)
    ours = {name: tensor for name, tensor in whole.state_dict().items() if "prototypes" in name}
    assert all(torch.equal(tensor, split.state_dict()[name]) for name, tensor in ours.items())


def test_all_layers_of_a_sample_take_its_one_route():
    ids, routing = samples(6)
    model = adapted(smolora()).train()
    with tuner_of(model).routing.using(routing, learning=True) as call:
        model(input_ids=ids)
    assert list(call.shared) == ["default"]
    assert not call.routes
    assert torch.equal(call.shared["default"][:, 0], cluster_assignments(model, routing)["visual"])


def test_routes_can_be_given_as_an_oracle():
    ids, routing = samples(3)
    model = adapted(smolora())
    forced = RoutingInputs(routes=torch.tensor([[0, 3], [1, 4], [2, 6]]))
    with torch.no_grad():
        out = model(input_ids=ids, routing=forced).logits
        other = model(input_ids=ids, routing=RoutingInputs(routes=torch.tensor([[0, 3], [1, 4], [0, 3]]))).logits
    assert torch.equal(out[:2], other[:2])
    assert not torch.allclose(out[2], other[2])


def test_texts_have_prototypes_of_their_own_and_leave_the_statistics_of_pictures_alone():
    pictures = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    alone, mixed = (Prototypes(6, 5, 0.0, standardise=True, warmup=2) for _ in range(2))
    texts = torch.cat([axes(3, 3, 4) * 50, axes(3) * 50])
    groups = torch.tensor([7, 7, 7, -8, -8, -8, -8])
    for part in pictures.split(3):
        alone.learn(part, groups[:3])
        routes = mixed.learn(torch.cat([part, texts]), groups)
        for prototypes in (alone, mixed):
            prototypes.step()
    assert torch.equal(mixed.mean, alone.mean) and torch.equal(mixed.square, alone.square) and mixed.seen == 12
    first, second = routes[3].item(), routes[5].item()
    assert routes[3:].tolist() == [first, first, second, first] and first != second
    assert mixed.group[[first, second]].tolist() == [-8, -8]
    assert torch.allclose(mixed.centroids[first], axes(3)[0], atol=1e-6)
    assert int(mixed.used) == int(alone.used) + 2
    assert not set(mixed.assign(pictures, torch.full((12,), 7)).tolist()) & {first, second}
    assert mixed.assign(texts, groups[3:]).tolist() == [first, first, second, first]


def test_texts_come_before_the_warm_up_ends_and_a_batch_of_texts_alone_changes_no_statistics():
    prototypes = Prototypes(4, 5, 0.0, standardise=True, warmup=100)
    assert prototypes.learn(axes(0, 1), torch.tensor([-1, -1])).tolist() == [0, 1]
    prototypes.step()
    assert not prototypes.seen and not prototypes.mean.any() and prototypes.centroids.isfinite().all()


def test_texts_take_half_of_the_experts_at_most():
    prototypes = Prototypes(4, 5, 0.0, standardise=True, warmup=0)
    groups = torch.full((5,), -1)
    assert prototypes.learn(axes(0, 1, 2, 3, 4), groups)[:2].tolist() == [0, 1]
    prototypes.step()
    prototypes.learn(axes(2, 3), groups[:2])
    assert int(prototypes.used) == 2
    assert prototypes.learn(axes(0), torch.tensor([0])).tolist() == [2]
    assert prototypes.learn(axes(1), torch.tensor([1])).tolist() == [3]
    # Where its group has no prototype and none is to be had, a text goes to another text's.
    assert prototypes.assign(axes(1), torch.tensor([-5])).tolist() == [1]


def test_a_sample_without_a_picture_is_routed_by_its_prompts_text():
    model = adapted(smolora(num_experts_visual=6))
    ids, routing = samples(4)
    image = torch.zeros(4, 9, dtype=torch.bool)
    image[:2, :3] = True
    visual = torch.cat([routing.visual[:2], axes(0, 1, dim=10)])
    routing = RoutingInputs(routing.instruction[:1].expand(4, -1), visual, image, routing.prompt_mask)
    model.train()(input_ids=ids, routing=routing)
    after_step(model)
    visual_bank = model.base_model.prototypes("visual")["default"]
    assert visual_bank.seen == 2 and sorted((visual_bank.group[: visual_bank.used] < 0).tolist())[-2:] == [True, True]
    chosen = cluster_assignments(model, routing)["visual"].tolist()
    assert chosen[2] != chosen[3] and not {chosen[2], chosen[3]} & set(chosen[:2])
