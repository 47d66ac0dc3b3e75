"""What arrives: samples, chunk plans, shards and the index that finds every sample in them."""

from .formats import FORMATS
from .index import StreamIndex, index_shards
from .plan import Plan
from .reader import ShardReader
from .sample import Quarantined, Sample, TaskSpec
from .scenario import PRESETS, generate, order, scale_plan, task_incremental
from .shards import write_stream

__all__ = [
    "FORMATS",
    "PRESETS",
    "Plan",
    "Quarantined",
    "Sample",
    "ShardReader",
    "StreamIndex",
    "TaskSpec",
    "generate",
    "index_shards",
    "order",
    "scale_plan",
    "task_incremental",
    "write_stream",
]
