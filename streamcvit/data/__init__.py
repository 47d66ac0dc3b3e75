"""What arrives: samples, chunk plans, shards and the index that finds every sample in them."""

from .formats import FORMATS
from .index import StreamIndex, index_shards
from .reader import ShardReader
from .sample import Quarantined, Sample, TaskSpec
from .scenario import Plan
from .shards import write_stream

__all__ = [
    "FORMATS",
    "Plan",
    "Quarantined",
    "Sample",
    "ShardReader",
    "StreamIndex",
    "TaskSpec",
    "index_shards",
    "write_stream",
]
