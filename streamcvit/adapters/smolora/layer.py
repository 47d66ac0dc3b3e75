"""A linear layer with SMoLoRA's two banks of experts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from streamcvit.adapters.routing import RoutingCall, expand
from streamcvit.adapters.smolora.config import SMoLoraConfig
from streamcvit.adapters.smolora.function import Route, RoutedExperts, Step
from streamcvit.adapters.tuner import ExpertLayer


class SMoLoraLayer(ExpertLayer):
    """Weights, per adapter: A [E, r, I], B [E, r, O] (visual experts first), fc [2, O], and the two gates' rows."""

    adapter_layer_names = (
        "smolora_A",
        "smolora_B",
        "smolora_fc",
        "smolora_gate_visual",
        "smolora_gate_instruction",
    )
    other_param_names = ("r", "scaling", "dropout", "configs", "fused")
    configs: dict[str, SMoLoraConfig]
    fused: dict[str, bool]
    smolora_A: nn.ParameterDict
    smolora_B: nn.ParameterDict
    smolora_fc: nn.ParameterDict

    def update_layer(self, adapter_name: str, config: SMoLoraConfig) -> None:
        """Add an adapter; a frozen gate is declared so that switching adapters leaves it frozen."""
        self.__dict__.setdefault("configs", {})[adapter_name] = config
        self.__dict__.setdefault("fused", {})[adapter_name] = config.fused
        if config.router == "frozen":
            gates = ("smolora_gate_visual", "smolora_gate_instruction")
            self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, adapter_name: gates}
        super().update_layer(adapter_name, config)

    def new_parameters(self, config: SMoLoraConfig) -> dict[str, nn.Parameter]:
        """Weights of the banks in use; prototype routers need no gates, even weights and a single bank no fusion."""
        sizes = config.bank_sizes
        a, b = self.new_experts(config, sum(sizes.values()))
        weights = {"smolora_A": a, "smolora_B": b}
        if config.fused:
            weights["smolora_fc"] = self.new_router(config, "fc", 2, self.out_features)
        if config.router != "prototype":
            inputs = {"visual": self.in_features, "instruction": config.instruction_dim}
            for bank, size in sizes.items():
                weights[f"smolora_gate_{bank}"] = self.new_router(config, bank, size, inputs[bank])
        return weights

    def mix(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add the routed experts' output; x [B, S, I]."""
        if x.dim() != 3:
            return self.flattened(name, x, out)
        call = self.routing.current()
        call.tokens = x.shape[:2]
        decodes = x.shape[1] == 1 and not torch.is_grad_enabled()
        form = (name, self.key, x.shape[0], x.dtype)
        if decodes and form in call.forms:
            return call.forms[form].add(self.dropped(name, x), out)
        a, b, fc = self.smolora_A[name], self.smolora_B[name], self.smolora_fc[name] if self.fused[name] else None
        if decodes:
            route, _ = self.route(name, call, x)
            step = call.forms[form] = Step.of(route, fc, a, b, self.scaling[name], x.dtype)
            return step.add(self.dropped(name, x), out)
        route, weight = self.route(name, call, x)
        return RoutedExperts.apply(
            self.dropped(name, x),
            out,
            a,
            b,
            fc,
            weight,
            route.flat,
            route.score,
            route.owner,
            route.score_owner,
            self.scaling[name] if fc is not None else self.scaling[name] / route.experts.shape[1],
        )

    def expert_weights(
        self, name: str, call: RoutingCall, x: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One-hot, a bank's own experts among all."""
        route, _ = self.route(name, call, x)
        one_hot = F.one_hot(route.experts, self.smolora_A[name].shape[0])
        return dict(zip(self.configs[name].bank_sizes, one_hot.unbind(1), strict=True))

    def route(self, name: str, call: RoutingCall, x: torch.Tensor) -> tuple[Route, torch.Tensor | None]:
        """Experts of each sample, and weights of one [B, banks] that carry the gates' gradient where they learn."""
        shared = call.shared.get(name)
        if shared is None and self.configs[name].router == "prototype":
            assert call.late is not None
            shared = call.shared[name] = call.late(name)
        if shared is not None:
            return self._shared(name, call, shared, x), None
        key = (name, self.key)
        if not torch.is_grad_enabled() and key in call.routes:
            return self._forms(name, call.routes[key], x), None
        index, weight = self._decide(name, call, x)
        call.routes[key] = index
        return self._forms(name, index, x), weight

    def _forms(self, name: str, index: torch.Tensor, x: torch.Tensor) -> Route:
        return Route.of(index, self.smolora_A[name].shape[0], x.dtype)

    def _shared(self, name: str, call: RoutingCall, index: torch.Tensor, x: torch.Tensor) -> Route:
        # The route that all layers share is brought into form by the first of them.
        key = (name, x.shape[0], x.dtype, torch.is_grad_enabled())
        if key not in call.forms:
            call.forms[key] = self._forms(name, expand(index, x.shape[0]), x)
        return call.forms[key]

    def _decide(self, name: str, call: RoutingCall, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Arg-max of each bank's gate: indices [B, banks], and the weights of a learning gate."""
        config = self.configs[name]
        learns = config.router == "straight_through" and torch.is_grad_enabled()
        columns, weights, offset = [], [], 0
        with torch.set_grad_enabled(learns):
            for bank, size in config.bank_sizes.items():
                gate = getattr(self, f"smolora_gate_{bank}")[name]
                # Routing reads the representation, it does not shape it: the gate's gradient stops here.
                read = call.pool(x.detach(), config.pool) if bank == "visual" else call.instruction(x.shape[0])
                logits = read.to(gate.dtype) @ gate.T
                column = logits.argmax(1)
                if learns:
                    chosen = torch.softmax(logits, -1).gather(1, column.unsqueeze(1))
                    weights.append(1 + chosen - chosen.detach())
                columns.append(column + offset if offset else column)
                offset += size
        return torch.stack(columns, 1), torch.cat(weights, 1).to(x.dtype) if learns else None
