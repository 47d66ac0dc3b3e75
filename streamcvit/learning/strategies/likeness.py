"""How alike tasks are by their pictures, instructions and answers (He et al.)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

FEATURES = ("image", "instruction", "answer")


class Likeness:
    """Similarities of all tasks met so far.

    s[t, k] is the product over image, instruction and answer of sigmoid((c - m) / d): c is the cosine of the two tasks'
    mean features, m and d are mean and standard deviation of c over all pairs of tasks; a single pair is not
    standardised. s[t, t] is 1. Of two tasks without pictures the other two factors tell; where one alone has pictures,
    s is 0. An embedding is held for each task and feature.

    Attributes:
        tasks: their names, in the order in which they came.
    """

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self._sums: dict[str, dict[str, torch.Tensor]] = {name: {} for name in FEATURES}

    def add(self, task: str, features: Mapping[str, torch.Tensor | None]) -> None:
        """Take a sample's features [D] into its task's means; None: it has none. What is not finite counts as nothing.

        Args:
            task: the sample's.
            features: by name in `FEATURES`, detached or not.
        """
        if task not in self.tasks:
            self.tasks.append(task)
        for name, feature in features.items():
            if feature is not None:
                own = feature.detach().float()
                own = torch.where(own.sum().isfinite(), own, torch.zeros_like(own))
                held = self._sums[name]  # of sums and of means the cosines are the same
                held[task] = held[task] + own if task in held else own

    def matrix(self) -> torch.Tensor:
        """s [K, K] of the K tasks, float32."""
        found = [self._factor(name) for name in FEATURES if self._sums[name]]
        s = torch.stack(found).prod(0)
        return s.fill_diagonal_(1.0)

    def of(self, tasks: Sequence[str]) -> torch.Tensor:
        """Mean over some samples' tasks of their similarity to each task met so far, [K]; 0 for one not met yet."""
        s = self.matrix()
        shares = [sum(task == known for task in tasks) / max(1, len(tasks)) for known in self.tasks]
        return torch.tensor(shares).to(s.device, non_blocking=True) @ s

    def _factor(self, name: str) -> torch.Tensor:
        held = self._sums[name]
        blank = torch.zeros_like(next(iter(held.values())))
        unit = F.normalize(torch.stack([held.get(task, blank) for task in self.tasks]), dim=-1)
        there = torch.tensor([task in held for task in self.tasks])
        both = there[:, None] & there
        cosines, pairs = unit @ unit.T, both.triu(1).nonzero().T  # on the host, which knows how many they are
        if pairs.shape[1] > 1:
            over = cosines[pairs[0].to(unit.device), pairs[1].to(unit.device)]
            cosines = (cosines - over.mean()) / over.std(correction=0).clamp_min(1e-12)
        alike = torch.where(both.to(unit.device), cosines.sigmoid(), 0.0)
        return torch.where((~there[:, None] & ~there).to(unit.device), 1.0, alike)

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The sums by feature, and whose they are."""
        tensors = {f"like.{name}": torch.stack(list(held.values())) for name, held in self._sums.items() if held}
        return tensors, {"tasks": self.tasks, "of": {name: list(held) for name, held in self._sums.items()}}

    def load_state_dict(
        self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any], device: torch.device
    ) -> None:
        """Inverse of `state_dict`; KeyError where something is missing."""
        self.tasks = list(values["tasks"])
        for name in FEATURES:
            own = values["of"][name]
            rows = tensors[f"like.{name}"].to(device, copy=True).unbind() if own else ()
            self._sums[name] = dict(zip(own, rows, strict=True))
