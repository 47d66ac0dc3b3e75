"""Instruction embeddings: what the instruction router reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from streamcvit.errors import UserError


class InstructionEncoder:
    """Embeds instructions, each distinct text once.

    Args:
        embed: embedding [N, D] of N texts.
        dim: embedding size D.
    """

    def __init__(self, embed: Callable[[list[str]], torch.Tensor], dim: int) -> None:
        self.dim = dim
        self._embed = embed
        self._known: dict[str, torch.Tensor] = {}

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any) -> InstructionEncoder:
        """Mean of the model's own token embeddings, without the direction all of them share, scaled to RMS 1.

        Trained tokens share one large direction (against the vocabulary's untrained rest), so that plain means of any
        two instructions have a cosine near 1. Mean and first principal component of the table are taken off
        ("all-but-the-top", Mu and Viswanath, 2018). Deterministic, and needs no second model.
        """
        table = model.get_input_embeddings().weight.detach()
        mean = table.mean(0, dtype=torch.float32)
        # In blocks, since a large vocabulary in float32 may not fit beside the model.
        scatter = sum((c.T @ c for c in (block.float() - mean for block in table.split(16384))), torch.zeros(()))
        top = torch.linalg.eigh(scatter).eigenvectors[:, -1]

        def embed(texts: list[str]) -> torch.Tensor:
            rows = []
            for text in texts:
                ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
                if not len(ids):
                    rows.append(torch.zeros_like(mean))
                    continue
                row = (table[ids.to(table.device)].float() - mean).mean(0)
                row = row - (row @ top) * top
                rows.append(row / row.square().mean().sqrt().clamp_min(1e-6))
            return torch.stack(rows)

        return cls(embed, table.shape[1])

    @classmethod
    def from_sentence_transformer(cls, path: str | Path) -> InstructionEncoder:
        """A sentence-transformers model, as the published code uses (all-MiniLM-L6-v2, D = 384)."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                "sentence-transformers is not installed",
                fix="pip install sentence-transformers, or use InstructionEncoder.from_model",
            ) from error
        encoder = SentenceTransformer(str(path))

        def embed(texts: list[str]) -> torch.Tensor:
            return encoder.encode(texts, convert_to_tensor=True, show_progress_bar=False).float()

        return cls(embed, encoder.get_sentence_embedding_dimension())

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings [len(texts), dim] float32 on the encoder's device."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self._embed(fresh), strict=True))
        return torch.stack([self._known[text] for text in texts])
