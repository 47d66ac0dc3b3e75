"""What a whole optimizer step costs, in time and memory, on layers of a 7-8B model's shape, beside stock PEFT LoRA.

    python benchmarks/step.py [--shape llama-7b] [--rounds 5] [--seconds 240] [--markdown] [--json FILE]
    python benchmarks/step.py --device cuda --length 512

Forward, backward, clipping, the learner's AdamW and what the adapter does after it; of the whole batch, in
micro-batches of half of it, with gradient checkpointing, and on a base in bfloat16 (adapter and optimizer in float32;
on CUDA all rows are that). Every round times every row in an order drawn anew. "ratio" is the median over rounds of a
row's time over that round's LoRA under the same setting, with quartiles; "of lora" the ratio to LoRA's whole batch.
"peak MiB" is the most that a step holds at once beside weights and optimizer states: storages that are alive on a CPU,
the allocator's peak on CUDA. On a CPU, time is that of the processor: waiting for other programs does not count.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import adapters as bench

from streamcvit.adapters import auxiliary_loss, checkpointing_kwargs, decide_routes, routing_kwargs
from streamcvit.models.dryrun import Held

SHAPES = {
    "llama-7b": bench.Shape(hidden=4096, intermediate=11008, layers=2, heads=32, batch=4, length=16, r=16),
    "llama-8b": bench.Shape(hidden=4096, intermediate=14336, layers=2, heads=32, batch=4, length=16, r=16),
}
ADAPTERS = ("lora", "moelora", "smolora prototype", "smolora frozen", "strlora distilled")
SETTINGS = ("whole batch", "micro-batches", "checkpointing", "bfloat16")


class Stepper(bench.Subject):
    """An adapted model that takes whole steps under one of `SETTINGS`."""

    def __init__(self, config: Any, shape: bench.Shape, frozen: Any, seed: int, setting: str) -> None:
        super().__init__(config, shape, frozen, seed)
        self.parts = 2 if setting == "micro-batches" else 1
        if setting == "checkpointing":
            self.model.gradient_checkpointing_enable(checkpointing_kwargs(self.model))

    def train(self) -> None:
        """Forward and backward, part by part, under the routes of the whole batch."""
        routing = decide_routes(self.model, self.routing) if self.parts > 1 else self.routing
        for rows in torch.arange(len(self.x)).chunk(self.parts):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            out = self.output(self.x[part], **routing_kwargs(self.model, routing.select(part)))
            loss = auxiliary_loss(self.model)
            if loss is None:
                out.backward(self.grad[part])
            else:
                torch.autograd.backward((out, loss / self.parts), (self.grad[part], torch.ones_like(loss)))

    def peak(self, device: str) -> int:
        """Most bytes that a step holds beside weights and optimizer states."""
        self.step()
        self.x.grad = None
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            return torch.cuda.max_memory_allocated() - before
        with Held() as held:
            self.step()
        return held.most


def measure(options: argparse.Namespace, shape: bench.Shape) -> list[dict[str, Any]]:
    """One row an adapter and setting."""
    rows: list[dict[str, Any]] = []
    timers: list[Callable[[], None]] = []
    settings = [setting for setting in SETTINGS if setting in (options.settings or SETTINGS)]
    if options.device == "cuda":
        settings = [setting for setting in settings if setting != "bfloat16"]
    bases: dict[torch.dtype, Any] = {}
    for setting in settings:
        dtype = torch.bfloat16 if setting == "bfloat16" or options.device == "cuda" else torch.float32
        if dtype not in bases:
            bases[dtype] = bench.base(shape, options.device, dtype).requires_grad_(False)
        configs = bench.adapters(shape)
        for name in ADAPTERS:
            if name != "lora" and options.only and name not in options.only:
                continue
            stepper = Stepper(configs[name], shape, bases[dtype], options.seed, setting)
            peak = stepper.peak(options.device) / 2**20
            rows.append({"setting": setting, "adapter": name, "dtype": str(dtype)[6:], "peak_mib": peak})
            timers.append(stepper.step)
    times: list[list[float]] = [[] for _ in rows]
    shuffle, order = np.random.default_rng(options.seed).shuffle, list(range(len(rows)))
    end = bench.time.monotonic() + options.seconds
    for done in range(options.rounds):
        if done >= 3 and bench.time.monotonic() > end:
            break
        shuffle(order)
        for k in order:
            times[k].append(bench.timed(timers[k], 1, options.device))
    spent = np.array(times)
    lora = {row["setting"]: k for k, row in enumerate(rows) if row["adapter"] == "lora"}
    for row, own in zip(rows, spent, strict=True):
        row |= {"rounds": spent.shape[1], "step_ms": float(np.median(own)) * 1e3}
        for label, other in (("ratio", lora[row["setting"]]), ("of_lora", lora[settings[0]])):
            row[label] = [float(q) for q in np.quantile(own / spent[other], (0.5, 0.25, 0.75))]
        row["peak_ratio"] = row["peak_mib"] / rows[lora[row["setting"]]]["peak_mib"]
    return rows


def table(facts: dict[str, Any], markdown: bool) -> str:
    """The rows, as aligned text or as a Markdown table."""
    cells = [["setting", "adapter", "step ms", "ratio", "of lora", "peak MiB", "peak ratio"]]
    for row in facts["rows"]:
        middle, low, high = row["ratio"]
        cells.append(
            [
                row["setting"],
                row["adapter"],
                f"{row['step_ms']:.0f}",
                f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                f"{row['of_lora'][0]:.2f}",
                f"{row['peak_mib']:.1f}",
                f"{row['peak_ratio']:.2f}",
            ]
        )
    return bench.grid(cells, markdown)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    parser.add_argument("--batch", type=int, help="samples, other than the shape's")
    parser.add_argument("--length", type=int, help="tokens a sample, other than the shape's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="at most so many")
    parser.add_argument("--seconds", type=float, default=240, help="no new round after this, but at least three")
    parser.add_argument("--only", nargs="*", choices=ADAPTERS, help="adapters to time beside lora")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, help="settings to time; all of them by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    bench.keep_freed_memory()
    given = {name: getattr(options, name) for name in ("batch", "length") if getattr(options, name)}
    shape = replace(SHAPES[options.shape], **given)
    facts = {
        "shape": options.shape,
        "device": options.device,
        "seed": options.seed,
        **bench.conditions(shape, options.device),
        "rows": measure(options, shape),
    }
    print(
        f"{options.shape}, {shape.layers} layers, {shape.batch} x {shape.length} tokens, LoRA rank {2 * shape.r}: "
        f"{facts['machine']}, torch {facts['torch']}, {facts['threads']} threads, {facts['rows'][0]['rounds']} rounds, "
        f"{facts['date']}\n"
    )
    print(table(facts, options.markdown))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
