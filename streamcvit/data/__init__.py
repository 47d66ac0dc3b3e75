"""What arrives: samples, chunk plans, shards and the index that finds every sample in them."""

from streamcvit.data.files.mixed import load_mixed
from streamcvit.data.files.tasks import TaskData, TaskFiles, load_tasks
from streamcvit.data.formats import FORMATS
from streamcvit.data.plan import Plan
from streamcvit.data.sample import Quarantined, Sample, TaskSpec
from streamcvit.data.scenario import PRESETS, generate, order, scale_plan, task_incremental
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import write_stream
from streamcvit.data.verify import VerifyReport, verify

__all__ = [
    "FORMATS",
    "PRESETS",
    "Plan",
    "Quarantined",
    "Sample",
    "ShardReader",
    "StreamIndex",
    "TaskData",
    "TaskFiles",
    "TaskSpec",
    "VerifyReport",
    "generate",
    "index_shards",
    "load_mixed",
    "load_tasks",
    "order",
    "scale_plan",
    "task_incremental",
    "verify",
    "write_stream",
]
