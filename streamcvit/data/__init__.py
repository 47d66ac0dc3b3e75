"""What arrives: samples, chunk plans, shards and the index that finds every sample in them."""

from streamcvit.data.formats import FORMATS
from streamcvit.data.index import StreamIndex, index_shards
from streamcvit.data.plan import Plan
from streamcvit.data.reader import ShardReader
from streamcvit.data.sample import Quarantined, Sample, TaskSpec
from streamcvit.data.scenario import PRESETS, generate, order, scale_plan, task_incremental
from streamcvit.data.shards import write_stream
from streamcvit.data.sources import TaskFiles, load_tasks, stream_of
from streamcvit.data.verify import VerifyReport, verify

__all__ = [
    "FORMATS",
    "PRESETS",
    "Plan",
    "Quarantined",
    "Sample",
    "ShardReader",
    "StreamIndex",
    "TaskFiles",
    "TaskSpec",
    "VerifyReport",
    "generate",
    "index_shards",
    "load_tasks",
    "order",
    "scale_plan",
    "stream_of",
    "task_incremental",
    "verify",
    "write_stream",
]
