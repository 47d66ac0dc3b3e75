"""Instruction embeddings: what the instruction router reads."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from streamcvit.errors import UserError

TOKENS = "tokens"
"""Name of the encoder that needs no second model."""

_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")  # what decides an embedding


class InstructionEncoder:
    """Embeds instructions, each distinct text once.

    Args:
        embed: embedding [N, D] of N texts.
        dim: embedding size D.
        identity: what tells this encoder from others, see `encoder_identity`.
    """

    def __init__(self, embed: Callable[[list[str]], torch.Tensor], dim: int, identity: str = TOKENS) -> None:
        self.dim, self.identity = dim, identity
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
        return cls.from_model(model, tokenizer) if name == TOKENS else cls.from_sentence_transformer(name, model.device)

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any) -> InstructionEncoder:
        """Mean of the model's own token embeddings, without the direction all of them share, scaled to RMS 1.

        Trained tokens share one large direction (against the vocabulary's untrained rest), so that plain means of any
        two instructions have a cosine near 1. Mean and first principal component of the table are taken off
        ("all-but-the-top", Mu and Viswanath, 2018). Deterministic, and needs no second model. The empty text gets the
        direction that was taken off all others, so that it is like itself alone.
        """
        table = model.get_input_embeddings().weight.detach()
        mean = table.mean(0, dtype=torch.float32)
        # In blocks, since a large vocabulary in float32 may not fit beside the model.
        scatter = sum((c.T @ c for c in (block.float() - mean for block in table.split(16384))), torch.zeros(()))
        top = torch.linalg.eigh(scatter).eigenvectors[:, -1]
        top = top * top[top.abs().argmax()].sign()  # an eigenvector's sign is the library's choice

        def embed(texts: list[str]) -> torch.Tensor:
            rows = []
            for text in texts:
                ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
                if not len(ids):
                    rows.append(top / top.square().mean().sqrt())
                    continue
                row = (table[ids.to(table.device)].float() - mean).mean(0)
                row = row - (row @ top) * top
                rows.append(row / row.square().mean().sqrt().clamp_min(1e-6))
            return torch.stack(rows)

        return cls(embed, table.shape[1])

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
