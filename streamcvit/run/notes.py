"""What a learner notes of a chunk: values that can be written as JSON, and joined where it took two lives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from streamcvit.data.sample import Quarantined


def joined(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """One note of a chunk that was learned in two lives: sums add up, means weigh their samples."""
    n, m = first["samples"], then["samples"]

    def mean(a: float | None, b: float | None) -> float | None:
        return b if a is None else a if b is None else (n * a + m * b) / max(n + m, 1)

    shares = [first["expert_share"], then["expert_share"]]
    banks = {
        bank: [mean(a, b) for a, b in zip(*(share[bank] for share in shares), strict=True)]
        for bank in shares[0].keys() & shares[1].keys()
    }
    means = {key: mean(first[key], then[key]) for key in ("loss", "correct")}
    sums = ("samples", "positions", "busy_s", "wait_ingest_s", "wait_evaluation_s")
    skips = Counter(first.get("skipped", {})) + Counter(then["skipped"])
    return {
        **{key: first[key] + then[key] for key in sums},
        **means,
        "skipped": dict(skips),
        "expert_share": shares[0] | shares[1] | banks,
    }


def mean_of(losses: list[torch.Tensor]) -> float | None:
    """Mean of those that are finite; None where none is."""
    if not losses:
        return None
    every = torch.cat(losses)
    every = every[every.isfinite()]
    return float(every.mean()) if len(every) else None


def idle_modules(names: Iterable[str]) -> list[str]:
    """The modules of parameters that got no gradient, layers of one kind as one, e.g. `layers.#.altup.router`."""
    found = (name.removeprefix("base_model.model.").rpartition(".")[0] for name in names)
    own = r"\.((sm|moe|str)?lora_\w+|modules_to_save|base_layer)\b.*"
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "#", re.sub(own, "", name)) for name in found))


def event_of(bad: Quarantined) -> dict[str, Any]:
    """A quarantined sample as the event of a run folder."""
    return {"position": bad.position, "sample_id": bad.sample_id, "reason": bad.reason, "detail": bad.detail}


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
