"""Instruction embeddings: what the instruction router reads."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from streamcvit.errors import UserError

TOKENS = "tokens"
"""Name of the encoder that needs no second model."""

_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")  # what decides an embedding


BLOCK = 16384
"""Rows of an embedding table that are held in float32 at a time."""


class TokenMeans:
    """Means of a model's token embeddings, without the direction that all of them share.

    Trained tokens share one large direction (against the vocabulary's untrained rest), so that plain means of any two
    texts have a cosine near 1. Mean and first principal component of the table are taken off ("all-but-the-top", Mu and
    Viswanath, 2018). Deterministic.

    Args:
        table: [V, D] the model's input embeddings; read when first needed.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    @cached_property
    def _frame(self) -> tuple[torch.Tensor, torch.Tensor]:
        table = self.table
        mean = table.mean(0, dtype=torch.float32)
        # In blocks, since a large vocabulary in float32 may not fit beside the model.
        scatter = sum((c.T @ c for c in (block.float() - mean for block in table.split(BLOCK))), torch.zeros(()))
        top = torch.linalg.eigh(scatter).eigenvectors[:, -1]
        return mean, top * top[top.abs().argmax()].sign()  # an eigenvector's sign is the library's choice

    @torch.no_grad()
    def text(self, ids: Sequence[int]) -> torch.Tensor:
        """[D] float32 of RMS 1. No token at all gives the shared direction, which is like itself alone."""
        mean, top = self._frame
        if not len(ids):
            return top / top.square().mean().sqrt()
        held = torch.tensor(ids, dtype=torch.long, device=self.table.device)
        row = (self.table[held].float() - mean).mean(0)
        row = row - (row @ top) * top
        return row / row.square().mean().sqrt().clamp_min(1e-6)

    @torch.no_grad()
    def prompts(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, D] float32, of the tokens ids [B, S] at which mask [B, S] is true; the shared direction where at none."""
        mean, top = self._frame
        count = mask.sum(1, keepdim=True)
        rows = torch.bmm(mask.unsqueeze(1).float(), self.table[ids].float()).squeeze(1) / count.clamp_min(1) - mean
        return torch.where(count > 0, rows - (rows @ top).unsqueeze(1) * top, top)


class InstructionEncoder:
    """Embeds instructions, each distinct text once.

    Args:
        embed: embedding [N, D] of N texts.
        dim: embedding size D.
        identity: what tells this encoder from others, see `encoder_identity`.
        tokens: of the base model; the visual bank is routed by them where a sample has no picture. None: all have one.
    """

    def __init__(
        self,
        embed: Callable[[list[str]], torch.Tensor],
        dim: int,
        identity: str = TOKENS,
        tokens: TokenMeans | None = None,
    ) -> None:
        self.dim, self.identity, self.tokens = dim, identity, tokens
        self._embed = embed
        self._known: dict[str, torch.Tensor] = {}

    @classmethod
    def load(cls, name: str, model: Any, tokenizer: Any) -> InstructionEncoder:
        """The encoder that a run names: `"tokens"`, or the folder or hub name of a sentence-transformers model.

        Args:
            name: the name; `encoder_identity` says what may be wrong with it.
            model: the base model, whose token embeddings `"tokens"` averages and on whose device others run.
            tokenizer: the base model's.
        """
        if name == TOKENS:
            return cls.from_model(model, tokenizer)
        encoder = cls.from_sentence_transformer(name, model.device)
        encoder.tokens = TokenMeans(model.get_input_embeddings().weight.detach())
        return encoder

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any) -> InstructionEncoder:
        """Mean of the model's own token embeddings (see `TokenMeans`), scaled to RMS 1; needs no second model."""
        means = TokenMeans(model.get_input_embeddings().weight.detach())

        def embed(texts: list[str]) -> torch.Tensor:
            return torch.stack([means.text(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts])

        return cls(embed, means.table.shape[1], tokens=means)

    @classmethod
    def from_sentence_transformer(
        cls, name_or_path: str | Path, device: str | torch.device | None = None
    ) -> InstructionEncoder:
        """A sentence-transformers model; the papers' is all-MiniLM-L6-v2, D = 384.

        As in the published code the embedding is the mean over tokens: a model's final scaling to length 1 is left out.
        Every text is embedded alone, so that its embedding does not depend on the texts beside it, to the bit.

        Raises:
            UserError: as for `encoder_identity`, or no such model in the folder.
        """
        folder = _folder(name_or_path)
        from sentence_transformers import SentenceTransformer

        try:
            encoder: Any = SentenceTransformer(
                str(folder), device=None if device is None else str(device), trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"no sentence-transformers model ({' '.join(str(error).split())[:200]})", where=str(folder)
            ) from None
        while type(encoder[-1]).__name__ == "Normalize":
            del encoder[-1]

        def embed(texts: list[str]) -> torch.Tensor:
            return encoder.encode(texts, batch_size=1, convert_to_tensor=True, show_progress_bar=False).float()

        return cls(embed, embed([""]).shape[1], encoder_identity(folder))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings [len(texts), dim] float32 on the encoder's device."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self._embed(fresh), strict=True))
        return torch.stack([self._known[text] for text in texts])


def encoder_identity(name_or_path: str | Path) -> str:
    """What tells an instruction encoder from others: `"tokens"`, or the SHA-256 of a model's files (names and bytes).

    Raises:
        UserError: sentence-transformers is not installed, there is no such folder, or the hub does not hold it.
    """
    if str(name_or_path) == TOKENS:
        return TOKENS
    folder, digest = _folder(name_or_path), hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _FILES and path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def encoder_dim(name_or_path: str | Path, model: Any) -> int | None:
    """Size of an encoder's embeddings without loading it; None where its configuration does not say.

    Args:
        name_or_path: as for `encoder_identity`, with the same errors.
        model: the base model, or its skeleton.
    """
    if str(name_or_path) == TOKENS:
        return model.get_input_embeddings().weight.shape[1]
    folder = _folder(name_or_path)
    if any(folder.glob("*_Dense")):
        return None
    for path in (folder / "config.json", folder / "0_Transformer" / "config.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(path.read_text(encoding="utf-8"))["hidden_size"])
    return None


def _folder(name_or_path: str | Path) -> Path:
    """The local folder of a sentence-transformers model; downloads configuration and safetensors of a hub name."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError(
            "sentence-transformers is not installed",
            where=f"instruction encoder {str(name_or_path)!r}",
            fix='pip install sentence-transformers, or use the encoder "tokens"',
        )
    path, name = Path(name_or_path).expanduser(), str(name_or_path)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError("there is no such instruction encoder", where=name, fix="Check the path")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(
            snapshot_download(name if "/" in name else f"sentence-transformers/{name}", allow_patterns=patterns)
        )
    except Exception as error:  # the hub client raises its own, httpx's and OS errors; to the user they are one
        raise UserError(
            f"cannot get this instruction encoder ({' '.join(str(error).split())[:200]})",
            where=name,
            fix='Check the name and the network, give the folder of a downloaded model, or use "tokens"',
        ) from None
