"""Streaming online continual learning for multimodal language models."""

__version__ = "0.1.0"
