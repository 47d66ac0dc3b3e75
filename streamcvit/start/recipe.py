"""The pipeline's text: every choice with the reason beside it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.start.gather import Gathered, Task
from streamcvit.start.judge import Judgement, instructions_of, judge
from streamcvit.start.look import Looked

PER_CHUNK = 200
"""Samples of a chunk, about."""
CHUNKS = 15
"""At most so many, unless the tasks need more."""
TOGETHER = 3
"""Tasks of a chunk."""


@dataclass(frozen=True)
class Recipe:
    """The text of a pipeline, and a line a task of what was found, the first of names."""

    text: str
    table: list[tuple[str, ...]]


def recipe(root: Path, gathered: Gathered, seed: int) -> Recipe:
    """Write a pipeline; what is odd about the answers goes into `gathered.odd`."""
    table: list[tuple[str, ...]] = [
        ("task", "training", "test", "pictures", "format", "answers", "scorer, follow", "instruction")
    ]
    tasks = list[str]()
    for task in gathered.tasks:
        together = (task.train.seen if task.train else type(task.test.seen)()) + task.test.seen
        judged = judge(together, task.test.seen)
        gathered.odd += [f"{task.name}: {odd}" for odd in judged.odd]
        wordings = _named_classes(task.classes) if task.classes else instructions_of(together)
        own = together.own > len(together) / 2
        tasks.append(_task(root, task, judged, [] if own else wordings, own, not tasks))
        asked = "the rows' own" if own else f"{len(wordings)} wordings" if len(wordings) > 1 else "named"
        drawn = " (drawn)" if task.drawn else ""
        numbers = sorted(together.counts)
        pictures = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        formats = list(dict.fromkeys(one.format for one in (task.train, task.test) if one))
        trained = str(len(task.train.seen)) if task.train else "-"
        table.append(
            (
                task.name, trained, f"{len(task.test.seen)}{drawn}", pictures, ", ".join(formats), judged.what,
                f"{judged.scorer}, {judged.follow}", asked if own or wordings else "none",
            )
        )  # fmt: skip
    return Recipe(_text(root, gathered, tasks, seed), table)


def _named_classes(classes: list[str]) -> list[str]:
    few = len(classes) <= 20 and sum(map(len, classes)) <= 400
    return [f"Answer with one of: {', '.join(classes)}." if few else "Answer with a single word or phrase."]


def _task(root: Path, task: Task, judged: Judgement, wordings: list[str], own: bool, first: bool) -> str:
    """A task's section; what holds for every task is explained in the `first`."""
    train, test = task.train, task.test
    fields: list[tuple[str, Any, str]] = []
    if train:
        fields.append(("train", _path(root, train), f"{len(train.seen)} samples"))
    from_same = "drawn from the same rows" if task.drawn else ""
    fields.append(("test", _path(root, test), ", ".join(filter(None, [f"{len(test.seen)} samples", from_same]))))
    if train:
        fields.append(("format", train.format, ""))
    fields.append(("test_format", test.format, ""))
    images = {one.images for one in (train, test) if one}
    if image_root := (train or test).images:
        fields.append(("images", image_root, "picture paths start from here"))
    fields.append(("scorer", judged.scorer, f"the answers are {judged.what}"))
    fields.append(("follow", judged.follow, "the form that an answer must keep to" if first else ""))
    fields.append(("max_new_tokens", judged.max_new_tokens, "the longest answers take about so many" if first else ""))
    lines = [f"    {_yaml(task.name)}:"]
    for key, value, why in fields:
        lines.append(f"      {key}: {_yaml(value)}" + (f"  # {why}" if why else ""))
    if len(images) > 1:
        lines.append(f"      # the test set's pictures lie beneath {_yaml(test.images)}: bring both under one folder")
    if wordings:
        why = "  # what the prompts end with; experts are routed by it" if first else ""
        lines.append(f"      instructions:{why}")
        lines += [f"        - {_yaml(one)}" for one in wordings]
        if task.classes:
            lines.append("      wording: single  # puts it behind every question")
    elif not own:
        lines.append("      # instructions: [...]  # name the wordings that your prompts end with, to route by them")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _path(root: Path, one: Looked) -> str:
    path = Path(one.path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _yaml(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, int):
        return str(value)
    if re.fullmatch(r"[A-Za-z_][\w./-]*", value, re.ASCII) and yaml.safe_load(value) == value:
        return str(value)
    return str(yaml.safe_dump(value, default_style='"', width=2**31, allow_unicode=True)).strip()


def stream_recipe(root: Path, seed: int) -> Recipe:
    """Of a folder that is a stream already, with its index."""
    index = StreamIndex.open(root)
    learned, tested = Counter(index.task_of), Counter(index.eval_index().task_of)
    table: list[tuple[str, ...]] = [("task", "training", "test", "scorer, follow")]
    for name, task in index.tasks.items():
        table.append((name, str(learned[name]), str(tested[name]), f"{task.scorer}, {task.follow}"))
    if untested := sorted(set(learned) - set(tested)):
        what = f"the stream has no test set for {', '.join(untested)}"
        raise UserError(what, where=str(root), fix="Index it again with test shards (streamcvit index)")
    samples = f"{len(index)} samples in {index.n_chunks} chunks"
    lines = ["stream:", "  source: shards", f"  data: {_yaml(str(root))}  # {samples}, with scorers of their own"]
    text = "\n".join([*_head(root, len(index.tasks), len(index), seed), *lines, *_rest(len(index), index.n_chunks)])
    return Recipe(text, table)


def _text(root: Path, gathered: Gathered, tasks: list[str], seed: int) -> str:
    sizes = [len(task.train.seen) for task in gathered.tasks if task.train]
    together = min(TOGETHER, len(sizes))
    chunks = max(min(CHUNKS, sum(sizes) // PER_CHUNK, sum(sizes) // together), 2, -(-len(sizes) // together))
    chunks = min(chunks, max(1, sum(sizes) // together))
    lines = [
        "stream:",
        "  source: files",
        f"  data: {_yaml(str(root))}  # the paths below start from here",
        "  scenario:  # mixtures that change from chunk to chunk (`preset: task-incremental`: task after task)",
        "    preset: generate",
        f"    chunks: {chunks}  # of about {sum(sizes) // chunks} samples, scored after each",
        f"    tasks_per_chunk: {together}",
        "    recurrence_gap: 0",
        "  tasks:",
        *tasks,
    ]
    return "\n".join([*_head(root, len(tasks), sum(sizes), seed), *lines, *_rest(sum(sizes), chunks)])


def _head(root: Path, tasks: int, samples: int, seed: int) -> list[str]:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("._-")[:60] or "mine"
    return [
        f"# By `streamcvit init {_one_line(root.name)}`: {tasks} tasks, {samples} training samples.",
        "# Formats, test sets and what is refused: docs/data.md.",
        f"name: {_yaml(name)}",
        f"seed: {seed}",
    ]


def _rest(samples: int, chunks: int) -> list[str]:
    return [
        "model:",
        "  name_or_path: embedded  # a toy base that runs anywhere; put your own model's folder or hub name here",
        "  # dtype: bfloat16      # for a real model on a GPU",
        "learner:",
        f"  batch_size: {max(1, min(8, samples // chunks // 4))}",
        "methods:  # each learns the same stream; see docs/methods.md",
        "  lora:",
        "    adapter: lora",
        "    options: {r: 16, lora_alpha: 32}",
        "    lr: 1.0e-3  # for the embedded base; real models want about 1.0e-4 to 2.0e-4",
        "  smolora:",
        "    adapter: smolora",
        "    options: {router: prototype, r: 8, num_experts_visual: 4, num_experts_instruction: 16}",
        "    lr: 1.0e-3",
        "",
    ]
