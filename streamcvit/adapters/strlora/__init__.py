"""StrLoRA: low-rank experts picked by the instruction and weighed per token."""

from streamcvit.adapters.strlora.config import StrLoraConfig
from streamcvit.adapters.strlora.layer import StrLoraLayer
from streamcvit.adapters.strlora.model import StrLoraModel
from streamcvit.adapters.tuner import register_tuner

__all__ = ["StrLoraConfig", "StrLoraLayer", "StrLoraModel"]

register_tuner("strlora", StrLoraConfig, StrLoraModel)
