"""A linear layer with one LoRA a task."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from streamcvit.adapters.routing import RoutingCall, expand
from streamcvit.adapters.smolora.function import Route, RoutedExperts, Step
from streamcvit.adapters.tasklora.config import TaskLoraConfig
from streamcvit.adapters.tuner import ExpertLayer


class TaskLoraLayer(ExpertLayer):
    """Weights, per adapter: A [T, r, I] and B [T, r, O] of T tasks; the samples of a batch use those of their own."""

    adapter_layer_names = ("tasklora_A", "tasklora_B")
    tasklora_A: nn.ParameterDict
    tasklora_B: nn.ParameterDict

    def new_parameters(self, config: TaskLoraConfig) -> dict[str, nn.Parameter]:
        """A as stock PEFT's LoRA starts it, the same for every task, and B at zero (or drawn)."""
        # PEFT makes both halves as linear layers, whose own start it draws before it draws A.
        down = nn.Linear(self.in_features, config.r, bias=False).weight
        nn.Linear(config.r, self.out_features, bias=False)
        a = nn.init.kaiming_uniform_(down, a=5**0.5).detach()
        b = torch.zeros(config.total_experts, config.r, self.out_features)
        if not config.init_weights:
            nn.init.normal_(b, std=config.r**-0.5)
        return {"tasklora_A": nn.Parameter(a.repeat(config.total_experts, 1, 1)), "tasklora_B": nn.Parameter(b)}

    def mix(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add s B_t A_t x, t the task of each sample; x [B, S, I]."""
        if x.dim() != 3:
            return self.flattened(name, x, out)
        call = self.routing.current()
        call.tokens = x.shape[:2]
        a, b, scaling = self.tasklora_A[name], self.tasklora_B[name], self.scaling[name]
        seen = self.dropped(name, x)
        if x.shape[1] == 1 and not torch.is_grad_enabled():
            form = (name, self.key, x.shape[0], x.dtype)
            if form not in call.forms:
                call.forms[form] = Step.of(self.route(name, call, x), None, a, b, scaling, x.dtype)
            return call.forms[form].add(seen, out)
        route = self.route(name, call, x)
        return RoutedExperts.apply(seen, out, a, b, None, None, route.flat, route.score, route.owner, None, scaling)

    def expert_weights(
        self, name: str, call: RoutingCall, x: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One-hot, the LoRA of the sample's task."""
        return {"task": F.one_hot(self.route(name, call, x).flat, len(self.tasklora_A[name]))}

    def route(self, name: str, call: RoutingCall, x: torch.Tensor) -> Route:
        """The task of each sample, in the form that the first layer brings it into for all."""
        key = (name, x.shape[0], x.dtype, torch.is_grad_enabled())
        if key not in call.forms:
            if name not in call.shared:
                assert call.late is not None
                call.shared[name] = call.late(name)
            call.forms[key] = Route.of(expand(call.shared[name], x.shape[0]), len(self.tasklora_A[name]), x.dtype)
        return call.forms[key]
