"""A linear layer with experts picked per sample and weighed per token."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn
from torch.nn import functional as F

from streamcvit.adapters.routing import RoutingCall
from streamcvit.adapters.strlora.config import StrLoraConfig
from streamcvit.adapters.tuner import ExpertLayer, per_sample_only

ROUTERS = ("query", "key", "prototypes", "token_router")


class StrLoraLayer(ExpertLayer):
    """Weights, per adapter: A [E, r, I], B [E, r, O], sample router [E, T]; of the token router query [D, I],
    key [D, T] and prototypes [E, D], or one matrix [E, I]; and the running averages of those that train."""

    adapter_layer_names = ("strlora_A", "strlora_B", "strlora_sample_router", *(f"strlora_{name}" for name in ROUTERS))
    other_param_names = ("r", "scaling", "configs", *(f"strlora_average_{name}" for name in ROUTERS))
    configs: dict[str, StrLoraConfig]
    strlora_A: nn.ParameterDict
    strlora_B: nn.ParameterDict
    strlora_sample_router: nn.ParameterDict

    def update_layer(self, adapter_name: str, config: StrLoraConfig) -> None:
        """Add an adapter; its running averages start at its weights."""
        if "configs" not in self.__dict__:
            self.configs = {}
            for name in ROUTERS:
                setattr(self, f"strlora_average_{name}", BufferDict(persistent=True))
        self.configs[adapter_name] = config
        self.declare_frozen(adapter_name)
        super().update_layer(adapter_name, config)

    def declare_frozen(self, adapter_name: str) -> None:
        """Tell PEFT which weights switching adapters must leave frozen."""
        names = tuple(f"strlora_{name}" for name in self.configs[adapter_name].frozen)
        self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, adapter_name: names}

    def new_parameters(self, config: StrLoraConfig) -> dict[str, nn.Parameter]:
        """Experts and the routers that this configuration uses."""
        a, b = self.new_experts(config, config.num_experts)
        experts, size = config.num_experts, config.attention_dim
        shapes = {
            "query": (size, self.in_features),
            "key": (size, config.instruction_dim),
            "prototypes": (experts, size),
            "token_router": (experts, self.in_features),
        }
        weights = {"strlora_A": a, "strlora_B": b}
        weights["strlora_sample_router"] = self.new_router(config, "sample_router", experts, config.instruction_dim)
        for name in config.routers:
            weights[f"strlora_{name}"] = self.new_router(config, name, *shapes[name])
        return weights

    def start_averages(self, adapter_name: str) -> None:
        """Set the running averages to the current weights."""
        for name in self.configs[adapter_name].averaged:
            getattr(self, f"strlora_average_{name}")[adapter_name] = self.weight_of(name, adapter_name).detach().clone()

    def weight_of(self, name: str, adapter_name: str, averaged: bool = False) -> torch.Tensor:
        """A router's weight, or its running average where it has one."""
        if averaged and adapter_name in getattr(self, f"strlora_average_{name}"):
            return getattr(self, f"strlora_average_{name}")[adapter_name]
        return getattr(self, f"strlora_{name}")[adapter_name]

    def mix(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add s sum_e w_e B_e A_e x over the sample's experts; x [B, S, I]."""
        per_sample_only(x, self.key)
        call, scaling = self.routing.current(), self.scaling[name]
        chosen, weights = self.route(name, call, x)
        if call.learning:
            call.weights[name, self.key] = weights.detach()
        batch, length, _ = x.shape
        a, b = self.strlora_A[name].to(x.dtype), self.strlora_B[name].to(x.dtype)
        r = a.shape[1]
        if chosen is not None and length == 1 and not torch.is_grad_enabled():
            # One position does not repay gathering a sample's experts: all are applied, others with weight zero.
            everyone = weights.new_zeros(batch, 1, a.shape[0])
            weights, chosen = everyone.scatter_(-1, chosen.unsqueeze(1), weights), None
        if chosen is None:
            h = F.linear(x, a.flatten(0, 1)).view(batch, length, -1, r)
            mixed = (h * weights.unsqueeze(-1)).view(batch * length, -1)
            return torch.addmm(out.reshape(batch * length, -1), mixed, b.flatten(0, 1), alpha=scaling).view(out.shape)
        a, b = (w.index_select(0, chosen.view(-1)).view(batch, -1, w.shape[2]) for w in (a, b))
        h = torch.bmm(x, a.mT).view(batch, length, -1, r)
        return torch.baddbmm(out, (h * weights.unsqueeze(-1)).view(batch, length, -1), b, alpha=scaling)

    def route(self, name: str, call: RoutingCall, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Experts [B, k] that each sample may use, None for all of them, and the weights over them [B, S or 1, k]."""
        config = self.configs[name]
        if not config.sub_top_k:
            shares = torch.softmax(self._text(call, x) @ self.strlora_sample_router[name].float().T, -1)
            return None, straight_through_top(shares, config.top_k).to(x.dtype).unsqueeze(1)
        chosen, rows = self._for_sample(name, call, x)
        logits = F.linear(x, rows) if rows.dim() == 2 else torch.bmm(x, rows.mT)
        if config.averaged and call.learning:
            call.losses[name, self.key] = self._distillation(name, call, x, chosen, logits)
        return chosen, straight_through_top(torch.softmax(logits, -1), config.sub_top_k)

    def _text(self, call: RoutingCall, x: torch.Tensor) -> torch.Tensor:
        return call.instruction(x.shape[0]).float()

    def _for_sample(self, name: str, call: RoutingCall, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What the instruction decides, the same for all tokens and, in generation, for all decode steps: the experts
        [B, k] a sample may use (None: all), and the token router's rows [B, k, I], or [E, I] where all share them."""
        key = (name, self.key, x.shape[0], x.dtype)
        if not torch.is_grad_enabled() and key in call.forms:
            return call.forms[key]
        config, chosen = self.configs[name], None
        text = self._text(call, x)
        if 0 < config.top_k < config.num_experts:
            with torch.no_grad():
                chosen = (text @ self.strlora_sample_router[name].float().T).topk(config.top_k, -1).indices
            call.routes[name, self.key] = chosen
        rows = self._rows(name, x, text, chosen)
        if not torch.is_grad_enabled():
            call.forms[key] = (chosen, rows)
        return chosen, rows

    def _rows(
        self, name: str, x: torch.Tensor, text: torch.Tensor, chosen: torch.Tensor | None, averaged: bool = False
    ) -> torch.Tensor:
        """Rows whose products with x are the token scores, by the current weights or their running averages."""
        config = self.configs[name]
        weights: dict[str, torch.Tensor] = {n: self.weight_of(n, name, averaged).to(x.dtype) for n in config.routers}
        if not config.attention_dim:
            return weights["token_router"] if chosen is None else weights["token_router"][chosen]
        key = F.linear(F.layer_norm(text, text.shape[-1:]).to(x.dtype), weights["key"])
        unit = F.normalize(weights["prototypes"], dim=-1)
        # The query projection is folded into one row per expert: never a query per token.
        toward = key.unsqueeze(1) * (unit if chosen is None else unit[chosen])
        return torch.matmul(toward, weights["query"]) * config.attention_dim**-0.5

    def _distillation(
        self, name: str, call: RoutingCall, x: torch.Tensor, chosen: torch.Tensor | None, logits: torch.Tensor
    ) -> torch.Tensor:
        """Mean over tokens of KL(average || current) over the sample's experts, times lambda."""
        config, text, detached = self.configs[name], self._text(call, x), x.detach()
        with torch.no_grad():
            teacher_rows = self._rows(name, x, text, chosen, averaged=True)
        if config.attention_dim:
            # As published, the attention router is distilled on a detached input and the linear one is not.
            both = torch.cat((self._rows(name, x, text, chosen), teacher_rows), 1)
            logits, teacher = torch.bmm(detached, both.mT).chunk(2, -1)
        else:
            teacher = F.linear(detached, teacher_rows) if chosen is None else torch.bmm(detached, teacher_rows.mT)
        teacher = torch.log_softmax(teacher.detach().float() / config.distill_tau, -1)
        student = torch.log_softmax(logits.float() / config.distill_tau, -1)
        divergence = (teacher.exp() * (teacher - student)).sum(-1)
        return config.distill_lambda * call.token_mean(divergence)


def straight_through_top(shares: torch.Tensor, keep: int) -> torch.Tensor:
    """The `keep` largest shares, scaled to sum to 1, with the gradient of `shares` itself; 0 keeps all unchanged."""
    if not 0 < keep < shares.shape[-1]:
        return shares
    with torch.no_grad():
        value, place = shares.topk(keep, -1)
        kept = torch.zeros_like(shares).scatter_(-1, place, value / (value.sum(-1, keepdim=True) + 1e-9))
    return kept - shares.detach() + shares


def averages(layer: Any, adapter_name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Running averages of an adapter's routers in a layer, and the weights they follow."""
    names = layer.configs[adapter_name].averaged
    return (
        [layer.weight_of(name, adapter_name, averaged=True) for name in names],
        [layer.weight_of(name, adapter_name).detach() for name in names],
    )
