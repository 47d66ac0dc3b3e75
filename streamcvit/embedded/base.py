"""Trains the embedded base model: `python -m streamcvit.embedded.base OUT`.

The result is a folder with a stock Hugging Face `LlavaForConditionalGeneration` of about a million parameters (CLIP
tower over 32-pixel images, Llama of width 128), its `LlavaProcessor` and a byte-level BPE tokenizer. `AutoProcessor`
and `AutoModelForImageTextToText` load it like any other model.

Two stages, both with fixed numbers of steps and one seed, so that the same machine kind and thread count give the same
weights: the tower learns the attributes of pictures through read-out heads that are thrown away; then projector and
language model learn the lessons of `streamcvit.embedded.lessons` over the frozen tower, whose features are
computed once. The program prints how well each skill is learned on pictures that it was not trained on: 93 % or more
everywhere but picking from shuffled lists, which stays at chance (the stream lists its choices in one order). It runs
on one thread, for roughly half an hour on one core of a server CPU.

The committed weights came from these phases run one after another in processes of their own; that one uninterrupted
run gives them to the bit has not been checked.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from streamcvit.embedded.corpus import exchange
from streamcvit.embedded.images import Picture, rng_for
from streamcvit.embedded.lessons import LESSONS
from streamcvit.embedded.model import (
    IMAGE_PREFIX,
    MAX_TEXT,
    build_model,
    build_processor,
    build_tokenizer,
    draw_pool,
    normalise,
)
from streamcvit.embedded.phrases import Exchange
from streamcvit.embedded.tower import ABSENT, learning_rate, tower_accuracy, tower_features, train_tower

FOLDER = Path(__file__).parent / "weights"
"""The base that comes with the package."""

FOCUS = {"scene": 3.0, "big": 2.0}
"""Odds of the kinds of picture in every phase but the first, against 1 for the others."""


@torch.no_grad()
def encode_pool(model: LlavaForConditionalGeneration, pictures: Sequence[Picture], batch: int = 512) -> Tensor:
    """Tower features of many pictures: float32 [N, 16, D]."""
    pixels = normalise(pictures)
    return torch.cat([tower_features(model, pixels[start : start + batch]) for start in range(0, len(pictures), batch)])


def _fitting(row: list[tuple[list[int], list[int]]], budget: int) -> list[tuple[list[int], list[int]]]:
    """The lessons (prompt and answer tokens) of a row that fit into a number of tokens; the first always stays."""
    kept, left = row[:1], budget - sum(map(len, row[0]))
    for lesson in row[1:]:
        if sum(map(len, lesson)) <= left:
            kept.append(lesson)
            left -= sum(map(len, lesson))
    return kept


class PackedLessons:
    """Several lessons about each picture in one row: the image once, then the lessons side by side.

    Every lesson sees the image and itself only and starts at the same rotary position, so that the loss is the one of
    separate rows at a third of the tokens.

    Attributes:
        ids: int64 [B, S], right padded.
        positions: int64 [B, S], rotary positions.
        mask: float32 [B, 1, S, S], 0 where a position may look and a large negative number where not.
        labels: int64 [B, S], the token that follows where it belongs to an answer, -100 elsewhere.
        lesson_of: int64 [B, S], number of the lesson in its row at the same places, -1 elsewhere.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[Exchange]], *, budget: int = MAX_TEXT
    ) -> None:
        flat = [lesson for row in rows for lesson in row]
        prompts = tokenizer([f"{lesson.prompt}<answer>" for lesson in flat], add_special_tokens=False)["input_ids"]
        answers = tokenizer([f"{lesson.answer}<eos>" for lesson in flat], add_special_tokens=False)["input_ids"]
        prefix = tokenizer(IMAGE_PREFIX, add_special_tokens=False)["input_ids"]
        texts = iter(zip(prompts, answers, strict=True))
        packed = [_fitting([next(texts) for _ in row], budget - len(prefix)) for row in rows]
        length = len(prefix) + max(sum(len(prompt) + len(answer) for prompt, answer in row) for row in packed)
        shape = (len(rows), length)
        ids, positions = np.full(shape, tokenizer.pad_token_id), np.zeros(shape, np.int64)
        labels, lesson_of, segments = np.full(shape, ABSENT), np.full(shape, -1), np.full(shape, -1)
        for number, row in enumerate(packed):
            end = len(prefix)
            ids[number, :end], positions[number, :end], segments[number, :end] = prefix, np.arange(end), 0
            for lesson, (prompt, answer) in enumerate(row):
                start, middle, end = end, end + len(prompt), end + len(prompt) + len(answer)
                ids[number, start:end] = prompt + answer
                positions[number, start:end] = np.arange(len(prefix), len(prefix) + end - start)
                segments[number, start:end] = lesson + 1
                labels[number, middle - 1 : end - 1] = answer
                lesson_of[number, middle - 1 : end - 1] = lesson
        self.ids, self.positions, self.labels, self.lesson_of = map(
            torch.from_numpy, (ids, positions, labels, lesson_of)
        )
        segment = torch.from_numpy(segments)
        looks = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
        looks &= torch.ones(length, length, dtype=torch.bool).tril()
        self.mask = torch.where(looks, 0.0, torch.finfo(torch.float32).min).unsqueeze(1)

    @property
    def asked(self) -> Tensor:
        """bool [B, S]: true where the next token belongs to an answer."""
        return self.labels != ABSENT


