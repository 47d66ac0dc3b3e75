"""How to route samples without a picture: the embedded stream with two text-only tasks mixed in.

    python benchmarks/text_only.py [--seeds 0 1 2] [--only NAME ...]   # adds runs to results/text_only.jsonl
    python benchmarks/text_only.py --seeds                             # prints the table of them again

The text-only tasks share the instruction of the four picture tasks that share one, so that their prompts' text alone
tells them apart: `kind` ("What kind of thing is red?") and `first` ("Words: red, star, two. Which word comes first?"),
240 samples each in two of the fifteen chunks. The table holds the final AP over all thirteen tasks, over the pictures'
eleven and over the two, the mean of the seeds. One thread a run, SMoLoRA at its chosen rate.

    text      by the prompt's text, as `spawn_below_text` is
    one       by the instruction alone: texts under one instruction share one visual expert
    silent    not at all: the instruction's expert has both halves of the say
    bankless  the instruction bank alone, for pictures too
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamcvit.adapters import InstructionEncoder
from streamcvit.adapters.build import attach
from streamcvit.adapters.smolora.model import SMoLoraModel
from streamcvit.adapters.targets import target_modules
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.embedded import tasks as embedded
from streamcvit.evaluation import SCORERS, Evaluator
from streamcvit.learning import OnlineLearner
from streamcvit.models.base import load_base
from streamcvit.models.batch import Batch
from streamcvit.models.vision import vision_dim
from streamcvit.run.folder import machine

RESULTS = Path(__file__).parent / "results" / "text_only.jsonl"

OPTIONS: dict[str, Any] = {"router": "prototype", "r": 8, "num_experts_visual": 24, "num_experts_instruction": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "text": {},
    "one": {"spawn_below_text": -2.0},
    "silent": {},
    "bankless": {"banks": "instruction"},
}
CHUNKS = {"kind": (2, 7), "first": (4, 9)}
PER_CHUNK = 240
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TASKS = embedded.TASKS | {name: TaskSpec(name, "exact", "single_word") for name in CHUNKS}


def ask(task: str, rng: np.random.Generator) -> tuple[str, str]:
    """A question and its answer."""
    if task == "kind":
        kind = int(rng.integers(3))
        word = str(rng.choice((COLOURS, SHAPES, NUMBERS)[kind]))
        return f"What kind of thing is {word}?", ("Colour.", "Shape.", "Number.")[kind]
    words = [str(rng.choice(pool)) for pool in (COLOURS, SHAPES, NUMBERS)]
    rng.shuffle(words)
    return f"Words: {', '.join(words)}. Which word comes first?", words[0].capitalize() + "."


def texts(task: str, n: int, split: str, seed: int) -> list[Sample]:
    """Samples of a text-only task."""
    rng = np.random.default_rng([seed, split == "test", sorted(CHUNKS).index(task)])
    instruction = embedded.INSTRUCTIONS[embedded.SHARED_TASKS[0]][0]
    asked = [ask(task, rng) for _ in range(n)]
    return [Sample(f"{task}-{split}-{k}", task, q, instruction, (a,)) for k, (q, a) in enumerate(asked)]


def batches(base: Any, seed: int) -> Iterator[Batch]:
    """The embedded stream of a seed with the text-only tasks shuffled into their chunks."""
    chunks: list[list[Sample]] = [[] for _ in range(15)]
    for chunk, sample in embedded.stream(embedded.chunk_plan(seed=seed), seed):
        chunks[chunk].append(sample)
    rng = np.random.default_rng([seed, 5])
    for task, places in CHUNKS.items():
        fresh = iter(texts(task, PER_CHUNK * len(places), "train", seed))
        for place in places:
            chunks[place] += [next(fresh) for _ in range(PER_CHUNK)]
            chunks[place] = [chunks[place][k] for k in rng.permutation(len(chunks[place]))]
    position = 0
    for chunk, samples in enumerate(chunks):
        for start in range(0, len(samples), 8):
            part = tuple(samples[start : start + 8])
            stop = position + len(part)
            yield Batch(position, stop, chunk, tuple(range(position, stop)), part, base.collator.train(part))
            position = stop


def silenced(decide: Any) -> Any:
    """`decide` with the instruction's expert in place of the visual one where a sample has no picture."""

    def decided(self: Any, name: str, inputs: Any, learning: bool) -> torch.Tensor:
        routes = decide(self, name, inputs, learning)
        blind = ~inputs.image_mask.any(1, keepdim=True)
        return torch.where(blind, routes[:, 1:], routes)

    return decided


def run(variant: str, seed: int) -> dict[str, Any]:
    """One run's final scores in points."""
    torch.set_num_threads(1)
    base = load_base("embedded", device="cpu")
    encoder = InstructionEncoder.load("tokens", base.model, base.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    options = OPTIONS | VARIANTS[variant]
    model = attach(base.model, "smolora", target_modules(base.model), seed=seed, options=options, sizes=sizes)
    decide = SMoLoraModel.decide
    try:
        if variant == "silent":
            SMoLoraModel.decide = silenced(decide)  # type: ignore[method-assign]
        learner = OnlineLearner(base, model, encoder=encoder, lr=3e-3, seed=seed)
        for batch in batches(base, seed):
            learner.learn(batch)
        tests = {task: embedded.test_samples(task, 100) for task in embedded.TASKS}
        tests |= {task: texts(task, 100, "test", 0) for task in CHUNKS}
        evaluator = Evaluator(base, TASKS, tests, batch_size=100, instruction_encoder=encoder)
        model.eval()
        points = {
            task: float(SCORERS[spec.scorer](evaluator.evaluate(model, task).texts, tests[task]).mean())
            for task, spec in TASKS.items()
        }
    finally:
        SMoLoraModel.decide = decide  # type: ignore[method-assign]

    def mean(names: Any) -> float:
        return round(float(np.mean([points[name] for name in names])), 1)

    return {
        "variant": variant,
        "seed": seed,
        "ap": mean(TASKS),
        "pictures": mean(embedded.TASKS),
        "texts": mean(CHUNKS),
        "date": f"{datetime.date.today()}",
        "machine": machine(),
    }


def table() -> Iterator[str]:
    """The means over the seeds that were run, in Markdown."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    yield "| visual route of texts | seeds | ap | pictures | texts |\n|---|---|---|---|---|"
    for variant in VARIANTS:
        if not (own := [row for row in rows if row["variant"] == variant]):
            continue
        means = (f"{np.mean([row[name] for row in own]):.1f}" for name in ("ap", "pictures", "texts"))
        yield f"| {variant} | {', '.join(str(row['seed']) for row in own)} | {' | '.join(means)} |"
    yield f"({'; '.join(sorted({row['machine'] for row in rows}))}, {max(row['date'] for row in rows)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    for seed in given.seeds:
        for variant in given.only:
            found = run(variant, seed)
            with RESULTS.open("a") as file:  # a line is written whole, so that runs beside each other may share it
                file.write(json.dumps(found) + "\n")
    print("\n".join(table()))


if __name__ == "__main__":
    main()
