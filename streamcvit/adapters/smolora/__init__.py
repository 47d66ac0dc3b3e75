"""SMoLoRA: two banks of low-rank experts, routed by picture and by instruction."""

from streamcvit.adapters.smolora.config import SMoLoraConfig
from streamcvit.adapters.smolora.layer import SMoLoraLayer
from streamcvit.adapters.smolora.model import SMoLoraModel
from streamcvit.adapters.tuner import register_tuner

__all__ = ["SMoLoraConfig", "SMoLoraLayer", "SMoLoraModel"]

register_tuner("smolora", SMoLoraConfig, SMoLoraModel)