def answer_logits(model: LlavaForConditionalGeneration, features: Tensor, packed: PackedLessons) -> Tensor:
    """Logits [answer tokens, V] where `packed.asked`."""
    embeddings = model.get_input_embeddings()(packed.ids)
    image = (packed.ids == model.config.image_token_index).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(image, model.model.multi_modal_projector(features))
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[packed.asked])


def train_language(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pictures: Sequence[Picture],
    features: Tensor,
    *,
    steps: int,
    seed: int,
    horizon: int | None = None,
    lessons: str = "all",
    batch: int = 16,
    budget: int = 120,
    lr: float = 2e-3,
    save_to: Path | None = None,
) -> None:
    """Stage 2: projector and language model learn the lessons; the tower stays as it is.

    Args:
        model: changed in place.
        tokenizer: its tokenizer.
        pictures: N pictures of the base.
        features: their tower features, [N, 16, D].
        steps: optimizer steps to do.
        seed: of the lessons.
        horizon: the step at which the rate would have fallen to its end, if not `steps`.
        lessons: a key of `LESSONS`; all but `all` dwell on scenes and large objects too.
        batch: pictures a step.
        budget: tokens a row; it is filled with lessons about its picture.
        lr: the highest rate.
        save_to: folder for the weights every 1,000 steps.
    """
    tower = set(model.model.vision_tower.parameters())
    weights = [weight for weight in model.parameters() if weight not in tower]
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.01, betas=(0.9, 0.98))
    turn = list(LESSONS).index(lessons)
    rng = rng_for("base", seed, 92, turn)
    lesson_about = LESSONS[lessons]
    odds = np.array([FOCUS.get(picture.kind, 1.0) for picture in pictures])
    odds /= odds.sum()
    started, running = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate(step, horizon or steps)
        chosen = rng.choice(len(pictures), batch, p=odds) if turn else rng.integers(len(pictures), size=batch)
        # Seven lessons are more than the budget holds: rows come out full, so that little is spent on padding.
        rows = [[lesson_about(pictures[number], rng) for _ in range(7)] for number in chosen]
        packed = PackedLessons(tokenizer, rows, budget=budget)
        logits = answer_logits(model, features[torch.from_numpy(chosen)], packed)
        loss = functional.cross_entropy(logits, packed.labels[packed.asked])
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running += (loss.item() - running) / min(step + 1, 200)
        if (step + 1) % 250 == 0:
            print(f"language step {step + 1}/{steps} loss {running:.4f} {time.monotonic() - started:.0f} s", flush=True)
        if save_to is not None and (step + 1) % 1000 == 0:
            model.save_pretrained(save_to)


@torch.no_grad()
def skill_accuracy(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pictures: Sequence[Picture],
    *,
    seed: int,
    batch: int = 128,
) -> dict[str, tuple[float, int]]:
    """Skill -> (share of lessons answered to the last token, number of lessons).

    Taken from one forward with the answer given, which agrees with greedy decoding: an answer whose every token is the
    arg-max is what decoding writes.
    """
    rng = rng_for("base", seed, 93)
    features = encode_pool(model, pictures)
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(pictures), batch):
        rows = [[exchange(picture, rng)] for picture in pictures[start : start + batch]]
        packed = PackedLessons(tokenizer, rows)
        logits = answer_logits(model, features[start : start + batch], packed)
        wrong = torch.zeros(packed.ids.shape, dtype=torch.bool)
        wrong[packed.asked] = logits.argmax(-1) != packed.labels[packed.asked]
        for (lesson,), failed in zip(rows, wrong.any(1).tolist(), strict=True):
            right[lesson.skill].append(not failed)
    return {skill: (float(np.mean(rights)), len(rights)) for skill, rights in sorted(right.items())}


def _table(title: str, rows: dict[str, Any]) -> str:
    lines = [
        f"  {name:<20} {value[0]:6.1%}  n={value[1]}" if isinstance(value, tuple) else f"  {name:<20} {value:6.1%}"
        for name, value in rows.items()
    ]
    return "\n".join([title, *lines])


class Phase(NamedTuple):
    """A part of stage 2: how many steps, the horizon of its learning rate, and how lessons are chosen."""

    steps: int
    horizon: int
    lessons: str


PHASES = (
    Phase(3000, 6000, "all"),
    Phase(3000, 4500, "focused"),
    Phase(4000, 4000, "stepwise"),
)
"""The rate is still high where the first two end: searching a scene is learned late and all at once."""


def train(
    out: Path, *, pictures: int, tower_steps: int, phases: Sequence[Phase] = PHASES, seed: int = 0, held_out: int = 3000
) -> None:
    """Trains a base from nothing and saves it to a folder."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    build_processor(tokenizer).save_pretrained(out)
    model = build_model(tokenizer, seed)
    say = functools.partial(print, flush=True)
    say(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    pool, unseen = draw_pool(pictures, seed), draw_pool(held_out, seed + 1000)
    heads = train_tower(model, pool, steps=tower_steps, seed=seed)
    say(_table("tower, held-out pictures:", tower_accuracy(model, heads, unseen)))
    model.save_pretrained(out)
    features = encode_pool(model, pool)
    for steps, horizon, lessons in phases:
        train_language(
            model, tokenizer, pool, features, steps=steps, horizon=horizon, lessons=lessons, seed=seed, save_to=out
        )
    model.save_pretrained(out)
    say(_table("skills, held-out pictures:", skill_accuracy(model, tokenizer, unseen, seed=seed)))


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Train the embedded base model.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--tower-steps", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(
        arguments.out,
        pictures=arguments.pictures,
        tower_steps=arguments.tower_steps,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
