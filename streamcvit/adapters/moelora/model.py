"""MoELoRA as a PEFT tuner."""

from __future__ import annotations

from streamcvit.adapters.moelora.layer import MoELoraLayer
from streamcvit.adapters.tuner import ExpertTuner


class MoELoraModel(ExpertTuner):
    """Adapts a model's linears with MoELoRA; a token's weights depend on it alone, so no routing inputs are needed."""

    prefix = "moelora_"
    tuner_layer_cls = MoELoraLayer
    needs_routing = False
    uses_shared_state = False
