"""Methods on the embedded stream: choose every learning rate by one grid, then confirm on other seeds.

    python benchmarks/embedded.py tune [--only NAME ...] [--rates R ...]   # seeds 0-2, final AP only
    python benchmarks/embedded.py confirm [--only NAME ...]   # seeds 101-103 at the chosen rates, every boundary scored
    python benchmarks/embedded.py table     # print the tables again from the committed results

Every run is one line of benchmarks/results/embedded.jsonl; a run that is there is not run again. A seed draws its own
stream (plan, pictures, order) and the start of the adapter. The learning rate of every method, baselines included, is
the one with the best mean final AP on the tuning seeds; the ablations of SMoLoRA run at its rate. Adapters are compared
at one active rank: LoRA 16, MoELoRA 4 x 4, SMoLoRA 8 + 8. Variants whose name ends in "/own" run on the stream in which
the four tasks under one instruction each have an answer style of their own (`stream.conventions: own`).
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

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)
TUNING, CONFIRMING = (0, 1, 2), (101, 102, 103)
RESULTS = Path(__file__).parent / "results" / "embedded.jsonl"
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32}
SMOLORA: dict[str, Any] = {"router": "prototype", "r": 8, "num_experts_visual": 24, "num_experts_instruction": 16}
PUBLISHED = {"router": "frozen", "fusion": "learned"}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora", "options": LORA},
    "moelora": {"adapter": "moelora", "options": {"r": 4, "num_experts": 4}},
    "replay": {"adapter": "lora", "options": LORA, "strategy": "replay", "strategy_options": {"memory": 64}},
    "joint": {"adapter": "lora", "options": LORA, "order": "joint"},
    "smolora": {"adapter": "smolora", "options": SMOLORA},
    "smolora-instruction-only": {"adapter": "smolora", "options": SMOLORA | {"banks": "instruction"}},
    "smolora-visual-only": {"adapter": "smolora", "options": SMOLORA | {"banks": "visual"}},
    "smolora-learned-fusion": {"adapter": "smolora", "options": SMOLORA | {"fusion": "learned"}},
    "smolora-stream-scope": {"adapter": "smolora", "options": SMOLORA | {"visual_scope": "stream"}},
    "smolora-stock-adamw": {"adapter": "smolora", "options": SMOLORA, "optimizer": "stock"},
    "smolora-straight-through": {"adapter": "smolora", "options": SMOLORA | {"router": "straight_through"}},
    "smolora-published": {"adapter": "smolora", "options": SMOLORA | PUBLISHED},
}
VARIANTS |= {
    f"{name}/own": VARIANTS[name] | {"conventions": "own"}
    for name in ("lora", "joint", "smolora", "smolora-instruction-only", "smolora-visual-only")
}
TUNED = ("smolora-instruction-only", "smolora-instruction-only/own", "smolora-stock-adamw")
ABLATIONS = tuple(name for name in VARIANTS if name.startswith("smolora-") and name not in TUNED)
"""Variants of `smolora` that are compared at its own chosen rate; those in `TUNED` are tuned like methods."""


class Bench:
    """The base, the test sets and one seed's batches, kept between runs of one process."""

    def __init__(self) -> None:
        import torch

        from streamcvit.adapters import InstructionEncoder
        from streamcvit.embedded import tasks as embedded
        from streamcvit.evaluation import Evaluator
        from streamcvit.models.base import load_base

        torch.set_num_threads(1)
        self.base = load_base("embedded", device="cpu")
        self.encoder = InstructionEncoder.load("tokens", self.base.model, self.base.tokenizer)
        self.tests = {
            conventions: {task: embedded.test_samples(task, 100, conventions=conventions) for task in embedded.TASKS}
            for conventions in ("shared", "own")
        }
        # The conventions change what an answer must look like, not what is asked.
        self.evaluator = Evaluator(
            self.base, embedded.TASKS, self.tests["shared"], batch_size=100, instruction_encoder=self.encoder
        )
        self.held: tuple[int, str] | None = None

    def batches(self, seed: int, order: str, conventions: Any) -> list[Any]:
        """All batches of a seed's stream; prepared once a seed."""
        from streamcvit.embedded import tasks as embedded
        from streamcvit.models.batch import Batch

        if self.held != (seed, conventions):
            self.held = (seed, conventions)
            self.plan = embedded.chunk_plan(seed=seed)
            self.stream = list(embedded.stream(self.plan, seed, conventions=conventions))
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

    def score(self, model: Any, tasks: list[str], conventions: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Per task: points [n] and following [n]."""
        from streamcvit.embedded import tasks as embedded
        from streamcvit.evaluation import FOLLOW_RULES, SCORERS

        found = {}
        for task in tasks:
            texts, spec = self.evaluator.evaluate(model, task).texts, embedded.TASKS[task]
            samples = self.tests[conventions][task]
            found[task] = (
                SCORERS[spec.scorer](texts, samples),
                FOLLOW_RULES[spec.follow](texts, samples).astype(float),
            )
        return found

    def run(self, name: str, lr: float, seed: int, boundaries: bool, options: dict[str, Any]) -> dict[str, Any]:
        """One method on one stream."""
        import torch

        from streamcvit.adapters.build import attach
        from streamcvit.adapters.targets import target_modules
        from streamcvit.embedded import tasks as embedded
        from streamcvit.learning import STRATEGIES, OnlineLearner
        from streamcvit.models.vision import vision_dim
        from streamcvit.run.folder import machine
        from streamcvit.run.loading import routes

        variant = VARIANTS[name]
        began = time.perf_counter()
        conventions = variant.get("conventions", "shared")
        batches = self.batches(seed, variant.get("order", "stream"), conventions)
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
        if variant.get("optimizer") == "stock":
            learner.optimizer = torch.optim.AdamW(learner.parameters, lr=lr, weight_decay=0.0, fused=True)
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
                points.append(self.score(model, seen, conventions))
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
            "machine": machine(),
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
        from streamcvit.models.vision import encode_images
        from streamcvit.run.loading import routes

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
    yield "# Results on the embedded stream\n"
    yield "Printed by `python benchmarks/embedded.py table` from benchmarks/results/embedded.jsonl.\n"
    seen = sorted({(row["date"], row["machine"]) for row in rows})
    where = "; ".join(f"{date} on {machine}" for date, machine in seen)
    yield f"One thread a run; {where}. Empty cells were not run.\n"
    yield "## Learning rates: mean final AP on seeds 0-2\n"
    yield (
        "| method | " + " | ".join(f"{lr:g}" for lr in GRID) + " | chosen | trainable | purity (visual / instruction) |"
    )
    yield "|---|" + "---|" * (len(GRID) + 3)
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
        yield (f"| {name} | {' | '.join(cells)} | {best[name]:g} | {chosen[0]['trainable']} | {text} |")
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
        yield "\n" + gap_closed(confirmed)
    yield from banks_compared(rows, confirmed)


def gap_closed(confirmed: dict[str, list[dict[str, Any]]]) -> str:
    """How much of the way from sequential LoRA to joint training SMoLoRA goes."""
    by_seed = {n: {r["seed"]: r["ap"] for r in confirmed[n]} for n in ("smolora", "lora", "joint")}
    gaps = [
        (by_seed["smolora"][s] - by_seed["lora"][s]) / (by_seed["joint"][s] - by_seed["lora"][s])
        for s in sorted(by_seed["smolora"])
        if all(s in found for found in by_seed.values())
    ]
    lora, ours, joint = (float(np.mean(list(by_seed[n].values()))) for n in ("lora", "smolora", "joint"))
    return (
        "Share of the gap between sequential LoRA and joint training that SMoLoRA closes, "
        f"(AP_smolora - AP_lora) / (AP_joint - AP_lora): {(ours - lora) / (joint - lora):.2f} of the mean APs; "
        f"seed by seed {interval(gaps, 2)} ({', '.join(f'{gap:.2f}' for gap in gaps)})."
    )


def banks_compared(rows: list[dict[str, Any]], confirmed: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Both banks against the instruction bank alone, seed by seed, and where the difference lies."""
    from streamcvit.embedded.tasks import SHARED_TASKS

    yield "\n## Both banks against the instruction bank alone\n"
    yield "Final points of both banks less those of the instruction bank alone, seed by seed: mean, 95 % interval (t)."
    yield "Shared tasks are the four under one instruction: count, colour, land and digit.\n"
    yield "| stream | seeds | rate | AP: both | alone | difference | shared tasks: both | alone | difference |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for ending, stream in (("", "one answer format"), ("/own", "answer styles of their own")):
        names = (f"smolora{ending}", f"smolora-instruction-only{ending}")
        runs = [(*names, TUNING, lr, lr, rows) for lr in GRID]
        both, alone = (confirmed.get(name, []) for name in names)
        if both and alone:
            runs.append((*names, CONFIRMING, both[0]["lr"], alone[0]["lr"], both + alone))
        for first, second, seeds, rate, other, found in runs:
            pairs = [
                [
                    r for r in found for s in [seed]
                    if (r["variant"], r["seed"], r["lr"]) == (name, s, lr) and r["boundaries"] == (seeds == CONFIRMING)
                ]
                for seed in seeds
                for name, lr in ((first, rate), (second, other))
            ]  # fmt: skip
            if not all(pairs):
                continue
            ours, theirs = ([cell[0] for cell in pairs[k::2]] for k in range(2))
            label = f"{seeds[0]}-{seeds[-1]}"
            rates = f"{rate:g}" if rate == other else f"{rate:g}, {other:g}"
            cells = []
            for tasks in (list(ours[0]["final"]), SHARED_TASKS):
                first, second = ([np.mean([r["final"][t] for t in tasks]) for r in side] for side in (ours, theirs))
                gaps = [float(a - b) for a, b in zip(first, second, strict=True)]
                cells += [f"{np.mean(first):.1f}", f"{np.mean(second):.1f}", interval(gaps)]
            yield f"| {stream} | {label} | {rates} | {' | '.join(cells)} |"


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
    parser.add_argument("--rates", nargs="*", type=float, default=GRID, help="those of the grid to run")
    arguments = parser.parse_args()
    names = arguments.only or list(VARIANTS)
    if arguments.what == "tune":
        tuned = [name for name in names if name not in ABLATIONS]
        execute(
            [(name, lr, seed, False, {}) for seed in TUNING for name in tuned for lr in arguments.rates], arguments.jobs
        )
        best = best_rates(load())
        ablated = [(name, best.get("smolora/own" if name.endswith("/own") else "smolora")) for name in names]
        jobs = [(name, lr, False) for name, lr in ablated if name in ABLATIONS and lr is not None]
        execute([(name, lr, seed, flag, {}) for seed in TUNING for name, lr, flag in jobs], arguments.jobs)
    if arguments.what == "confirm":
        best = best_rates(load())
        execute([(name, best[name], seed, True, {}) for seed in CONFIRMING for name in names], arguments.jobs)
    print("\n".join(tables(load())))


if __name__ == "__main__":
    main()
