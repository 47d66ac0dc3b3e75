"""A linear layer with experts picked per sample and weighed per token."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn
from torch.nn import functional as F

from streamcvit.adapters.experts import Chosen, Decoding, TokenExperts, largest, project
from streamcvit.adapters.routing import RoutingCall
from streamcvit.adapters.strlora.config import StrLoraConfig
from streamcvit.adapters.strlora.function import AttentionRows, Step, attention_targets
from streamcvit.adapters.tuner import ExpertLayer

ROUTERS = ("query", "key", "prototypes", "token_router")


class StrLoraLayer(ExpertLayer):
    """Weights, per adapter: A [E, r, I], B [E, r, O], sample router [E, T]; of the token router query [D, I],
    key [D, T] and prototypes [E, D], or one matrix [E, I]; and the running averages of those that train."""

    adapter_layer_names = ("strlora_A", "strlora_B", "strlora_sample_router", *(f"strlora_{name}" for name in ROUTERS))
    other_param_names = ("r", "scaling", "dropout", "configs", *(f"strlora_average_{name}" for name in ROUTERS))
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
        if x.dim() != 3:
            return self.flattened(name, x, out)
        call, config, scaling = self.routing.current(), self.configs[name], self.scaling[name]
        call.tokens = x.shape[:2]
        seen = self.dropped(name, x)
        if config.sub_top_k and x.shape[1] == 1 and not torch.is_grad_enabled():
            return self._step(name, call, x).add(x, seen, out, config.sub_top_k)
        a, b = self.strlora_A[name], self.strlora_B[name]
        if not config.sub_top_k:
            h = F.linear(seen, a.to(x.dtype).flatten(0, 1)).unflatten(-1, a.shape[:2])
            weights = self.sample_weights(name, call, x).unsqueeze(1)
            if call.learning:
                call.weights[name, self.key] = weights.detach()
            mixed = (h * weights.unsqueeze(-1)).view(-1, b.shape[0] * b.shape[1])
            flat = torch.addmm(out.reshape(-1, out.shape[-1]), mixed, b.to(x.dtype).flatten(0, 1), alpha=scaling)
            return flat.view(out.shape)
        route = self.route(name, call, x)
        teacher = None
        if config.averaged and call.learning:
            with torch.no_grad():
                teacher = self.rows(name, call, x, route, averaged=True)
        out, divergence, kept = TokenExperts.apply(
            x,
            out,
            a,
            b,
            self.rows(name, call, x, route),
            teacher,
            route.flat,
            route.owner,
            config.sub_top_k,
            True,
            # As published, the attention router is distilled on a detached input and the linear one is not.
            not config.attention_dim,
            config.distill_tau,
            scaling,
            None if seen is x else seen,
        )
        if call.learning:
            call.weights[name, self.key] = kept.mT.detach()
        if divergence is not None:
            call.losses[name, self.key] = config.distill_lambda * call.token_mean(divergence)
        return out

    def expert_weights(
        self, name: str, call: RoutingCall, x: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Of the instruction's experts, each the same unless it weighs them; and mean weights of the tokens."""
        config = self.configs[name]
        if not config.sub_top_k:
            return {"instruction": self.sample_weights(name, call, x)}
        route = self.route(name, call, x)
        scores = project(x, self.rows(name, call, x, route)).view(*route.experts.shape, -1)
        kept = largest(torch.softmax(scores, 1), config.sub_top_k, renormalise=True)
        means = torch.bmm(kept.to(mask.dtype), mask.unsqueeze(-1)).squeeze(-1)
        none = means.new_zeros(len(means), config.num_experts)
        even = torch.full_like(means, 1 / means.shape[1])
        return {bank: none.scatter(1, route.experts, own) for bank, own in (("instruction", even), ("token", means))}

    def sample_weights(self, name: str, call: RoutingCall, x: torch.Tensor) -> torch.Tensor:
        """Weights [B, E] of all experts where the instruction alone decides them."""
        shares = torch.softmax(self._text(call, x) @ self.strlora_sample_router[name].float().T, -1)
        kept = largest(shares.detach(), self.configs[name].top_k, renormalise=True)
        # The value of those kept, the gradient of all.
        return (kept - shares.detach() + shares).to(x.dtype)

    def route(self, name: str, call: RoutingCall, x: torch.Tensor) -> Chosen:
        """The experts that each sample may use, which the instruction alone decides."""
        key = (name, self.key)
        index = None if torch.is_grad_enabled() else call.routes.get(key)
        config = self.configs[name]
        if not 0 < config.top_k < config.num_experts:
            index = torch.arange(config.num_experts, device=x.device).repeat(x.shape[0], 1)
        elif index is None:
            with torch.no_grad():
                shares = self._text(call, x) @ self.strlora_sample_router[name].float().T
                index = call.routes[key] = shares.topk(config.top_k, -1).indices
        return Chosen.of(index, config.num_experts, x.dtype)

    def _text(self, call: RoutingCall, x: torch.Tensor) -> torch.Tensor:
        return call.instruction(x.shape[0]).float()

    def rows(
        self, name: str, call: RoutingCall, x: torch.Tensor, route: Chosen, averaged: bool = False
    ) -> torch.Tensor:
        """Rows [B k, 1, I] whose products with x are the token scores, by the current weights or their averages."""
        if not self.configs[name].attention_dim:
            return route.pick(self.weight_of("token_router", name, averaged).to(x.dtype)).unsqueeze(1)
        text, key, prototypes = self._attention(name, call, x, averaged)
        query = self.weight_of("query", name, averaged)
        return AttentionRows.apply(text, key, query, prototypes, route.flat, route.owner)

    def _attention(
        self, name: str, call: RoutingCall, x: torch.Tensor, averaged: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The instructions as the token router reads them, in the type of x, and its key and prototypes."""
        size = self.configs[name].attention_dim
        form = ("text", size, x.shape[0], x.dtype)
        if form not in call.forms:
            text = self._text(call, x).detach()
            call.forms[form] = (F.layer_norm(text, text.shape[-1:]) * size**-0.5).to(x.dtype)
        return call.forms[form], self.weight_of("key", name, averaged), self.weight_of("prototypes", name, averaged)

    def _step(self, name: str, call: RoutingCall, x: torch.Tensor) -> Step:
        """What a decode step needs, the same for all steps of a sequence."""
        form = (name, self.key, x.shape[0], x.dtype)
        if form not in call.forms:
            route, attends = self.route(name, call, x), self.configs[name].attention_dim
            toward = attention_targets(*self._attention(name, call, x), route.flat) if attends else None
            experts = Decoding.of(route.experts, self.strlora_A[name], self.strlora_B[name], x.dtype)
            rows = self.weight_of("query" if attends else "token_router", name).to(x.dtype)
            if not attends and len(experts.barred[0]) < len(rows):  # the samples' own experts, side by side
                rows = rows.index_select(0, route.flat)
            call.forms[form] = Step.of(experts, toward, rows, self.scaling[name])
        return call.forms[form]


def averages(layer: Any, adapter_name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Running averages of an adapter's routers in a layer, and the weights they follow."""
    names = layer.configs[adapter_name].averaged
    return (
        [layer.weight_of(name, adapter_name, averaged=True) for name in names],
        [layer.weight_of(name, adapter_name).detach() for name in names],
    )
