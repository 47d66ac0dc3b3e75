"""Stage 1 of training the embedded base: its vision tower learns what pictures show."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from streamcvit.embedded.corpus import KIND_SHARES
from streamcvit.embedded.images import (
    BACKGROUNDS,
    BARS,
    COLOURS,
    LANDS,
    MAX_BAR,
    MAX_OBJECTS,
    REGIONS,
    SHAPES,
    Picture,
)
from streamcvit.embedded.model import PATCHES, VISION_WIDTH, normalise

_SCENE_CLASSES = [f"{colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]
_ATTRIBUTES: tuple[tuple[str, int], ...] = (
    ("kind", len(KIND_SHARES)),
    ("background", len(BACKGROUNDS)),
    ("shape", len(SHAPES)),
    ("colour", len(COLOURS)),
    ("count", MAX_OBJECTS),
    ("digit", 10),
    *((f"text {place}", 10) for place in range(3)),
    *((f"bar {name}", MAX_BAR) for name in BARS),
    *((f"land {name}", len(LANDS)) for name in REGIONS),
)
ABSENT = -100


def attribute_labels(picture: Picture) -> tuple[list[int], list[int]]:
    """Class of each patch (scenes only; the last class is an empty cell) and of each attribute; -100 where it does not
    apply."""
    facts = picture.facts
    cells = [ABSENT] * PATCHES
    found: dict[str, int] = {"kind": list(KIND_SHARES).index(picture.kind)}
    if picture.kind == "scene":
        cells = [len(_SCENE_CLASSES)] * PATCHES
        for colour, shape, row, column in facts["objects"]:
            cells[row * 4 + column] = _SCENE_CLASSES.index(f"{colour} {shape}")
        found["count"] = len(facts["objects"]) - 1
    if "background" in facts:
        found["background"] = BACKGROUNDS.index(facts["background"])
    if picture.kind == "big":
        found["shape"], found["colour"] = SHAPES.index(facts["shape"]), list(COLOURS).index(facts["colour"])
    if picture.kind == "digit":
        found["digit"] = facts["digit"]
    if picture.kind == "text":
        found |= {f"text {place}": int(digit) for place, digit in enumerate(facts["text"])}
    if picture.kind == "chart":
        found |= {f"bar {name}": height - 1 for name, height in zip(BARS, facts["heights"], strict=True)}
    if picture.kind == "land":
        found |= {f"land {name}": LANDS.index(land) for name, land in zip(REGIONS, facts["lands"], strict=True)}
    return cells, [found.get(name, ABSENT) for name, _ in _ATTRIBUTES]


class AttributeHeads(nn.Module):
    """Reads attributes from patch features [B, 16, D] the way a language model will: by attention, one query an
    attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(width, len(_SCENE_CLASSES) + 1)
        self.places = nn.Linear(width, PATCHES)
        self.queries = nn.Parameter(torch.randn(len(_ATTRIBUTES), width) * 0.5)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.classes = nn.ModuleList(nn.Linear(width, classes) for _, classes in _ATTRIBUTES)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits of each patch's object [B, 16, 25], of each patch's place [B, 16, 16], of each attribute [B,
        classes]."""
        queries = self.queries.expand(len(features), -1, -1)
        read, _ = self.attention(queries, features, features, need_weights=False)
        return self.cells(features), self.places(features), [head(read[:, i]) for i, head in enumerate(self.classes)]


def tower_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the projector reads: [B, 16, D], the class token dropped."""
    return model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]


def learning_rate(step: int, steps: int) -> float:
    """Warm-up over 50 steps, constant for 40 %, then linear to 2 %."""
    progress = step / steps
    return min(1.0, (step + 1) / 50) * (1.0 if progress < 0.4 else max(0.02, (1 - progress) / 0.6))


def train_tower(
    model: LlavaForConditionalGeneration,
    pictures: Sequence[Picture],
    *,
    steps: int,
    seed: int,
    batch: int = 64,
    lr: float = 2e-3,
) -> AttributeHeads:
    """Stage 1: the tower learns what pictures show. Returns the heads, for judging it."""
    torch.manual_seed(seed + 1)
    tower = model.model.vision_tower
    heads = AttributeHeads(VISION_WIDTH)
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.02, betas=(0.9, 0.98))
    pixels = normalise(pictures)
    labels = [attribute_labels(picture) for picture in pictures]
    cells, attributes = torch.tensor([cell for cell, _ in labels]), torch.tensor([attribute for _, attribute in labels])
    # Empty cells outnumber any object by far.
    cell_weights = torch.tensor([1.0] * len(_SCENE_CLASSES) + [0.3])
    places = torch.arange(PATCHES).repeat(batch)
    generator = torch.Generator().manual_seed(seed + 2)
    started, running = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate(step, steps)
        chosen = torch.randint(len(pictures), (batch,), generator=generator)
        cell_logits, place_logits, attribute_logits = heads(tower_features(model, pixels[chosen]))
        loss = 2 * functional.cross_entropy(
            cell_logits.flatten(0, 1), cells[chosen].flatten(), cell_weights, ignore_index=ABSENT
        )
        loss = loss + 0.2 * functional.cross_entropy(place_logits.flatten(0, 1), places)
        for number, logits in enumerate(attribute_logits):
            target = attributes[chosen, number]
            loss = loss + functional.cross_entropy(logits, target, ignore_index=ABSENT, reduction="sum") / batch
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running += (loss.item() - running) / min(step + 1, 100)
        if (step + 1) % 250 == 0:
            print(f"tower step {step + 1}/{steps} loss {running:.3f} {time.monotonic() - started:.0f} s", flush=True)
    return heads


@torch.no_grad()
def tower_accuracy(
    model: LlavaForConditionalGeneration, heads: AttributeHeads, pictures: Sequence[Picture]
) -> dict[str, float]:
    """Share of right attributes on given pictures."""
    labels = [attribute_labels(picture) for picture in pictures]
    cell_logits, _, attribute_logits = heads(tower_features(model, normalise(pictures)))
    cells = torch.tensor([cell for cell, _ in labels])
    occupied = (cells != ABSENT) & (cells != len(_SCENE_CLASSES))
    scores = {"object in cell": float((cell_logits.argmax(-1) == cells)[occupied].float().mean())}
    for number, (name, _) in enumerate(_ATTRIBUTES):
        target = torch.tensor([attribute[number] for _, attribute in labels])
        known = target != ABSENT
        scores[name] = float((attribute_logits[number].argmax(-1) == target)[known].float().mean())
    return scores
