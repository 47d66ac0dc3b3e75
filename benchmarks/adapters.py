"""What an adapter costs beside stock PEFT LoRA of the same active rank.

    python benchmarks/adapters.py [--shape llama-7b-quarter] [--rounds 30] [--seconds 300] [--markdown] [--json FILE]
    python benchmarks/adapters.py --shape llama-7b-layer --device cuda --dtype bfloat16 [--step] [--compile]

Times forward and backward (with --step a whole training step: forward, backward, clipping, the learner's AdamW, and
what the adapter does after it) and a decode step (one token a sample, no gradient). Every round times every adapter, in
an order drawn anew, so that drift of the machine falls on all. A ratio is the median over rounds of an adapter's time
over that round's LoRA time, in brackets its first and third quartile. "saved" is what autograd keeps for backward,
"ops" the tensor operations launched by forward and backward. On a CPU, time is that of the processor, so that waiting
for other programs does not count, and freed memory is kept, so that page faults do not.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from streamcvit.adapters import (
    MoELoraConfig,
    RoutingInputs,
    SMoLoraConfig,
    StrLoraConfig,
    after_step,
    auxiliary_loss,
    decide_routes,
    expert_parameters,
    routing_kwargs,
    tuner_of,
)
from streamcvit.learning.optim import ExpertAdamW


@dataclass(frozen=True)
class Shape:
    """A model and a batch: Llama decoder layers, or (layers=0) one square linear of `hidden`."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    batch: int
    length: int
    r: int


SHAPES = {
    "embedded": Shape(hidden=96, intermediate=256, layers=3, heads=4, batch=8, length=50, r=4),
    "linear-1024": Shape(hidden=1024, intermediate=0, layers=0, heads=0, batch=8, length=128, r=8),
    "llama-7b-quarter": Shape(hidden=1024, intermediate=2752, layers=1, heads=8, batch=4, length=256, r=8),
    "llama-7b-layer": Shape(hidden=4096, intermediate=11008, layers=1, heads=32, batch=4, length=512, r=16),
}
DIM = 64


