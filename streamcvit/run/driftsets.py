"""The samples by which a learner measures drift: a few of each task's test samples, drawn once for a run."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.data.sample import Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.evaluation.evaluator import some_of
from streamcvit.learning.drift import ProbeSet
from streamcvit.models.collate import Collator, UnusableSamples


def probe_sets(
    config: RunConfig, index: StreamIndex, collator: Collator, known: Collection[str] = ()
) -> dict[str, ProbeSet]:
    """`learner.drift_samples` test samples of each task, drawn by seed and task; nothing is learned from them.

    Those that cannot be read or used are left out; a task of which none is left has no entry.

    Args:
        config: the run.
        index: the stream.
        collator: of the base that is learned.
        known: tasks that are left out.

    Raises:
        UserError: the stream has no test sets, or other ones than it was written with.
    """
    count, found = config.learner.drift_samples, {}
    if not count:
        return {}
    tests = index.eval_index()
    with ShardReader(tests) as reader:
        for task in (task for task in tests.tasks if task not in known):
            rows = np.flatnonzero(tests.task_of == task)
            drawn = rows[some_of(len(rows), task, count, config.seed)]
            samples = [row for row in reader.read(drawn.tolist()) if isinstance(row, Sample)]
            if (probe := _probe_set(samples, collator)) is not None:
                found[task] = probe
    return found


def _probe_set(samples: list[Sample], collator: Collator) -> ProbeSet | None:
    while samples:
        try:
            inputs = collator.train(samples)
        except UnusableSamples as fault:
            samples = [sample for sample in samples if sample.sample_id not in fault.reasons]
        else:
            return ProbeSet(tuple(sample.sample_id for sample in samples), inputs)
    return None
