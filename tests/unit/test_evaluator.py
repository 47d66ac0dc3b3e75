"""Evaluation sets answered by task, probed, audited; adapters swapped with proof of delivery."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from streamcvit.adapters.targets import target_modules
from streamcvit.data.sample import TaskSpec
from streamcvit.errors import UserError
from streamcvit.evaluation import Evaluator, Generator
from streamcvit.models.snapshot import adapter_state, load_adapter_state, state_digest, take_snapshot
from tests.models import tiny_base, tiny_samples

TASKS = {name: TaskSpec(name, "exact", "word", max_new_tokens=n) for name, n in (("short", 2), ("long", 9))}


@pytest.fixture
def base():
    return tiny_base("llava")


@pytest.fixture
def evaluator(base):
    return Evaluator(base, TASKS, {"short": tiny_samples(8), "long": tiny_samples(12, 1)}, batch_size=5)


def with_lora(base, dtype: torch.dtype = torch.float32):
    config = LoraConfig(r=2, target_modules=target_modules(base.model), init_lora_weights=False)
    return get_peft_model(base.model, config).to(dtype)


def test_predictions_follow_the_evaluation_set_and_the_tasks_token_limit(evaluator, base):
    short, long = evaluator.evaluate(base.model, "short"), evaluator.evaluate(base.model, "long")
    assert short.sample_ids == tuple(s.sample_id for s in evaluator.samples["short"])
    assert len(short.texts) == 8 and len(long.texts) == 12 and short.seconds > 0
    tokens = [len(base.tokenizer(text)["input_ids"]) for text in short.texts]
    # A byte that is no UTF-8 decodes to a replacement character of three bytes.
    assert max(tokens) <= 2 * 3 and max(map(len, long.texts)) > 2


def test_a_probe_is_the_same_each_time_and_gives_the_same_answers(evaluator, base):
    probe, samples = evaluator.probe(base.model, "long", 5)
    assert not evaluator._requests  # of a long test set no more is prepared than is asked
    whole = dict(zip(*vars_of(evaluator.evaluate(base.model, "long")), strict=True))
    assert len(probe.texts) == 5 and probe.sample_ids == evaluator.probe(base.model, "long", 5)[0].sample_ids
    assert probe.sample_ids == tuple(sample.sample_id for sample in samples)
    assert probe.sample_ids != evaluator.probe(base.model, "long", 5, seed=1)[0].sample_ids
    assert all(whole[i] == text for i, text in zip(probe.sample_ids, probe.texts, strict=True))
    assert evaluator.probe(base.model, "long", 100)[0].texts == tuple(whole.values())
    with pytest.raises(UserError, match="no evaluation set for task 'nothing'"):
        evaluator.probe(base.model, "nothing", 5)


def vars_of(predictions):
    return predictions.sample_ids, predictions.texts


def test_an_audit_finds_no_difference_between_batches_and_batch_size_one(evaluator, base):
    assert evaluator.audit(with_lora(base), "long", n=12) == []


def test_an_audit_reports_answers_that_depend_on_the_batch(evaluator, base, monkeypatch):
    answer = Generator.answer

    def leaky(self, model, requests, limit, batch_size=None):
        return [f"{text}{batch_size}" for text in answer(self, model, requests, limit, batch_size)]

    monkeypatch.setattr(Generator, "answer", leaky)
    found = evaluator.audit(base.model, "short", n=3)
    assert len(found) == 3 and found[0].alone.endswith("1") and found[0].batched.endswith("None")


def test_an_audit_finds_features_that_were_kept_for_another_picture(evaluator, base):
    evaluator.requests("long")
    held = evaluator.generator.store._held
    keys = list(held)
    held |= {key: held[other] for key, other in zip(keys, keys[1:] + keys[:1], strict=True)}
    assert evaluator.audit(base.model, "long", n=12)


def test_unknown_tasks_are_refused(evaluator, base):
    with pytest.raises(UserError, match="no evaluation set for task"):
        evaluator.evaluate(base.model, "nothing")
    with pytest.raises(UserError, match="belongs to no task"):
        Evaluator(base, TASKS, {"other": tiny_samples(1)})


def test_a_sample_that_cannot_be_used_is_left_out_with_its_reason_whatever_its_batch(base):
    samples = list(tiny_samples(8))
    for place in (1, 6):
        samples[place] = replace(samples[place], question="word " * 500_000)
    bad = [samples[place].sample_id for place in (1, 6)]
    evaluator = Evaluator(base, TASKS, {"short": samples}, batch_size=3)
    found = evaluator.evaluate(base.model, "short")
    assert found.sample_ids == tuple(s.sample_id for s in samples if s.sample_id not in bad)
    assert list(evaluator.left_out["short"]) == bad
    assert all(why.startswith("length: ") for why in evaluator.left_out["short"].values())
    whole = Evaluator(base, TASKS, {"short": tiny_samples(8)}, batch_size=3).evaluate(base.model, "short")
    assert found.texts == tuple(t for i, t in zip(*vars_of(whole), strict=True) if i not in bad)
    probe, asked = Evaluator(base, TASKS, {"short": samples}, batch_size=3).probe(base.model, "short", 7)
    assert len(asked) == len(probe.texts) and 5 <= len(asked) <= 6  # five of the six that can be used, or all
    said = dict(zip(*vars_of(found), strict=True))
    assert probe.texts == tuple(said[name] for name in probe.sample_ids)


def test_a_task_of_which_no_sample_can_be_used_is_named(base):
    samples = [replace(one, question="word " * 500_000) for one in tiny_samples(2)]
    with pytest.raises(UserError, match="not one of 2 test samples of task 'short' can be used; the first: length"):
        Evaluator(base, TASKS, {"short": samples}).evaluate(base.model, "short")


def test_a_training_model_is_put_back_into_training(evaluator, base):
    model = with_lora(base).train()
    evaluator.probe(model, "short", 2)
    assert model.training


def test_swapping_adapters_in_place_changes_the_answers_and_swapping_back_restores_them(evaluator, base):
    model = with_lora(base).eval()
    first, before = adapter_state(model), evaluator.evaluate(model, "long").texts
    other = {name: torch.randn_like(tensor) for name, tensor in first.items()}
    assert load_adapter_state(model, other) == state_digest(other) != state_digest(first)
    assert evaluator.evaluate(model, "long").texts != before
    assert load_adapter_state(model, first) == state_digest(first)
    assert evaluator.evaluate(model, "long").texts == before


def test_the_digest_is_of_what_the_model_holds_not_of_what_was_sent(base, monkeypatch):
    model = with_lora(base)
    sent = {name: tensor + 1 for name, tensor in adapter_state(model).items()}
    monkeypatch.setattr("peft.set_peft_model_state_dict", lambda *args, **kwargs: None)
    assert load_adapter_state(model, sent) != state_digest(sent)


def test_a_snapshot_stays_what_it_was_while_the_model_learns_on(base):
    model = with_lora(base)
    snapshot = take_snapshot(model, version=3, cursor=12, chunk=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert state_digest(snapshot.tensors) == snapshot.digest != state_digest(adapter_state(model))
    assert load_adapter_state(model, snapshot) == snapshot.digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_snapshot_sent_to_another_process_is_the_same_and_its_weights_travel_out_of_band(base, dtype):
    snapshot = take_snapshot(with_lora(base, dtype), version=3, cursor=12, chunk=1)
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(snapshot, protocol=5, buffer_callback=buffers.append)
    weights = sum(tensor.nbytes for tensor in snapshot.tensors.values())
    assert sum(buffer.raw().nbytes for buffer in buffers) == weights
    for again in (pickle.loads(sent, buffers=buffers), pickle.loads(pickle.dumps(snapshot))):
        assert (again.version, again.cursor, again.chunk, again.digest) == (3, 12, 1, snapshot.digest)
        assert state_digest(again.tensors) == snapshot.digest


def test_tensors_of_another_adapter_are_refused(base):
    model = with_lora(base)
    state = adapter_state(model)
    name = min(state)
    with pytest.raises(ValueError, match="does not fit"):
        load_adapter_state(model, {k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match="does not fit"):
        load_adapter_state(model, state | {name: torch.zeros(1, 1)})


def test_digests_see_names_types_shapes_and_every_bit():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)}
    digest = state_digest(tensors)
    assert digest == state_digest({name: tensors[name].numpy() for name in ("b", "a")})
    changed = [
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"].reshape(3, 2), "b": tensors["b"]},
        {"a": tensors["a"].double(), "b": tensors["b"]},
        {"a": tensors["a"].nextafter(torch.tensor(9.0)), "b": tensors["b"]},
    ]
    assert len({digest, *map(state_digest, changed)}) == 5
    assert state_digest({"a": tensors["a"].T}) == state_digest({"a": tensors["a"].T.contiguous()})


def test_bfloat16_adapters_travel_bit_by_bit(base):
    model = with_lora(base, torch.bfloat16)
    state = adapter_state(model)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert load_adapter_state(model, state) == state_digest(state)
    assert state_digest({"x": torch.zeros(2, dtype=torch.bfloat16)}) != state_digest({"x": np.zeros(2, np.float16)})
