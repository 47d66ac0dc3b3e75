"""MoELoRA: low-rank experts weighed per token."""

from streamcvit.adapters.moelora.config import MoELoraConfig
from streamcvit.adapters.moelora.layer import MoELoraLayer
from streamcvit.adapters.moelora.model import MoELoraModel
from streamcvit.adapters.tuner import register_tuner

__all__ = ["MoELoraConfig", "MoELoraLayer", "MoELoraModel"]

register_tuner("moelora", MoELoraConfig, MoELoraModel)
