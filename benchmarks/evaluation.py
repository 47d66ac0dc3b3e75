"""Answers per second at a chunk boundary, beside the published way: a batch of one, the model loaded for each task.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [--samples 100] [--rounds 3] [--steps 150] [--json FILE]

On the embedded model with a LoRA that has learned `--steps` batches of all eleven tasks; `--samples` test samples a
task. Four ways, the same weights and samples, in turn in every round:

    published  for each task: model, processor and adapter from disk, then sample by sample the processor, the vision
               tower and transformers' `generate`, greedy
    loaded     the same with the model loaded once
    first      a run's first boundary: model and adapter from disk once, every task's texts and pictures prepared
    boundary   every later one: the adapter's weights put on the model, and answered

Times are of the processor on a CPU (one process; waiting for other programs does not count), of the wall on CUDA;
medians over rounds, ratios within each round. Every answer is compared with the published way's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from streamcvit.adapters.build import attach
from streamcvit.data.sample import Sample
from streamcvit.embedded import tasks as embedded
from streamcvit.evaluation import Evaluator
from streamcvit.learning import OnlineLearner
from streamcvit.models.base import load_base
from streamcvit.models.batch import Batch
from streamcvit.models.collate import Collator
from streamcvit.models.snapshot import load_adapter_state
from streamcvit.run.folder import machine

RESULT = Path(__file__).resolve().parent / "results" / "evaluation.json"
WAYS = ("published", "loaded", "first", "boundary")

Answers = dict[str, list[str]]


def learned(folder: Path, steps: int, seed: int, batch: int = 8) -> None:
    """A LoRA that has learned so many batches of all tasks, as PEFT saves it."""
    base = load_base("embedded")
    model = attach(base.model, "lora", seed=seed, options={}, sizes={})
    learner = OnlineLearner(base, model, lr=3e-3, seed=seed)
    each = -(-steps * batch // len(embedded.TASKS))
    samples = [one for task in embedded.TASKS for one in embedded.train_samples(task, each, seed=seed)]
    np.random.default_rng(seed).shuffle(samples)  # type: ignore[arg-type]
    for start in range(0, steps * batch, batch):
        part = tuple(samples[start : start + batch])
        places = tuple(range(start, start + len(part)))
        learner.learn(Batch(start, start + len(part), 0, places, part, base.collator.train(part)))
    model.save_pretrained(folder)


def clock() -> float:
    """Seconds of the processor; of the wall where a GPU works."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Published:
    """The published way: stock transformers and PEFT, one sample at a time.

    Args:
        folder: of the base model.
        adapter: folder that PEFT saved.
        tests: task to its samples.
        again: load the model again for every task.
    """

    def __init__(self, folder: str, adapter: Path, tests: dict[str, list[Sample]], again: bool) -> None:
        self.folder, self.adapter, self.tests, self.again = folder, adapter, tests, again
        self.model: Any = None

    def load(self) -> None:
        """Model, processor and adapter from disk."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).to(device)
        self.model = PeftModel.from_pretrained(model, str(self.adapter)).eval()
        self.collator = Collator.from_pretrained(self.folder)

    @torch.no_grad()
    def __call__(self) -> Answers:
        answers: Answers = {}
        for task, samples in self.tests.items():
            if self.again or self.model is None:
                self.load()
            answers[task] = [self.answer(sample, embedded.TASKS[task].max_new_tokens) for sample in samples]
        return answers

    def answer(self, sample: Sample, most: int) -> str:
        """One answer."""
        collator = self.collator
        tensors = collator.prompts([sample]).to(self.model.device).tensors
        tokens = self.model.generate(
            **tensors,
            do_sample=False,
            num_beams=1,
            max_new_tokens=most,
            eos_token_id=sorted(collator.stop_ids),
            pad_token_id=collator.pad_token_id,
        )
        return collator.decode(tokens[:, tensors["input_ids"].shape[1] :])[0]


class Ours:
    """A run's evaluator; `first` loads and prepares, `boundary` puts weights on and answers."""

    def __init__(self, adapter: Path, tests: dict[str, list[Sample]], batch_size: int) -> None:
        self.adapter, self.tests, self.batch_size = adapter, tests, batch_size

    def first(self) -> Answers:
        """As a run's first boundary."""
        base = load_base("embedded")
        self.model = PeftModel.from_pretrained(base.model, str(self.adapter)).eval()
        self.evaluator = Evaluator(base, embedded.TASKS, self.tests, self.batch_size)
        return self.answer()

    def boundary(self) -> Answers:
        """As any later one."""
        load_adapter_state(self.model, load_file(self.adapter / "adapter_model.safetensors"))
        return self.answer()

    def answer(self) -> Answers:
        """Every task's answers."""
        return {task: list(self.evaluator.evaluate(self.model, task).texts) for task in self.tests}


