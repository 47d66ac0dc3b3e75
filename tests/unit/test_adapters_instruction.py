"""Instruction embeddings."""

from __future__ import annotations

import sys

import pytest
import torch
from adapter_models import tiny_llama

from streamcvit.adapters import InstructionEncoder
from streamcvit.errors import UserError


class CountingTokenizer:
    """One id a word; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        self.calls += 1
        assert not add_special_tokens
        return {"input_ids": [2 + sum(map(ord, word)) % 90 for word in text.split()]}


@pytest.fixture
def tokenizer() -> CountingTokenizer:
    return CountingTokenizer()


def test_embedding_is_the_mean_of_the_words_without_their_common_direction(tokenizer):
    model = tiny_llama()
    encoder = InstructionEncoder.from_model(model, tokenizer)
    got = encoder.encode(["answer with one word"])
    table = model.get_input_embeddings().weight.detach()
    centred = table - table.mean(0)
    top = torch.linalg.svd(centred).Vh[0]
    want = (centred - (centred @ top)[:, None] * top)[
        tokenizer("answer with one word", add_special_tokens=False)["input_ids"]
    ].mean(0)
    assert torch.allclose(got[0], want / want.square().mean().sqrt(), atol=1e-5)
    assert encoder.dim == 32


def test_each_distinct_text_is_embedded_once_and_order_is_kept(tokenizer):
    encoder = InstructionEncoder.from_model(tiny_llama(), tokenizer)
    out = encoder.encode(["a b", "c", "a b"])
    assert torch.equal(out[0], out[2])
    assert not torch.allclose(out[0], out[1])
    assert torch.equal(encoder.encode(["c", "a b"]), out[1:])
    assert tokenizer.calls == 2


def test_empty_instruction_is_the_zero_vector(tokenizer):
    assert not InstructionEncoder.from_model(tiny_llama(), tokenizer).encode([""]).any()


def test_missing_sentence_transformers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        InstructionEncoder.from_sentence_transformer("all-MiniLM-L6-v2")
