"""Methods on the embedded stream: choose every learning rate by one grid, then confirm on other seeds.

    python benchmarks/embedded.py tune      # seeds 0-2, final AP only: rates, router modes, banks, expert numbers
    python benchmarks/embedded.py confirm   # seeds 101-103 at the chosen rates, every chunk boundary scored
    python benchmarks/embedded.py table     # print the tables again from the committed results

Every run is one line of benchmarks/results/embedded.jsonl; a run that is there is not run again. A seed draws its own
stream (plan, pictures, order) and the start of the adapter. The learning rate of every method, baselines included, is
the one with the best mean final AP on the tuning seeds; the ablations of SMoLoRA run at its rate. Adapters are compared
at one active rank: LoRA 16, MoELoRA 4 x 4, SMoLoRA 8 + 8.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

GRID = (1e-4, 3e-4, 1e-3, 3e-3)
TUNING, CONFIRMING = (0, 1, 2), (101, 102, 103)
RESULTS = Path(__file__).parent / "results" / "embedded.jsonl"
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32}
SMOLORA: dict[str, Any] = {"router": "prototype", "r": 8, "num_experts_visual": 4, "num_experts_instruction": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora", "options": LORA},
    "moelora": {"adapter": "moelora", "options": {"r": 4, "num_experts": 4}},
    "replay": {"adapter": "lora", "options": LORA, "strategy": "replay", "strategy_options": {"memory": 64}},
    "joint": {"adapter": "lora", "options": LORA, "order": "joint"},
    "smolora": {"adapter": "smolora", "options": SMOLORA},
    "smolora-straight-through": {"adapter": "smolora", "options": SMOLORA | {"router": "straight_through"}},
    "smolora-frozen": {"adapter": "smolora", "options": SMOLORA | {"router": "frozen"}},
    "smolora-instruction-only": {"adapter": "smolora", "options": SMOLORA | {"banks": "instruction"}},
    "smolora-visual-only": {"adapter": "smolora", "options": SMOLORA | {"banks": "visual"}},
    "smolora-4+4": {"adapter": "smolora", "options": SMOLORA | {"num_experts_instruction": 4}},
    "smolora-24+16": {"adapter": "smolora", "options": SMOLORA | {"num_experts_visual": 24}},
}
ABLATIONS = ("smolora-instruction-only", "smolora-visual-only", "smolora-4+4", "smolora-24+16")
"""Variants of `smolora` that are compared at its own chosen rate."""


class Bench:
    """The base, the test sets and one seed's batches, kept between runs of one process."""

    def __init__(self) -> None:
        import torch

        from streamcvit.adapters import InstructionEncoder
        from streamcvit.data import embedded
        from streamcvit.evaluation import Evaluator
        from streamcvit.models.base import load_base

        torch.set_num_threads(1)
        self.base = load_base("embedded", device="cpu")
        self.encoder = InstructionEncoder.load("tokens", self.base.model, self.base.tokenizer)
        self.test = {task: embedded.test_samples(task, 100) for task in embedded.TASKS}
        self.evaluator = Evaluator(
            self.base, embedded.TASKS, self.test, batch_size=100, instruction_encoder=self.encoder
        )
        self.seed = -1

    def batches(self, seed: int, order: str) -> list[Any]:
        """All batches of a seed's stream; prepared once a seed."""
        from streamcvit.data import embedded
        from streamcvit.models.batch import Batch

        if seed != self.seed:
            self.seed = seed
            self.plan = embedded.chunk_plan(seed=seed)
            self.stream = list(embedded.stream(self.plan, seed))
        rows = self.stream
        if order == "joint":
            shuffled = np.random.default_rng([seed, 1]).permutation(len(rows))
            rows = [(0, rows[i][1]) for i in shuffled]
        made = []
        start = 0
        while start < len(rows):
            stop = start + 1
            while stop < min(start + 8, len(rows)) and rows[stop][0] == rows[start][0]:
                stop += 1
            samples = tuple(sample for _, sample in rows[start:stop])
            inputs = self.base.collator.train(samples)
            made.append(Batch(start, stop, rows[start][0], tuple(range(start, stop)), samples, inputs))
            start = stop
        return made

    def score(self, model: Any, tasks: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Per task: points [n] and following [n]."""
        from streamcvit.data import embedded
        from streamcvit.evaluation import FOLLOW_RULES, SCORERS

        found = {}
        for task in tasks:
            texts, spec = self.evaluator.evaluate(model, task).texts, embedded.TASKS[task]
            samples = self.test[task]
            found[task] = (
                SCORERS[spec.scorer](texts, samples),
                FOLLOW_RULES[spec.follow](texts, samples).astype(float),
            )
        return found

    def run(self, name: str, lr: float, seed: int, boundaries: bool, options: dict[str, Any]) -> dict[str, Any]:
        """One method on one stream."""
        from streamcvit.adapters.build import attach
        from streamcvit.cluster.workers import routes
        from streamcvit.data import embedded
        from streamcvit.learning import STRATEGIES, OnlineLearner
        from streamcvit.models.base import target_modules
        from streamcvit.models.vision import vision_dim

        variant = VARIANTS[name]
        began = time.perf_counter()
        batches = self.batches(seed, variant.get("order", "stream"))
        model = attach(
            self.base.model,
            variant["adapter"],
            target_modules(self.base.model),
            seed=seed,
            options=variant["options"] | options,
            sizes={"instruction_dim": self.encoder.dim, "visual_dim": vision_dim(self.base.model)},
        )
        strategy = STRATEGIES[variant.get("strategy", "sequential")](seed, **variant.get("strategy_options", {}))
        learner = OnlineLearner(
            self.base, model, strategy, encoder=self.encoder if routes(model) else None, lr=lr, seed=seed
        )
        joint = variant.get("order") == "joint"
        counts = self.plan.sum(0, keepdims=True) if joint else self.plan
        tasks = list(embedded.TASKS)
        points: list[dict[str, Any]] = []
        seconds = 0.0
        for i, batch in enumerate(batches):
            tick = time.perf_counter()
            learner.learn(batch)
            seconds += time.perf_counter() - tick
            ends = i + 1 == len(batches) or batches[i + 1].chunk != batch.chunk
            if ends and (boundaries or i + 1 == len(batches)):
                seen = [t for t, n in zip(tasks, counts[: batch.chunk + 1].sum(0), strict=True) if n]
                model.eval()
                points.append(self.score(model, seen))
                model.train()
            elif ends:
                points.append({})
        result = {
            "variant": name,
            "options": options,
            "lr": lr,
            "seed": seed,
            "boundaries": boundaries,
            "samples": len(self.stream),
            "step_ms": 1000 * seconds / len(batches),
            "seconds": time.perf_counter() - began,
            "date": datetime.date.today().isoformat(),
            "final": {task: float(found[0].mean()) for task, found in points[-1].items()},
            "trainable": sum(p.numel() for p in learner.parameters),
        }
        result["ap"] = float(np.mean(list(result["final"].values())))
        if boundaries:
            result["summary"] = self.summary(points, counts, tasks)
        result["purity"] = self.purity(model, batches)
        model.unload()
        return result

    def summary(self, points: list[dict[str, Any]], counts: np.ndarray, tasks: list[str]) -> dict[str, Any]:
        from streamcvit.evaluation.matrix import summarise

        empty = np.full(100, np.nan)
        scores = {t: np.stack([row[t][0] if t in row else empty for row in points]) for t in tasks}
        follows = {t: np.stack([row[t][1] if t in row else empty for row in points]) for t in tasks}
        found = summarise(scores, follows, counts, in_average=tasks, seed=0).to_json()
        return {key: found[key] for key in ("metrics", "matrix", "tasks", "forgetting")}

    def purity(self, model: Any, batches: list[Any]) -> dict[str, float]:
        """Share of samples whose cluster's commonest task is their own: 1 means that routing has inferred the task."""
        import torch

        from streamcvit.adapters import RoutingInputs, cluster_assignments
        from streamcvit.cluster.workers import routes
        from streamcvit.models.vision import encode_images

        if not routes(model):
            return {}
        table: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
        total = 0
        for batch in batches[:: max(1, len(batches) // 100)]:
            with torch.no_grad():
                visual = encode_images(self.base.model, batch.inputs).pooled
            routing = RoutingInputs(instruction=self.encoder.encode(list(batch.inputs.instructions)), visual=visual)
            for bank, clusters in cluster_assignments(model, routing).items():
                for cluster, sample in zip(clusters.tolist(), batch.samples, strict=True):
                    table[bank][cluster][sample.task] += 1
            total += len(batch.samples)
        return {
            bank: sum(max(tasks.values()) for tasks in clusters.values()) / total for bank, clusters in table.items()
        } | {f"{bank}_clusters": len(clusters) for bank, clusters in table.items()}


_bench: Bench | None = None


def work(job: tuple[str, float, int, bool, dict[str, Any]]) -> dict[str, Any]:
    """One run, in a worker process that keeps its base."""
    global _bench
    _bench = _bench or Bench()
    return _bench.run(*job)


def key(row: dict[str, Any]) -> tuple:
    return (row["variant"], row["lr"], row["seed"], row["boundaries"], json.dumps(row["options"], sort_keys=True))


def load() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def execute(jobs: list[tuple[str, float, int, bool, dict[str, Any]]], processes: int) -> None:
    """Run what has no line yet, and append a line for each as it ends."""
    done = {key(row) for row in load()}
    todo = [j for j in jobs if (j[0], j[1], j[2], j[3], json.dumps(j[4], sort_keys=True)) not in done]
    todo.sort(key=lambda job: job[2])  # a process prepares a seed's stream once
    RESULTS.parent.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool, RESULTS.open("a") as file:
        for number, row in enumerate(pool.imap_unordered(work, todo), 1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"[{number}/{len(todo)}] {row['variant']} lr {row['lr']:g} seed {row['seed']}: "
                  f"AP {row['ap']:.1f} ({row['seconds']:.0f} s)", flush=True)  # fmt: skip


def best_rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Variant -> the grid's rate with the best mean final AP on the tuning seeds."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["seed"] in TUNING and not row["options"]:
            found[row["variant"]][row["lr"]].append(row["ap"])
    return {name: max(rates, key=lambda lr: float(np.mean(rates[lr]))) for name, rates in found.items()}


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown of everything in the results."""
    from streamcvit.cluster.folder import machine

    yield "# Results on the embedded stream\n"
    yield "Printed by `python benchmarks/embedded.py table` from benchmarks/results/embedded.jsonl.\n"
    yield f"Machine: {machine()}, one thread a run. Dates: {', '.join(sorted({row['date'] for row in rows}))}.\n"
    yield "## Learning rates: mean final AP on seeds 0-2\n"
    yield (
        "| method | "
        + " | ".join(f"{lr:g}" for lr in GRID)
        + " | chosen | trainable | ms a step | purity (visual / instruction) |"
    )
    yield "|---|" + "---|" * (len(GRID) + 4)
    best = best_rates(rows)
    for name in VARIANTS:
        if name not in best:
            continue
        cells = []
        for lr in GRID:
            aps = [
                r["ap"]
                for r in rows
                if r["variant"] == name and r["lr"] == lr and r["seed"] in TUNING and not r["options"]
            ]
            cells.append(f"{np.mean(aps):.1f}" if aps else "")
        chosen = [r for r in rows if r["variant"] == name and r["lr"] == best[name] and r["seed"] in TUNING]
        purity = [r["purity"] for r in chosen if r["purity"]]
        text = " / ".join(
            f"{np.mean([p[b] for p in purity]):.2f}" if purity and b in purity[0] else "-"
            for b in ("visual", "instruction")
        )
        yield (
            f"| {name} | {' | '.join(cells)} | {best[name]:g} | {chosen[0]['trainable']} "
            f"| {np.mean([r['step_ms'] for r in chosen]):.1f} | {text} |"
        )
    confirmed = {name: [r for r in rows if r["variant"] == name and r["boundaries"]] for name in VARIANTS}
    confirmed = {name: found for name, found in confirmed.items() if found}
    if not confirmed:
        return
    yield "\n## Confirmed on seeds 101-103: mean (95 % interval over the three seeds, t distribution)\n"
    names = ("ap", "map", "bwt_first", "bwt_last", "maf_best", "mif")
    yield "| method | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for name, found in confirmed.items():
        cells = []
        for metric in names:
            values = [(r["summary"]["metrics"].get(metric) or {}).get("value") for r in found]
            cells.append(interval([v for v in values if v is not None]))
        yield f"| {name} | {' | '.join(cells)} |"
    if {"smolora", "lora", "joint"} <= confirmed.keys():
        by_seed = {n: {r["seed"]: r["ap"] for r in confirmed[n]} for n in ("smolora", "lora", "joint")}
        gaps = [
            (by_seed["smolora"][s] - by_seed["lora"][s]) / (by_seed["joint"][s] - by_seed["lora"][s])
            for s in sorted(by_seed["smolora"])
            if all(s in found for found in by_seed.values())
        ]
        lora, ours, joint = (float(np.mean(list(by_seed[n].values()))) for n in ("lora", "smolora", "joint"))
        yield (
            "\nShare of the gap between sequential LoRA and joint training that SMoLoRA closes, "
            f"(AP_smolora - AP_lora) / (AP_joint - AP_lora): {(ours - lora) / (joint - lora):.2f} of the mean APs; "
            f"seed by seed {interval(gaps, 2)} ({', '.join(f'{gap:.2f}' for gap in gaps)})."
        )


def interval(values: list[float], digits: int = 1) -> str:
    """Mean and half-width of the 95 % interval over seeds (Student's t)."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {half:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "confirm", "table"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--only", nargs="*", default=None, help="variants")
    arguments = parser.parse_args()
    names = arguments.only or list(VARIANTS)
    if arguments.what == "tune":
        tuned = [name for name in names if name not in ABLATIONS]
        execute([(name, lr, seed, False, {}) for seed in TUNING for name in tuned for lr in GRID], arguments.jobs)
        rate = best_rates(load()).get("smolora")
        ablated = [name for name in names if name in ABLATIONS and rate is not None]
        execute([(name, rate, seed, False, {}) for seed in TUNING for name in ablated], arguments.jobs)
    if arguments.what == "confirm":
        best = best_rates(load())
        execute([(name, best[name], seed, True, {}) for seed in CONFIRMING for name in names], arguments.jobs)
    print("\n".join(tables(load())))


if __name__ == "__main__":
    main()
