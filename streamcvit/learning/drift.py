"""How far routes and experts moved since a task was last learned, measured on a fixed set of samples of each task.

SAME (ICML 2026) names the two ways in which a mixture of experts forgets: router drift, by which samples of an old task
are sent to other experts, and expert drift, by which the experts that they are still sent to change. Let w_t [E] be how
much of each expert a sample takes at one adapted module after chunk t (one-hot where the route is one expert), x_s the
module's input after chunk s, in which the sample's task was last learned, averaged over the tokens of the prompt, and
A_t, B_t the experts. Then, per bank:

    router drift  = mean over samples and modules of 1/2 sum_e |w_t,e - w_s,e|
    expert drift  = |o_t - o_s| / |o_s|,  o_t = sum_e w_s,e B_t,e A_t,e x_s, of all samples and modules together

The second holds route and input as they were, so it tells what became of the experts alone. That of a bank is the mean
over the tasks that were learned before the chunk and not in it; 0 where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from streamcvit.adapters import learning_mode
from streamcvit.adapters.routing import RoutingInputs
from streamcvit.adapters.tracing import Trace, expert_outputs, moved, routes_now, trace, traced_modules
from streamcvit.learning.online import OnlineLearner
from streamcvit.models.batch import ModelInputs
from streamcvit.models.vision import text_tensors

FILE = "drift.safetensors"
KINDS = ("router", "expert")
ROUNDING = 1e-6
"""Relative changes up to it are none: products of other shapes round otherwise."""


@dataclass(frozen=True)
class ProbeSet:
    """Samples of one task that nothing is learned from.

    Attributes:
        sample_ids: of the K samples.
        inputs: their processor output, on the host.
    """

    sample_ids: tuple[str, ...]
    inputs: ModelInputs


@dataclass(frozen=True)
class _Reference:
    """A task's probe when the task was last learned: on the host, in float32."""

    trace: Trace
    outputs: dict[str, torch.Tensor]