def measure(samples: int, rounds: int, steps: int, seed: int, batch_size: int) -> dict[str, Any]:
    """Times of all ways and the answers that differ from the published way's."""
    tests = {task: list(embedded.test_samples(task, samples)) for task in embedded.TASKS}
    with tempfile.TemporaryDirectory() as place:
        adapter = Path(place)
        learned(adapter, steps, seed)
        folder = load_base("embedded").source
        ours = Ours(adapter, tests, batch_size)
        ways: dict[str, Callable[[], Answers]] = {
            "published": Published(folder, adapter, tests, again=True),
            "loaded": Published(folder, adapter, tests, again=False),
            "first": ours.first,
            "boundary": ours.boundary,
        }
        for way in ways.values():
            way()  # once untimed: imports, files in memory, the model that `loaded` keeps
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        answers: dict[str, Answers] = {}
        for _ in range(rounds):
            for name in WAYS:
                began = clock()
                answers[name] = ways[name]()
                seconds[name].append(clock() - began)
    count = samples * len(tests)
    differ = [
        {"way": name, "task": task, "sample": sample.sample_id, "published": theirs, "ours": own}
        for name in WAYS[1:]
        for task, rows in tests.items()
        for sample, theirs, own in zip(rows, answers["published"][task], answers[name][task], strict=True)
        if theirs != own
    ]
    times = {
        name: [theirs / own for theirs, own in zip(seconds["published"], seconds[name], strict=True)] for name in WAYS
    }
    return {
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tasks": len(tests),
        "answers": count,
        "batch_size": batch_size,
        "rounds": rounds,
        "seed": seed,
        "steps": steps,
        "rows": [
            {
                "way": name,
                "answers_per_second": count / statistics.median(seconds[name]),
                "times": statistics.median(times[name]),
                "times_low": min(times[name]),
                "times_high": max(times[name]),
            }
            for name in WAYS
        ],
        "compared": count * (len(WAYS) - 1),
        "differ": differ,
    }


def table(record: dict[str, Any]) -> str:
    """The Markdown table of a record."""
    lines = ["| way | answers per second | times the published way (least, most) |", "|---|---|---|"]
    for row in record["rows"]:
        spread = f"{row['times']:.1f} ({row['times_low']:.1f}, {row['times_high']:.1f})"
        lines.append(f"| {row['way']} | {row['answers_per_second']:.1f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="test samples a task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="batches of 8 that the adapter learns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64, help="as evaluation.batch_size")
    parser.add_argument("--json", type=Path, default=RESULT, help="where the record goes")
    args = parser.parse_args()
    record = measure(args.samples, args.rounds, args.steps, args.seed, args.batch_size)
    args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))
    print(f"{record['compared']} answers compared with the published way's, {len(record['differ'])} differ")
    for one in record["differ"][:20]:
        print(f"  {one['way']}: {one['task']}/{one['sample']}: {one['ours']!r}, published {one['published']!r}")


if __name__ == "__main__":
    main()
