"""A linear layer with experts weighed per token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from streamcvit.adapters.experts import TokenExperts, add_all, largest, project_all
from streamcvit.adapters.moelora.config import MoELoraConfig
from streamcvit.adapters.routing import RoutingCall
from streamcvit.adapters.tuner import ExpertLayer


class MoELoraLayer(ExpertLayer):
    """Weights, per adapter: A [E, r, I], B [E, r, O], router [E, I]."""

    adapter_layer_names = ("moelora_A", "moelora_B", "moelora_router")
    other_param_names = ("r", "scaling", "dropout", "top_k")
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

    def expert_weights(
        self, name: str, call: RoutingCall, x: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Mean weights of the tokens."""
        shares = torch.softmax(x @ self.moelora_router[name].to(x.dtype).T, -1)
        kept = largest(shares.flatten(0, 1), self.top_k[name], renormalise=False).view(shares.shape)
        return {"token": torch.bmm(mask.unsqueeze(1), kept.to(mask.dtype)).squeeze(1)}

    def mix(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add s sum_e w_e B_e A_e x, w = softmax(router x), with all experts in one rank space; x [..., I]."""
        a, b, keep, scaling = self.moelora_A[name], self.moelora_B[name], self.top_k[name], self.scaling[name]
        router = self.moelora_router[name].to(x.dtype)
        seen = self.dropped(name, x)
        if not torch.is_grad_enabled():
            x, base = x.reshape(-1, x.shape[-1]), out.reshape(-1, 1, out.shape[-1])
            weights = largest(torch.softmax(x @ router.T, 1), keep, renormalise=False)
            return add_all(base, project_all(seen.reshape(-1, 1, x.shape[-1]), a), weights, b, scaling).view(out.shape)
        mixed, _, kept = TokenExperts.apply(
            x.reshape(1, -1, x.shape[-1]),
            out.reshape(1, -1, out.shape[-1]),
            a,
            b,
            router.unsqueeze(1),
            None,
            None,
            None,
            keep,
            False,
            True,
            1.0,
            scaling,
            None if seen is x else seen.reshape(1, -1, x.shape[-1]),
        )
        if (call := self.routing.call) is not None and call.learning and out.dim() == 3:
            call.weights[name, self.key] = kept.mT.detach().view(*out.shape[:2], -1)
        return mixed.view(out.shape)
