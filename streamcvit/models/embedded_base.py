"""Trains the embedded base model: `python -m streamcvit.models.embedded_base OUT`.

The result is a folder with a stock Hugging Face `LlavaForConditionalGeneration` of about a million parameters (CLIP
tower over 32-pixel images, Llama of width 128), its `LlavaProcessor` and a byte-level BPE tokenizer. `AutoProcessor`
and `AutoModelForImageTextToText` load it like any other model.

Two stages, both with fixed numbers of steps and one seed, so that the same machine kind and thread count give the same
weights: the tower learns the attributes of pictures through read-out heads that are thrown away; then projector and
language model learn the lessons of `streamcvit.data.embedded_corpus` over the frozen tower, whose features are
computed once. The program prints how well each skill is learned on pictures that it was not trained on. It runs on one
thread; the defaults take about half an hour on one core of a 2024 server CPU.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from streamcvit.data import embedded
from streamcvit.data.embedded_corpus import KIND_SHARES, LESSONS, Exchange, exchange, lexicon
from streamcvit.data.embedded_images import (
    BACKGROUNDS,
    BARS,
    CELL,
    COLOURS,
    LANDS,
    MAX_BAR,
    MAX_OBJECTS,
    REGIONS,
    SHAPES,
    SIZE,
    Picture,
    draw,
    rng_for,
)

FOLDER = Path(__file__).parent / "embedded"
"""The base that comes with the package."""

PATCHES = (SIZE // CELL) ** 2
VOCABULARY = 1000
MAX_TEXT = 2048
VISION_WIDTH = 96
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
# Stock initial scales (0.02) are meant for widths of thousands; at a hundred they leave the residual stream almost
# empty.
INIT_GAIN = 3.0
FOCUS = {"scene": 3.0, "big": 2.0}
"""Odds of the kinds of picture under `focus`, against 1 for the others."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% else %}<answer>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
"""`<bos><image>{text}<answer>{answer}<eos>`: every border is a token of its own, so nothing merges across it and
prompts stay short."""

IMAGE_PREFIX = "<bos>" + "<image>" * PATCHES


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the full byte alphabet: any text round-trips, the benchmark's words are one
    token each."""
    rng = rng_for("base", seed, 90)
    lessons = [exchange(draw(kind, "base", rng), rng) for kind in KIND_SHARES for _ in range(150)]
    texts = [part for lesson in lessons for part in (lesson.prompt, lesson.answer)]
    texts += [text for task in embedded.TASKS for text in embedded.INSTRUCTIONS[task]]
    # Whole words with and without a leading space; digits stay single because no longer number is ever shown.
    texts = ["".join("#" if char.isdigit() else char for char in text) for text in texts]
    texts += [f"{word}\n {word}" for word in lexicon()] * 40
    texts += [f"{digit} {digit} x{digit} y{digit}\n" for digit in range(10)] * 40
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>", "<image>", "<answer>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>", "answer_token": "<answer>"},
        model_max_length=MAX_TEXT,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The stock processor; it resizes any image to 32 x 32 and needs no torchvision."""
    image_processor = CLIPImageProcessor(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """The untrained model, float32."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.get_vocab()
    special = {name: vocabulary[f"<{name}>"] for name in ("pad", "bos", "eos", "image")}
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=CELL,
        projection_dim=VISION_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_TEXT,
        tie_word_embeddings=True,
        pad_token_id=special["pad"],
        bos_token_id=special["bos"],
        eos_token_id=special["eos"],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=special["image"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(INIT_GAIN)
    model.generation_config = GenerationConfig(
        pad_token_id=special["pad"], bos_token_id=special["bos"], eos_token_id=special["eos"], do_sample=False
    )
    return model


def normalise(pictures: Sequence[Picture]) -> Tensor:
    """Pictures as the tower reads them: float32 [N, 3, 32, 32]."""
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


def draw_pool(count: int, seed: int) -> list[Picture]:
    """Base pictures of all kinds in the shares of `KIND_SHARES`, shuffled."""
    rng = rng_for("base", seed, 91)
    kinds = rng.choice(list(KIND_SHARES), size=count, p=list(KIND_SHARES.values()))
    return [draw(str(kind), "base", rng) for kind in kinds]


# --- stage 1: the tower -------------------------------------------------------------------------------------

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
_ABSENT = -100


def attribute_labels(picture: Picture) -> tuple[list[int], list[int]]:
    """Class of each patch (scenes only; the last class is an empty cell) and of each attribute; -100 where it does not
    apply."""
    facts = picture.facts
    cells = [_ABSENT] * PATCHES
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
    return cells, [found.get(name, _ABSENT) for name, _ in _ATTRIBUTES]


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


def _schedule(step: int, steps: int) -> float:
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
            group["lr"] = lr * _schedule(step, steps)
        chosen = torch.randint(len(pictures), (batch,), generator=generator)
        cell_logits, place_logits, attribute_logits = heads(tower_features(model, pixels[chosen]))
        loss = 2 * functional.cross_entropy(
            cell_logits.flatten(0, 1), cells[chosen].flatten(), cell_weights, ignore_index=_ABSENT
        )
        loss = loss + 0.2 * functional.cross_entropy(place_logits.flatten(0, 1), places)
        for number, logits in enumerate(attribute_logits):
            target = attributes[chosen, number]
            loss = loss + functional.cross_entropy(logits, target, ignore_index=_ABSENT, reduction="sum") / batch
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
    occupied = (cells != _ABSENT) & (cells != len(_SCENE_CLASSES))
    scores = {"object in cell": float((cell_logits.argmax(-1) == cells)[occupied].float().mean())}
    for number, (name, _) in enumerate(_ATTRIBUTES):
        target = torch.tensor([attribute[number] for _, attribute in labels])
        known = target != _ABSENT
        scores[name] = float((attribute_logits[number].argmax(-1) == target)[known].float().mean())
    return scores


# --- stage 2: projector and language model ------------------------------------------------------------------


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


class _Packed:
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
        labels, lesson_of, segments = np.full(shape, _ABSENT), np.full(shape, -1), np.full(shape, -1)
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
        return self.labels != _ABSENT


def _answer_logits(model: LlavaForConditionalGeneration, features: Tensor, packed: _Packed) -> Tensor:
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
            group["lr"] = lr * _schedule(step, horizon or steps)
        chosen = rng.choice(len(pictures), batch, p=odds) if turn else rng.integers(len(pictures), size=batch)
        # Seven lessons are more than the budget holds: rows come out full, so that little is spent on padding.
        rows = [[lesson_about(pictures[number], rng) for _ in range(7)] for number in chosen]
        packed = _Packed(tokenizer, rows, budget=budget)
        logits = _answer_logits(model, features[torch.from_numpy(chosen)], packed)
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
        packed = _Packed(tokenizer, rows)
        logits = _answer_logits(model, features[start : start + batch], packed)
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


PHASES = (Phase(3000, 6000, "all"), Phase(3000, 4500, "focused"), Phase(4000, 4000, "stepwise"))
"""The rate is still high where the first two end: searching and picking from lists are learned late and all at once."""


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
