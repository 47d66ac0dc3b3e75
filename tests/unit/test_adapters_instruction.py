"""Instruction embeddings."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from adapter_models import tiny_llama
from sentence_models import save_sentence_model

from streamcvit.adapters import InstructionEncoder
from streamcvit.adapters.instruction import encoder_identity
from streamcvit.adapters.prototypes import Prototypes
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


def test_samples_without_an_instruction_share_one_cluster_and_keep_out_of_others(tokenizer):
    encoder = InstructionEncoder.from_model(tiny_llama(), tokenizer)
    empty, *others = encoder.encode(["", "answer with one word", "say yes or no"])
    assert torch.allclose(empty.square().mean(), torch.tensor(1.0))
    assert all(abs(torch.cosine_similarity(empty, other, dim=0)) < 1e-5 for other in others)
    prototypes = Prototypes(4, 32, 0.8, standardise=False)
    assert prototypes.learn(encoder.encode(["", "say yes or no", "", ""])).tolist() == [0, 1, 0, 0]
    prototypes.step()
    assert prototypes.learn(encoder.encode(["", "say yes or no"])).tolist() == [0, 1] and int(prototypes.used) == 2


def test_missing_sentence_transformers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        InstructionEncoder.from_sentence_transformer("all-MiniLM-L6-v2")


TEXTS = ["answer with one word", "describe the picture in one sentence", "answer"]


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_model(tmp_path_factory.mktemp("encoder") / "tiny")


def test_sentence_model_gives_the_mean_over_tokens_not_scaled(sentence_model):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(sentence_model), AutoModel.from_pretrained(sentence_model).eval()
    encoder = InstructionEncoder.load(str(sentence_model), tiny_llama(), None)
    got = encoder.encode(TEXTS)
    assert encoder.dim == got.shape[1] == model.config.hidden_size
    for text, row in zip(TEXTS, got, strict=True):
        with torch.no_grad():
            want = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert torch.allclose(row, want, atol=1e-6)
    assert not torch.allclose(got.norm(dim=1), torch.ones(3), atol=0.1)


def test_embedding_of_a_text_does_not_depend_on_the_texts_beside_it(sentence_model):
    together = InstructionEncoder.from_sentence_transformer(sentence_model).encode(TEXTS)
    encoder = InstructionEncoder.from_sentence_transformer(sentence_model)
    assert torch.equal(together, torch.cat([encoder.encode([text]) for text in reversed(TEXTS)]).flip(0))


def test_identity_is_that_of_the_files_wherever_they_lie(sentence_model, tmp_path):
    encoder = InstructionEncoder.from_sentence_transformer(sentence_model)
    copied = shutil.copytree(sentence_model, tmp_path / "copy")
    assert encoder_identity(copied) == encoder.identity
    save_sentence_model(tmp_path / "other", seed=1)
    assert encoder_identity(tmp_path / "other") != encoder.identity
    assert encoder_identity("tokens") == InstructionEncoder.load("tokens", tiny_llama(), None).identity == "tokens"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_encoder_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match="no such instruction encoder"):
        encoder_identity(name)


def test_folder_without_a_sentence_model_is_named(tmp_path):
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(UserError, match="no sentence-transformers model"):
        InstructionEncoder.from_sentence_transformer(tmp_path)
