"""Generating with routed adapters: a sample's answer is its own, and every token follows the full forward."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from adapter_models import FAMILIES, METHODS, batch, close, forward, learned, prompt, row
from torch.nn import functional as F

from streamcvit.adapters import routing_kwargs

NEW = 3
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 2, "num_return_sequences": 2},
}

model_of = cache(learned)


def prompts(family: str) -> list[dict[str, torch.Tensor]]:
    """Three ragged ones, the last without a picture."""
    return [prompt(row(family, seed, text=4 + 2 * seed, picture=seed != 2)) for seed in range(3)]


def generate(model: Any, rows: list[dict[str, torch.Tensor]], **options: Any) -> Any:
    inputs, routing = batch(rows, left=True)
    torch.manual_seed(0)
    return model.generate(
        **inputs, **routing_kwargs(model, routing), max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip


def answered(sample: dict[str, torch.Tensor], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The prompt with an answer after it, which belongs to neither picture nor prompt."""
    longer = {name: F.pad(tensor, (0, len(tokens))) for name, tensor in sample.items() if tensor.dim() == 1}
    ids = torch.cat((sample["input_ids"], tokens))
    return {**sample, **longer, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_every_generated_token_follows_the_full_forward_of_its_own_sequence(way, method, family):
    model, rows = model_of(method, family), prompts(family)
    out = generate(model, rows, **WAYS[way])
    copies = len(out.sequences) // len(rows)
    for hypothesis, sequence in enumerate(out.sequences):
        whole = answered(rows[hypothesis // copies], sequence[-NEW:])
        with torch.no_grad():
            full = forward(model, *batch([whole])).logits[0, -NEW - 1 : -1]
        beams = out.beam_indices[hypothesis] if way == "beams" else [hypothesis] * NEW
        steps = torch.stack([logits[beam] for logits, beam in zip(out.logits, beams, strict=False)])
        assert close(steps, full)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_left_padded_batch_answers_as_each_sample_alone(method, family):
    model, rows = model_of(method, family), prompts(family)
    for way in ("greedy", "beams"):
        together = generate(model, rows, **WAYS[way]).sequences[:, -NEW:]
        alone = [generate(model, [sample], **WAYS[way]).sequences[:, -NEW:] for sample in rows]
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("method", METHODS)
def test_sampling_with_a_seed_can_be_repeated(method):
    model, rows = model_of(method, "llava"), prompts("llava")
    first, again = (generate(model, rows, do_sample=True, temperature=2.0).sequences for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, generate(model, rows, do_sample=False).sequences)


@pytest.mark.parametrize("method", METHODS)
def test_generate_takes_positional_ids_and_any_task_type(method):
    model = learned(method, "llama", task_type="CAUSAL_LM")
    inputs, routing = batch(prompts("llama"), left=True)
    options = {"attention_mask": inputs["attention_mask"], "max_new_tokens": 2, "do_sample": False}
    made = model.generate(inputs["input_ids"], **options, **routing_kwargs(model, routing))
    assert torch.equal(made, generate(model, prompts("llama"), do_sample=False).sequences[:, :-1])
