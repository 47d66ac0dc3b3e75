"""What an adapter costs beside stock PEFT LoRA of the same active rank.

    python benchmarks/adapters.py [--shape embedded] [--device cpu] [--rounds 30] [--json FILE]

Times a training step's forward and backward and a decode step (one token a sample, no gradient). Every round times
every adapter, in turn, so that drift of the machine falls on all; the ratio printed is the median over rounds of time
over that round's LoRA time. "saved" is what autograd keeps for backward, "ops" the tensor operations launched.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
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
    decide_routes,
    routing_kwargs,
    tuner_of,
)


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
    "llama-7b-layer": Shape(hidden=4096, intermediate=11008, layers=1, heads=32, batch=4, length=512, r=16),
}
DIM = 64


def adapters(shape: Shape) -> dict[str, Any]:
    """Adapters with the same active rank 2 r per token, each under the name it is printed by."""
    r = shape.r
    where: dict[str, Any] = {"target_modules": r".*_proj", "init_weights": False}
    smolora: dict[str, Any] = {"r": r, "instruction_dim": DIM, "visual_dim": DIM, "visual_warmup": 0, **where}
    strlora: dict[str, Any] = {"r": r, "num_experts": 8, "instruction_dim": DIM, "attention_dim": 64, **where}
    return {
        "lora": LoraConfig(r=2 * r, lora_alpha=4 * r, target_modules=where["target_modules"]),
        "smolora prototype": SMoLoraConfig(router="prototype", **smolora),
        "smolora prototype 4+16": SMoLoraConfig(router="prototype", num_experts_instruction=16, **smolora),
        "smolora frozen": SMoLoraConfig(router="frozen", **smolora),
        "smolora straight-through": SMoLoraConfig(router="straight_through", **smolora),
        "strlora": StrLoraConfig(distill_lambda=0, **strlora),
        "strlora distilled": StrLoraConfig(**strlora),
        "moelora 4 experts": MoELoraConfig(r=max(r // 2, 1), num_experts=4, **where),
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
    """One adapted model with its batch."""

    def __init__(self, config: Any, shape: Shape, device: str, dtype: torch.dtype) -> None:
        self.model: Any = get_peft_model(base(shape, device, dtype), config).train()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(shape.batch, shape.length, shape.hidden, generator=generator).to(device, dtype)
        self.x.requires_grad_()
        self.grad = torch.randn(shape.batch, shape.length, shape.hidden, generator=generator).to(device, dtype)
        prompt = torch.ones(shape.batch, shape.length, dtype=torch.bool)
        routing = RoutingInputs(
            instruction=torch.randn(shape.batch, DIM, generator=generator),
            visual=torch.randn(shape.batch, DIM, generator=generator),
            prompt_mask=prompt,
        )
        self.routing = routing.to(device)
        self.model(inputs_embeds=self.x, **routing_kwargs(self.model, self.routing))

    def output(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The model's last hidden state."""
        out = self.model(inputs_embeds=x, **kwargs)
        return out if isinstance(out, torch.Tensor) else out.last_hidden_state

    def train(self) -> None:
        """Forward and backward."""
        out = self.output(self.x, **routing_kwargs(self.model, self.routing))
        out.backward(self.grad)

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


def measure(shape: Shape, device: str, dtype: torch.dtype, rounds: int, only: list[str] | None) -> list[dict[str, Any]]:
    """One row an adapter."""
    configs = {name: c for name, c in adapters(shape).items() if not only or name == "lora" or name in only}
    subjects = {name: Subject(config, shape, device, dtype) for name, config in configs.items()}
    steps = {name: (subject.train, subject.decoder()) for name, subject in subjects.items()}
    for train, decode in steps.values():
        for _ in range(3):
            train()
            decode()
    once = timed(steps["lora"][0], 2, device)
    repeats = max(1, int(0.02 / max(once, 1e-6)))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (train, decode) in steps.items():
            times[name].append((timed(train, repeats, device), timed(decode, repeats * 4, device)))
    lora = np.array(times["lora"])
    rows = []
    for name, subject in subjects.items():
        mine = np.array(times[name])
        ratio = np.median(mine / lora, 0)
        seconds = np.median(mine, 0)
        rows.append(
            {
                "adapter": name,
                "train_ms": seconds[0] * 1e3,
                "train_ratio": ratio[0],
                "decode_ms": seconds[1] * 1e3,
                "decode_ratio": ratio[1],
                "saved_mib": subject.saved_bytes() / 2**20,
                "ops": subject.ops(),
                "parameters": sum(p.numel() for p in subject.model.parameters() if p.requires_grad),
            }
        )
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="embedded")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="*", help="adapters to time beside lora")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(SHAPES[options.shape], options.device, getattr(torch, options.dtype), options.rounds, options.only)
    threads = torch.get_num_threads()
    print(f"{options.shape}, {options.device}, {options.dtype}, torch {torch.__version__}, {threads} threads")
    print(f"{'adapter':26} {'train ms':>9} {'ratio':>6} {'decode ms':>10} {'ratio':>6} {'saved MiB':>10} {'ops':>6}")
    for row in rows:
        print(
            f"{row['adapter']:26} {row['train_ms']:9.3f} {row['train_ratio']:6.2f} {row['decode_ms']:10.3f} "
            f"{row['decode_ratio']:6.2f} {row['saved_mib']:10.2f} {row['ops']:6d}"
        )
    if options.json:
        facts = {"shape": options.shape, "device": options.device, "dtype": options.dtype, "rounds": options.rounds}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
