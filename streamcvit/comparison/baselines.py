"""What a test set gives without a look at its pictures: by chance, and by the answer that is right most often."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from streamcvit.data.locations import ByteSource, is_url
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.evaluation import SCORERS, STRCVIT_SCORERS, Scorer
from streamcvit.evaluation.needs import choices
from streamcvit.models.thoughts import drop_thoughts, has_thoughts
from streamcvit.monitoring.record import RunRecord

Baseline = tuple[float | None, float | None]
"""In points: by chance (None where answers are not chosen from a list), and by the answer that is right most often."""


def baselines_of(records: Iterable[RunRecord], family: str = "strict") -> dict[str, Baseline]:
    """Task -> its baselines, of the first of these runs whose stream still lies beside it.

    Nothing is read but the test sets' records, and those of this machine alone.
    """
    for record in records:
        folder = record.folder.parent / "stream"
        try:
            index = StreamIndex.open(folder)
            if index.digest == record.run.get("index_digest") and index.meta["eval"] is not None:
                keep = (record.config.get("evaluation") or {}).get("thoughts") == "keep"
                return _baselines(index.eval_index(), family, keep)
        except (UserError, OSError, KeyError):
            continue
    return {}


def _baselines(index: StreamIndex, family: str, keep: bool) -> dict[str, Baseline]:
    found: dict[str, Baseline] = {}
    for task, spec in index.tasks.items():
        rule = SCORERS.get(spec.scorer) if family == "strict" else STRCVIT_SCORERS.get(spec.strcvit)
        samples = list(_texts(index, task, keep))
        if samples:
            found[task] = chance(samples), None if rule is None else majority(rule, samples)
    return found


def chance(samples: list[Sample]) -> float | None:
    """Points of a choice by lot: the mean of 100 / number of options; None where a sample has none."""
    options = [choices(sample) for sample in samples]
    if not all(options):
        return None
    return float(np.mean([100.0 / len(texts) for texts in options if texts]))


def majority(rule: Scorer, samples: list[Sample]) -> float:
    """Points of giving every question the reference that most of them have."""
    answers = Counter(answer for sample in samples for answer in dict.fromkeys(sample.answers))
    best = max(answers, key=lambda answer: (answers[answer], answer))
    return float(np.mean(rule([best] * len(samples), samples)))


def _texts(index: StreamIndex, task: str, keep: bool) -> Iterator[Sample]:
    """A task's test samples without their pictures; none of shards that are elsewhere."""
    records, shards = index.records(), index.shards
    columns = [index.column(name) for name in ("shard", "json_offset", "json_size")]
    sources: dict[int, ByteSource] = {}
    with contextlib.ExitStack() as stack:
        for place in np.flatnonzero(index.task_of == task).tolist():
            shard, offset, size = (int(column[place]) for column in columns)
            if is_url(shards[shard]):
                return
            if shard not in sources:
                sources[shard] = stack.enter_context(contextlib.closing(ByteSource(shards[shard])))
            try:
                record = records.read(sources[shard].read(offset, size), task)
            except (ValueError, BadRow):
                continue  # the run could not read it either
            answers = [drop_thoughts(text) if has_thoughts(text) and not keep else text for text in record.answers]
            yield Sample(str(index.sample_id_of[place]), task, "", "", tuple(answers), meta=record.meta)
