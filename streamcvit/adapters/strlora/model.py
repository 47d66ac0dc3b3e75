"""StrLoRA as a PEFT tuner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from streamcvit.adapters.strlora.layer import StrLoraLayer, averages
from streamcvit.adapters.tuner import ExpertTuner
from streamcvit.adapters.usage import Bank


class StrLoraModel(ExpertTuner):
    """Adapts a model's linears with StrLoRA and keeps the running averages of its routers."""

    prefix = "strlora_"
    tuner_layer_cls = StrLoraLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt `model`; PEFT calls this for the first adapter and for every further one."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for layer in self._layers(adapter_name):
            layer.start_averages(adapter_name)

    def banks(self, config: Any) -> dict[str, Bank]:
        """The instruction picks all of a sample's experts."""
        return {"instruction": Bank(slice(None), 0, config.num_experts)}

    def weighted_bank(self, config: Any) -> str:
        """Without a token router the sample's weights stand for all its tokens."""
        return "token" if config.sub_top_k else "instruction"

    @torch.no_grad()
    def step(self) -> None:
        """Move the running averages towards the weights."""
        for name in self.active_adapters:
            config: Any = self.peft_config[name]
            pairs = [averages(layer, name) for layer in self._layers(name)]
            old = [tensor for average, _ in pairs for tensor in average]
            new = [tensor for _, weights in pairs for tensor in weights]
            if old:
                torch._foreach_lerp_(old, new, 1 - config.distill_beta)

    def begin_chunk(self, chunk: int) -> None:
        """Begin to distil, and hold the routers, from the chunks on that the configuration names."""
        for name in self.active_adapters:
            config: Any = self.peft_config[name]
            distils = chunk >= config.distill_after_chunk
            for layer in self._layers(name):
                waited = layer.configs[name].distill_lambda != config.distill_lambda
                layer.configs[name] = config if distils else replace(config, distill_lambda=0.0)
                if distils and waited:
                    layer.start_averages(name)
            if config.freeze_after_chunk is not None and chunk >= config.freeze_after_chunk:
                self.freeze_routers()

    def freeze_routers(self, query_key: bool = True, prototypes: bool = True) -> None:
        """Hold the active adapters' token routers from now on, as the published runs do in later chunks."""
        for name in self.active_adapters:
            config: Any = self.peft_config[name]
            held = replace(
                config,
                freeze_query_key=config.freeze_query_key or query_key,
                freeze_prototypes=config.freeze_prototypes or prototypes,
            )
            self.peft_config[name] = held
            for layer in self._layers(name):
                layer.configs[name] = replace(held, distill_lambda=layer.configs[name].distill_lambda)
                layer.declare_frozen(name)
                layer._freeze_non_trainable_peft_weights(name)

    def _layers(self, adapter_name: str) -> list[Any]:
        layers = [module for module in self.model.modules() if isinstance(module, StrLoraLayer)]
        return [layer for layer in layers if adapter_name in layer.configs]
