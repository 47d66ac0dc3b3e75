"""One LoRA a task, with the task told: what right routing alone is worth."""

from streamcvit.adapters.tasklora.config import TaskLoraConfig
from streamcvit.adapters.tasklora.layer import TaskLoraLayer
from streamcvit.adapters.tasklora.model import TaskLoraModel
from streamcvit.adapters.tuner import register_tuner

__all__ = ["TaskLoraConfig", "TaskLoraLayer", "TaskLoraModel"]

register_tuner("tasklora", TaskLoraConfig, TaskLoraModel)
