"""Do our layers compute what the authors' layers compute?

    python benchmarks/golden.py DIR

DIR holds `<case>.safetensors` files: inputs, weights, outputs, routes and gradients recorded from the authors' layers.
Each is run through the real PEFT tuner. One line a case: its worst error, as a share of the tensor's largest entry, and
where. Exits with 1 on an error above 1e-4, an unreadable case, or a folder without cases.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors import safe_open
from torch import nn

from streamcvit.adapters import MoELoraConfig, RoutingInputs, SMoLoraConfig, StrLoraConfig
from streamcvit.adapters.experts import largest
from streamcvit.adapters.published import STRLORA_NAMES

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """Result of one case: the worst error, where it is, and what kept the case from running (or "")."""

    case: str
    error: float
    where: str
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether every tensor agrees."""
        return not self.problem and self.error <= TOLERANCE

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "MISS"
        return f"{verdict} {self.case:38} {self.problem or f'{self.error:.1e} at {self.where}'}"


class Case:
    """Tensors and facts of one case, and the comparisons made so far."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.meta: dict[str, Any] = json.loads(file.metadata()["meta"])
        self.errors: dict[str, float] = {}

    def compare(self, where: str, ours: torch.Tensor | None, name: str) -> None:
        """Note the error of `ours` against the recorded tensor, as a share of its largest entry."""
        theirs = self.tensors[name].float()
        if ours is None:
            self.errors[f"{where} is absent"] = float("inf")
        elif ours.shape != theirs.shape:
            self.errors[f"{where} has shape {tuple(ours.shape)}"] = float("inf")
        else:
            gap = float((ours.detach().float() - theirs).abs().max())
            self.errors[where] = gap / max(float(theirs.abs().max()), 1e-8) if gap == gap else float("inf")

    def require(self, where: str, holds: bool) -> None:
        """Note a fact that must hold."""
        self.errors[where] = 0.0 if holds else float("inf")

    def base(self) -> nn.Sequential:
        """A model that is the case's frozen linear layer."""
        weight, bias = self.tensors["W0"], self.tensors.get("bias0")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight.data = weight.clone()
        if bias is not None:
            linear.bias.data = bias.clone()
        return nn.Sequential(linear)

    def adapt(self, config: Any, weights: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        """The PEFT model and its one layer, with these weights."""
        model = get_peft_model(self.base(), config)
        layer = model.base_model.model[0]
        for name, value in weights.items():
            getattr(layer, name)["default"].data = value.clone()
        return model, layer

    def weights(self, prefix: str) -> dict[str, torch.Tensor]:
        """The experts, in our layout."""
        return {f"{prefix}_A": self.tensors["A"], f"{prefix}_B": self.tensors["B"].transpose(1, 2).contiguous()}

    def run(self, model: Any, layer: Any, prefix: str, **kwargs: Any) -> None:
        """Forward and backward, and the comparisons common to all methods."""
        x = self.tensors["x"].clone().requires_grad_()
        out = model(x, **kwargs)
        (out * self.tensors["g"]).sum().backward()
        self.compare("out", out, "out")
        with torch.no_grad():
            self.compare("out without gradients", model(self.tensors["x"], **kwargs), "out")
        self.compare("grad.x", x.grad, "grad.x")
        self.compare("grad.A", getattr(layer, f"{prefix}_A")["default"].grad, "grad.A")
        b = getattr(layer, f"{prefix}_B")["default"].grad
        self.compare("grad.B", None if b is None else b.transpose(1, 2), "grad.B")

    def run_smolora(self) -> None:
        """SMoLoRA with frozen gates that pool every position, as published."""
        t, meta = self.tensors, self.meta
        config = SMoLoraConfig(
            r=t["A"].shape[1],
            lora_alpha=meta["lora_alpha"],
            num_experts_visual=meta["E"] // 2,
            num_experts_instruction=meta["E"] // 2,
            router="frozen",
            fusion="learned",
            pool="all",
            instruction_dim=t["inst_emb"].shape[1],
            target_modules=["0"],
        )
        gates = {"smolora_gate_visual": t["gate_vu"], "smolora_gate_instruction": t["gate_if"]}
        fusion = {"smolora_fc": torch.stack((t["fc_vu"], t["fc_if"]))}
        model, layer = self.adapt(config, self.weights("smolora") | gates | fusion)
        tuner, routing = model.base_model, RoutingInputs(instruction=t["inst_emb"])
        with torch.no_grad(), tuner.routing.using(routing) as call:
            model(t["x"])
        (routes,) = call.routes.values()
        self.require("route_vu", torch.equal(routes[:, 0], t["route_vu"]))
        self.require("route_if", torch.equal(routes[:, 1] - meta["E"] // 2, t["route_if"]))
        self.run(model, layer, "smolora", routing=routing)
        fc = layer.smolora_fc["default"].grad
        self.compare("grad.fc_vu", None if fc is None else fc[0], "grad.fc_vu")
        self.compare("grad.fc_if", None if fc is None else fc[1], "grad.fc_if")
        for name in gates:
            self.require(f"{name} has no gradient", getattr(layer, name)["default"].grad is None)

    def run_moelora(self) -> None:
        """MoELoRA, dense or with the k largest weights."""
        t, meta = self.tensors, self.meta
        config = MoELoraConfig(
            r=t["A"].shape[1],
            lora_alpha=meta["lora_alpha"],
            num_experts=meta["E"],
            top_k=meta["topk"],
            target_modules=["0"],
        )
        model, layer = self.adapt(config, self.weights("moelora") | {"moelora_router": t["w_router"]})
        self.run(model, layer, "moelora")
        self.compare("grad.w_router", layer.moelora_router["default"].grad, "grad.w_router")

    def run_strlora(self) -> None:
        """StrLoRA; its distillation loss apart from the output, as recorded."""
        t, meta = self.tensors, self.meta
        config = StrLoraConfig(
            r=t["A"].shape[1],
            lora_alpha=meta["lora_alpha"],
            num_experts=meta["E"],
            top_k=meta["topk"],
            sub_top_k=meta["subtopk"],
            attention_dim=meta["attn_proj_dim"],
            instruction_dim=meta["text_dim"],
            distill_lambda=meta["distill_lambda"],
            distill_beta=meta["distill_beta"],
            distill_tau=meta["distill_tau"],
            freeze_query_key=meta["freeze_qk"],
            freeze_prototypes=meta["freeze_expo"],
            target_modules=["0"],
        )
        routers = {name: ours for name, ours in STRLORA_NAMES.items() if name in t and name not in "AB"}
        model, layer = self.adapt(config, self.weights("strlora") | {ours: t[name] for name, ours in routers.items()})
        for name, ours in routers.items():
            # The authors' freeze options only change the teacher; here they also hold the weights, so undo that.
            getattr(layer, ours)["default"].requires_grad_(name not in meta["params_without_gradient"])
        routing = RoutingInputs(instruction=t["text"].mean(1))
        for name, ours in routers.items():
            if f"ema0.{name}" in t:
                average = ours.replace("strlora_", "strlora_average_")
                getattr(layer, average)["default"].copy_(t[f"ema0.{name}"])
        with torch.no_grad(), model.base_model.routing.using(routing) as call:
            self.compare("token_weights", self._token_weights(layer, call, config), "token_weights")

        self.run(model, layer, "strlora", routing=routing)
        for name, ours in routers.items():
            grad = getattr(layer, ours)["default"].grad
            if name in meta["params_without_gradient"]:
                self.require(f"{name} has no gradient", grad is None)
            else:
                self.compare(f"grad.{name}", grad, f"grad.{name}")
        if meta["distill_lambda"] > 0:
            self._distill(model, layer, routers, routing)

    def _token_weights(self, layer: Any, call: Any, config: StrLoraConfig) -> torch.Tensor:
        """Weights [B, S, E] of all experts."""
        x, whole = self.tensors["x"], torch.zeros_like(self.tensors["token_weights"])
        if not config.sub_top_k:
            return whole + layer.sample_weights("default", call, x).unsqueeze(1)
        route = layer.route("default", call, x)
        scores = torch.bmm(layer.rows("default", call, x, route).view(len(x), -1, x.shape[2]), x.mT)
        weights = largest(torch.softmax(scores, 1), config.sub_top_k, renormalise=True).mT
        return whole.scatter(-1, route.experts.unsqueeze(1).expand_as(weights), weights)

    def _distill(self, model: Any, layer: Any, routers: dict[str, str], routing: RoutingInputs) -> None:
        t, x = self.tensors, self.tensors["x"].clone().requires_grad_()
        model.zero_grad()
        model(x, routing=routing)
        loss = model.base_model.auxiliary_loss()
        self.compare("distill_loss", loss.reshape(1), "distill_loss")
        loss.backward()
        if "grad_distill.x" in t:
            self.compare("grad_distill.x", x.grad, "grad_distill.x")
        else:
            self.require("distillation leaves x alone", x.grad is None or not x.grad.any())
        for name, ours in routers.items():
            if f"grad_distill.{name}" in t:
                self.compare(f"grad_distill.{name}", getattr(layer, ours)["default"].grad, f"grad_distill.{name}")
        model.base_model.step()
        for name, ours in routers.items():
            if f"ema1.{name}" in t:
                average = getattr(layer, ours.replace("strlora_", "strlora_average_"))["default"]
                self.compare(f"ema1.{name}", average, f"ema1.{name}")


METHODS = {"smolora": Case.run_smolora, "moelora": Case.run_moelora, "strlora": Case.run_strlora}
"""Method in a case's metadata -> how to run it."""


def check(path: Path) -> Outcome:
    """Run one case file."""
    try:
        case = Case(path)
        METHODS[case.meta["method"]](case)
    except Exception as error:  # an unreadable or malformed case is a miss, whatever is wrong with it
        return Outcome(path.stem, float("inf"), "", f"cannot run: {type(error).__name__}: {error}")
    where = max(case.errors, key=case.errors.__getitem__)
    return Outcome(path.stem, case.errors[where], where)


def check_folder(folder: Path) -> list[Outcome]:
    """Run every case in a folder, in name order."""
    return [check(path) for path in sorted(folder.glob("*.safetensors"))]


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    outcomes = check_folder(Path(arguments[0]))
    for outcome in outcomes:
        print(outcome)
    if not outcomes:
        print(f"no cases in {arguments[0]}")
    return 0 if outcomes and all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