def adapters(shape: Shape) -> dict[str, Any]:
    """Adapters with the same active rank 2 r per token, each under the name it is printed by."""
    r = shape.r
    where: dict[str, Any] = {"target_modules": r".*_proj", "init_weights": False}
    # The learned fusion, the dearer of the two.
    smolora: dict[str, Any] = {"r": r, "instruction_dim": DIM, "visual_dim": DIM, "visual_warmup": 0, **where}
    smolora["fusion"] = "learned"
    strlora: dict[str, Any] = {"r": r, "num_experts": 8, "instruction_dim": DIM, "attention_dim": 64, **where}
    return {
        "lora": LoraConfig(r=2 * r, lora_alpha=4 * r, target_modules=where["target_modules"]),
        "smolora prototype": SMoLoraConfig(router="prototype", **smolora),
        "smolora prototype 4+16": SMoLoraConfig(router="prototype", num_experts_instruction=16, **smolora),
        "smolora frozen": SMoLoraConfig(router="frozen", **smolora),
        "smolora straight-through": SMoLoraConfig(router="straight_through", **smolora),
        "strlora": StrLoraConfig(distill_lambda=0, **strlora),
        "strlora distilled": StrLoraConfig(**strlora),
        "moelora": MoELoraConfig(r=max(r // 2, 1), num_experts=4, **where),
        "moelora top 2 of 4": MoELoraConfig(r=r, num_experts=4, top_k=2, **where),
    }


class Linear(nn.Module):
    """One linear layer called like a language model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.only_proj = nn.Linear(width, width, bias=False)

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """[B, S, H] to [B, S, H]."""
        return self.only_proj(inputs_embeds)


def base(shape: Shape, device: str, dtype: torch.dtype) -> Any:
    """The frozen model."""
    torch.manual_seed(0)
    with torch.device(device):
        if not shape.layers:
            return Linear(shape.hidden).to(dtype)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
        )
        return LlamaForCausalLM(config).model.to(dtype=dtype)


class Ops(TorchDispatchMode):
    """Counts tensor operations, without those that only make another view."""

    VIEWS = (
        "view",
        "transpose",
        "expand",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "detach",
        "alias",
        "t.",
        "permute",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).removeprefix("aten.")
        self.count += not name.startswith((*self.VIEWS, "_unsafe_view", "as_strided"))
        return function(*args, **(kwargs or {}))


class Subject:
    """One adapted model with its batch; `frozen` is the base model, whose weights all subjects share."""

    def __init__(self, config: Any, shape: Shape, frozen: Any, seed: int) -> None:
        torch.manual_seed(seed)
        weights = {id(tensor): tensor for tensor in frozen.parameters()}
        self.model: Any = get_peft_model(copy.deepcopy(frozen, weights), config).train()
        weight = next(frozen.parameters())
        generator = torch.Generator().manual_seed(seed)
        size = (shape.batch, shape.length, shape.hidden)
        self.x, self.grad = (torch.randn(size, generator=generator).to(weight) for _ in range(2))
        self.x.requires_grad_()
        routing = RoutingInputs(
            instruction=torch.randn(shape.batch, DIM, generator=generator),
            visual=torch.randn(shape.batch, DIM, generator=generator),
            prompt_mask=torch.ones(shape.batch, shape.length, dtype=torch.bool),
        )
        self.routing = routing.to(weight.device)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = ExpertAdamW(self.trained, expert_parameters(self.model), lr=1e-6)
        self.model(inputs_embeds=self.x, **routing_kwargs(self.model, self.routing))

    def output(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The model's last hidden state."""
        out = self.model(inputs_embeds=x, **kwargs)
        return out if isinstance(out, torch.Tensor) else out.last_hidden_state

    def train(self) -> None:
        """Forward and backward."""
        out = self.output(self.x, **routing_kwargs(self.model, self.routing))
        loss = auxiliary_loss(self.model)
        if loss is None:
            out.backward(self.grad)
        else:
            torch.autograd.backward((out, loss), (self.grad, torch.ones_like(loss)))

    def step(self) -> None:
        """A whole training step."""
        self.train()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        after_step(self.model)

    def decoder(self) -> Callable[[], None]:
        """A decode step under routes decided before, as within generate (without a cache of keys)."""
        tuner = tuner_of(self.model)
        token = self.x[:, :1].detach()
        if tuner is None or not tuner.needs_routing:
            return lambda: self._decode(token)
        with torch.no_grad(), tuner.routing.using(decide_routes(self.model, self.routing)) as call:
            self.model(inputs_embeds=self.x)

        def step() -> None:
            with tuner.routing._restored(call):
                self._decode(token)

        return step

    @torch.no_grad()
    def _decode(self, token: torch.Tensor) -> None:
        self.model(inputs_embeds=token)

    def saved_bytes(self) -> int:
        """Bytes that autograd keeps for backward, each storage once, weights aside."""
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = self.output(self.x, **routing_kwargs(self.model, self.routing))
        del out
        return sum(kept.values())

    def ops(self) -> int:
        """Operations launched by one forward and backward."""
        with Ops() as counter:
            self.train()
        return counter.count


def timed(function: Callable[[], None], repeats: int, device: str) -> float:
    """Seconds a call: of the processor on a CPU, where other programs may run, of the clock on an accelerator."""
    clock = time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
        clock = time.perf_counter
    start = clock()
    for _ in range(repeats):
        function()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def measure(options: argparse.Namespace, shape: Shape) -> list[dict[str, Any]]:
    """One row an adapter."""
    frozen = base(shape, options.device, getattr(torch, options.dtype)).requires_grad_(False)
    configs = {name: c for name, c in adapters(shape).items() if not options.only or name in ("lora", *options.only)}
    subjects = {name: Subject(config, shape, frozen, options.seed) for name, config in configs.items()}
    rows = {
        name: {
            "adapter": name,
            "saved_mib": subject.saved_bytes() / 2**20,
            "ops": subject.ops(),
            "parameters": sum(p.numel() for p in subject.trained),
        }
        for name, subject in subjects.items()
    }
    if options.compile:
        # All models share the code that is compiled, each in modes with and without gradients.
        torch._dynamo.config.recompile_limit = 16 * len(subjects)
        for subject in subjects.values():
            subject.model.get_base_model().compile()
    timers = {name: (s.step if options.step else s.train, s.decoder()) for name, s in subjects.items()}
    for work in timers.values():
        for function in work * 2:
            function()
    repeats = [max(1, int(0.05 / timed(function, 1, options.device))) for function in timers["lora"]]
    times: dict[str, list[list[float]]] = {name: [] for name in timers}
    order, end = list(timers), time.monotonic() + options.seconds
    shuffle = np.random.default_rng(options.seed).shuffle
    for done in range(options.rounds):
        if done >= 3 and time.monotonic() > end:
            break
        shuffle(order)
        for name in order:
            times[name].append([timed(f, n, options.device) for f, n in zip(timers[name], repeats, strict=True)])
    lora = np.array(times["lora"])
    for name, row in rows.items():
        mine = np.array(times[name])
        row["rounds"] = len(mine)
        for column, label in enumerate(("train", "decode")):
            row[f"{label}_ms"] = float(np.median(mine[:, column])) * 1e3
            row[f"{label}_ratio"] = [
                float(q) for q in np.quantile(mine[:, column] / lora[:, column], (0.5, 0.25, 0.75))
            ]
    return list(rows.values())


def machine(device: str) -> str:
    """What the figures were taken on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {names[0].split(':')[1].strip() if names else platform.machine()}, {memory:.0f} GiB"


def keep_freed_memory() -> None:
    """Tell glibc not to hand freed memory back: else whoever is unlucky with the heap pays page faults every step."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, 2**30)


def table(facts: dict[str, Any], markdown: bool) -> str:
    """The rows, as aligned text or as a Markdown table."""
    what = "step" if facts["step"] else "train"
    head = ["adapter", f"{what} ms", f"{what} ratio", "decode ms", "decode ratio", "saved MiB", "saved ratio", "ops"]
    cells = [head]
    lora = facts["rows"][0]
    for row in facts["rows"]:
        line = [row["adapter"]]
        for label in ("train", "decode"):
            middle, low, high = row[f"{label}_ratio"]
            line += [f"{row[f'{label}_ms']:.2f}", f"{middle:.2f} [{low:.2f}, {high:.2f}]"]
        cells.append([*line, f"{row['saved_mib']:.2f}", f"{row['saved_mib'] / lora['saved_mib']:.2f}", str(row["ops"])])
    return grid(cells, markdown)


def grid(cells: list[list[str]], markdown: bool) -> str:
    """Rows of cells, the first the head, as aligned text or as a Markdown table."""
    if markdown:
        lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )


def conditions(shape: Shape, device: str) -> dict[str, Any]:
    """What figures of a shape were taken with, where and when."""
    return {
        **asdict(shape),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": machine(device),
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b-quarter")
    parser.add_argument("--batch", type=int, help="samples, other than the shape's")
    parser.add_argument("--length", type=int, help="tokens a sample, other than the shape's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--step", action="store_true", help="time whole training steps")
    parser.add_argument("--compile", action="store_true", help="compile every model, LoRA's too")
    parser.add_argument("--rounds", type=int, default=30, help="at most so many")
    parser.add_argument("--seconds", type=float, default=300, help="no new round after this, but at least three")
    parser.add_argument("--only", nargs="*", help="adapters to time beside lora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    keep_freed_memory()
    given = {name: getattr(options, name) for name in ("batch", "length") if getattr(options, name)}
    shape = replace(SHAPES[options.shape], **given)
    settings = {name: getattr(options, name) for name in ("shape", "device", "dtype", "step", "compile", "seed")}
    found = {**settings, **conditions(shape, options.device), "rows": measure(options, shape)}
    print(
        f"{options.shape}, {shape.batch} x {shape.length} tokens, LoRA rank {2 * shape.r}, {options.dtype}"
        f"{', compiled' * options.compile}: {found['machine']}, torch {found['torch']}, {found['threads']} threads, "
        f"{found['rows'][0]['rounds']} rounds, {found['date']}\n"
    )
    print(table(found, options.markdown))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
