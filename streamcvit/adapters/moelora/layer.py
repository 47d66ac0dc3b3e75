"""A linear layer with experts weighed per token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from streamcvit.adapters.moelora.config import MoELoraConfig
from streamcvit.adapters.tuner import ExpertLayer


class MoELoraLayer(ExpertLayer):
    """Weights, per adapter: A [E, r, I], B [E, r, O], router [E, I]."""

    adapter_layer_names = ("moelora_A", "moelora_B", "moelora_router")
    other_param_names = ("r", "scaling", "top_k")
    top_k: dict[str, int]
    moelora_A: nn.ParameterDict
    moelora_B: nn.ParameterDict
    moelora_router: nn.ParameterDict

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter."""
        self.__dict__.setdefault("top_k", {})[adapter_name] = config.top_k
        super().update_layer(adapter_name, config)

    def new_parameters(self, config: MoELoraConfig) -> dict[str, nn.Parameter]:
        """Experts and the router."""
        a, b = self.new_experts(config, config.num_experts)
        router = self.new_router(config, "router", config.num_experts, self.in_features)
        return {"moelora_A": a, "moelora_B": b, "moelora_router": router}

    def mix(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add s sum_e w_e B_e A_e x, w = softmax(router x), with all experts in one rank space; x [..., I]."""
        a, b = self.moelora_A[name], self.moelora_B[name]
        experts, r, _ = a.shape
        flat = x.reshape(-1, x.shape[-1])
        weights = torch.softmax(F.linear(flat, self.moelora_router[name].to(x.dtype)), -1)
        if self.top_k[name]:
            kept, place = weights.topk(self.top_k[name], -1)
            weights = torch.zeros_like(weights).scatter(-1, place, kept)
        if (call := self.routing.call) is not None and call.learning and x.dim() == 3:
            call.weights[name, self.key] = weights.detach().view(*x.shape[:2], -1)
        h = F.linear(flat, a.to(x.dtype).view(experts * r, -1)).view(-1, experts, r)
        mixed = (h * weights.unsqueeze(-1)).view(-1, experts * r)
        b = b.to(x.dtype).view(experts * r, -1)
        return torch.addmm(out.reshape(-1, out.shape[-1]), mixed, b, alpha=self.scaling[name]).view(out.shape)
