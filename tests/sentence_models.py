"""A tiny sentence-transformers model, made from a configuration: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["answer", "with", "one", "word", "describe", "the", "picture", "in", "sentence", "a", "single", "question"]


def save_sentence_model(folder: Path, seed: int = 0) -> Path:
    """Save a two-layer BERT of width 16 with mean pooling and scaling to length 1, as all-MiniLM-L6-v2 has them."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    plain = folder.with_name(f"{folder.name}-bert")
    plain.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (plain / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(plain / "vocab.txt")).save_pretrained(plain)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(plain)
    body = Transformer(str(plain))
    SentenceTransformer(modules=[body, Pooling(16, "mean"), Normalize()]).save(str(folder), create_model_card=False)
    return folder