class DriftMeter:
    """Measures an `OnlineLearner`'s drift at the ends of chunks; learning is the same to the bit without it.

    Args:
        learner: whose adapter.
        probes: by task; tasks that have none are not measured.
    """

    def __init__(self, learner: OnlineLearner, probes: Mapping[str, ProbeSet]) -> None:
        self.learner, self.probes = learner, probes
        self._modules = traced_modules(learner.model)
        self._held: dict[str, _Reference] = {}
        self._banks: list[str] = []
        self._facts: dict[str, RoutingInputs | None] = {}

    @torch.no_grad()
    def measure(self, learned: Collection[str], leaving: Collection[str]) -> dict[str, Any]:
        """Drift at a chunk's end, as JSON values; then tasks that leave have their present as reference.

        Args:
            learned: tasks that the chunk had samples of.
            leaving: those of them that the next chunk has none of; of others no reference is wanted yet.

        Returns:
            `drift`: bank -> `router`, `expert`, and the same by task (`tasks`), of tasks learned before the chunk and
            not in it; `routes_moved`: by seen task, of each sample of its probe the largest router drift of a bank.
        """
        model = self.learner.model
        training = model.training
        away = {task: held for task, held in self._held.items() if task not in learned}
        model.eval()
        try:
            tasks, routes = self._compare(away)
            self._held = dict(away)
            for task in self.probes:
                if task in leaving and (seen := self._trace(task)) is not None:
                    self._held[task] = _Reference(seen.to("cpu"), _to_host(expert_outputs(model, self._modules, seen)))
                    self._banks = list(seen.weights)
        finally:
            if training:
                learning_mode(model)
        drift = {}
        for bank in self._banks:
            own = tasks.get(bank, {})
            drift[bank] = {kind: _mean(each[kind] for each in own.values()) for kind in KINDS} | {"tasks": own}
        fresh = {task: dict.fromkeys(self.probes[task].sample_ids, 0.0) for task in self.probes if task in learned}
        return {"drift": drift, "routes_moved": routes | fresh}

    def _compare(self, away: Mapping[str, _Reference]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """By bank and task, router and expert drift; by task and sample, the largest router drift."""
        device = self.learner.base.device
        tasks: dict[str, Any] = {}
        routes: dict[str, dict[str, float]] = {}
        now = self._outputs(away)
        for task, held in away.items():
            seen, before = self._routes(task, held.trace), held.trace.to(device).weights
            shares = {bank: moved(before[bank], seen[bank].to(device)) for bank in before}
            for bank, share in shares.items():
                expert = _relative(held.outputs[bank].to(device), now[task][bank])
                tasks.setdefault(bank, {})[task] = {"router": float(share.mean()), "expert": expert}
            most = torch.stack(list(shares.values())).amax(0).tolist()
            routes[task] = dict(zip(self.probes[task].sample_ids, most, strict=True))
        return tasks, routes

    def _outputs(self, away: Mapping[str, _Reference]) -> dict[str, dict[str, torch.Tensor]]:
        """By task and bank: what the experts of now make of the references' inputs, of all tasks at once."""
        found: dict[str, dict[str, torch.Tensor]] = {task: {} for task in away}
        alike: dict[Any, list[str]] = {}
        for task, held in away.items():
            alike.setdefault(held.trace.places, []).append(task)
        for names in alike.values():
            traces = [away[task].trace for task in names]
            sizes = [len(each.inputs) for each in traces]
            outputs = expert_outputs(self.learner.model, self._modules, _joined(traces).to(self.learner.base.device))
            for bank, each in outputs.items():
                for task, own in zip(names, each.split(sizes), strict=True):
                    found[task][bank] = own
        return found

    def _routes(self, task: str, held: Trace) -> dict[str, torch.Tensor]:
        weights = routes_now(self.learner.model, self._modules, lambda: self._routing(task), held)
        if weights is not None:
            return weights
        seen = self._trace(task)
        assert seen is not None  # it was found before
        return seen.weights

    def _routing(self, task: str) -> RoutingInputs | None:
        """What routers read of a task's probe; the same at every chunk's end unless something before them learns."""
        if task not in self._facts or self.learner.sees:
            self._facts[task] = self.learner.look(self._inputs(task)).facts
        return self._facts[task]

    def _trace(self, task: str) -> Trace | None:
        inputs = self._inputs(task)
        vision, self._facts[task] = self.learner.look(inputs)
        keep = {"logits_to_keep": 1, "use_cache": False}
        return trace(
            self.learner.model,
            self._modules,
            lambda: self.learner.base.model(**text_tensors(inputs), **vision.given, **keep),
            self._facts[task],
            inputs.prompt_mask | inputs.image_mask,
        )

    def _inputs(self, task: str) -> ModelInputs:
        return self.probes[task].inputs.to(self.learner.base.device)

    # -- with the commits ------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the references into a folder, as `drift.safetensors`."""
        tensors: dict[str, torch.Tensor] = {}
        tasks = []
        for number, (task, held) in enumerate(self._held.items()):
            tasks.append({"task": task, "samples": self.probes[task].sample_ids, "places": held.trace.places})
            tensors[f"{number}.inputs"] = held.trace.inputs
            tensors |= {f"{number}.weights.{bank}": each for bank, each in held.trace.weights.items()}
            tensors |= {f"{number}.outputs.{bank}": each for bank, each in held.outputs.items()}
        if self._banks:
            save_file(tensors, folder / FILE, metadata={"tasks": json.dumps(tasks), "banks": json.dumps(self._banks)})

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote; a task whose probe is another one since begins when it is next learned."""
        self._held, self._banks = {}, []
        if not self.probes or not (folder / FILE).is_file():
            return
        with safe_open(folder / FILE, "pt") as file:
            self._banks = json.loads(file.metadata()["banks"])
            for number, entry in enumerate(json.loads(file.metadata()["tasks"])):
                probe = self.probes.get(entry["task"])
                if probe is None or list(probe.sample_ids) != entry["samples"]:
                    continue
                own = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{number}.")}  # noqa: SIM118
                weights, outputs = (
                    {key.split(".", 2)[2]: each for key, each in own.items() if key.split(".")[1] == kind}
                    for kind in ("weights", "outputs")
                )
                places = tuple((k, first, stop) for k, first, stop in entry["places"])
                held = Trace(own[f"{number}.inputs"], places, dict(sorted(weights.items())))
                self._held[entry["task"]] = _Reference(held, dict(sorted(outputs.items())))


def _to_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}


def _joined(traces: Sequence[Trace]) -> Trace:
    """The samples of several traces of one model."""
    first = traces[0]
    weights = {bank: torch.cat([each.weights[bank] for each in traces]) for bank in first.weights}
    return Trace(torch.cat([each.inputs for each in traces]), first.places, weights)


def _relative(before: torch.Tensor, now: torch.Tensor) -> float:
    """Norm of the change by the norm of what was; 1 where nothing became something, 0 where rounding alone differs."""
    change, size = float((now - before).norm()), float(before.norm())
    if not size:
        return float(change > 0)
    return change / size if change > ROUNDING * size else 0.0


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
