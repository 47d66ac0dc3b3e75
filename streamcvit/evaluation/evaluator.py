"""Answers to the evaluation sets, task by task, from whatever adapter the model holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.adapters import InstructionEncoder
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.errors import UserError
from streamcvit.evaluation.generate import Generator, Request
from streamcvit.models.base import Base
from streamcvit.models.collate import UnusableSamples
from streamcvit.models.thoughts import drop_thoughts, has_thoughts


@dataclass(frozen=True)
class Predictions:
    """What a model answered.

    Attributes:
        task: the task asked.
        sample_ids: one a request, in the evaluation set's order.
        texts: the answers, in the same order.
        seconds: wall time of the answering, preparation left out.
    """

    task: str
    sample_ids: tuple[str, ...]
    texts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Disagreement:
    """A request that a batch and batch size 1 answer differently."""

    sample_id: str
    batched: str
    alone: str


def _without_thoughts(sample: Sample) -> Sample:
    """A sample whose references are what follows their thoughts."""
    if not any(map(has_thoughts, sample.answers)):
        return sample
    return replace(sample, answers=tuple(drop_thoughts(a) if has_thoughts(a) else a for a in sample.answers))


class Evaluator:
    """Keeps evaluation sets tokenised and their images encoded, and answers them with any adapter on one base.

    Args:
        base: the loaded base model.
        tasks: how each task is answered, by name.
        eval_samples: task -> its evaluation set.
        batch_size: prompts decoded together.
        instruction_encoder: as the learner's; None makes one from the base model's embeddings.
        cache_bytes: image features kept in memory at most.
        disk_bytes, scratch: those kept in a file at most, and its folder (`Generator`).
        thoughts: `drop`: answers and references are what follows their thoughts; `keep`: thoughts are part of them.

    Attributes:
        samples: task -> its evaluation set as it is scored, what cannot be used left out once the task was asked for.
        left_out: task -> sample id -> why that sample cannot be used.

    Raises:
        UserError: an evaluation set of an unknown task.
    """

    def __init__(
        self,
        base: Base,
        tasks: Mapping[str, TaskSpec],
        eval_samples: Mapping[str, Sequence[Sample]],
        batch_size: int = 64,
        instruction_encoder: InstructionEncoder | None = None,
        cache_bytes: int = 4 << 30,
        thoughts: str = "drop",
        disk_bytes: int = 0,
        scratch: Path | None = None,
    ) -> None:
        if unknown := sorted(set(eval_samples) - set(tasks)):
            raise UserError(f"an evaluation set belongs to no task: {unknown[0]}", fix="Name it as its task is named")
        self.base, self.tasks = base, dict[str, TaskSpec]()
        self._asked: dict[str, tuple[Sample, ...]] = {}
        self.samples: dict[str, tuple[Sample, ...]] = {}
        self._encoder, self._thoughts = instruction_encoder, thoughts
        self.add(tasks, eval_samples)
        self.generator = Generator(base, instruction_encoder, batch_size, cache_bytes, thoughts, disk_bytes, scratch)
        self.left_out: dict[str, dict[str, str]] = {}
        self._requests: dict[str, list[Request]] = {}
        self._probes: dict[tuple[str, int, int], tuple[list[Request], tuple[Sample, ...]]] = {}

    def add(self, tasks: Mapping[str, TaskSpec], eval_samples: Mapping[str, Sequence[Sample]]) -> None:
        """Take tasks and evaluation sets in beside those that are there."""
        scored = _without_thoughts if self._thoughts == "drop" else (lambda sample: sample)
        self.tasks |= tasks
        for task, samples in eval_samples.items():
            self._asked[task] = tuple(samples)
            self.samples[task] = tuple(map(scored, samples))

    def requests(self, task: str) -> list[Request]:
        """The task's requests, prepared on first use and kept; a sample that cannot become one is left out.

        Raises:
            UserError: no evaluation set of that task, or not one usable sample in it.
        """
        if task not in self._requests:
            self._of(self.samples, task)
            self._requests[task] = self._prepare(task)
        return self._requests[task]

    @staticmethod
    def _of(sets: Mapping[str, tuple[Sample, ...]], task: str) -> tuple[Sample, ...]:
        if not (found := sets.get(task)):
            raise UserError(f"there is no evaluation set for task {task!r}", fix="Add one to the stream's eval/")
        return found

    def _prepare(self, task: str) -> list[Request]:
        samples = self._asked[task]
        try:
            return self.generator.prepare(samples)
        except UnusableSamples as fault:
            reasons = fault.reasons
        usable = tuple(sample for sample in samples if sample.sample_id not in reasons)
        if not usable:
            kind, detail = next(iter(reasons.values()))
            raise UserError(
                f"not one of {len(samples)} test samples of task {task!r} can be used; the first: {kind}: {detail}",
                fix="Raise model.max_length if that is it, or give the task other test samples",
            )
        self.left_out[task] = {name: f"{kind}: {detail}" for name, (kind, detail) in reasons.items()}
        self.samples[task] = tuple(sample for sample in self.samples[task] if sample.sample_id not in reasons)
        return self.generator.prepare(usable)

    def evaluate(self, model: Any, task: str, batch_size: int | None = None) -> Predictions:
        """Answers a task's evaluation set.

        Args:
            model: the base's model, or a PEFT model around it. It is put into eval mode for the time being.
            task: which evaluation set.
            batch_size: another one than the evaluator's.
        """
        requests = self.requests(task)
        start = time.perf_counter()
        texts = self._answer(self.generator, model, task, requests, batch_size)
        seconds = time.perf_counter() - start
        return Predictions(task, tuple(one.sample.sample_id for one in requests), tuple(texts), seconds)

    def probe(self, model: Any, task: str, limit: int, seed: int = 0) -> tuple[Predictions, tuple[Sample, ...]]:
        """Answers a seeded part of a task's evaluation set, of which no more than that is prepared.

        Args:
            model: as in `evaluate`.
            task: of which evaluation set.
            limit: so many samples at most, drawn by `seed` and task, the same ones every time; what cannot be used is
                left out of them.
            seed: of the draw.

        Returns:
            The answers, and the samples as they are scored, in the evaluation set's order.

        Raises:
            UserError: no evaluation set of that task.
        """
        drawn = task, limit, seed
        if drawn not in self._probes:
            asked = self._of(self._asked, task)
            samples = [asked[i] for i in some_of(len(asked), task, limit, seed)]
            try:
                requests = self.generator.prepare(samples)
            except UnusableSamples as fault:
                samples = [sample for sample in samples if sample.sample_id not in fault.reasons]
                requests = self.generator.prepare(samples)
            scored = tuple(map(_without_thoughts, samples)) if self._thoughts == "drop" else tuple(samples)
            self._probes[drawn] = requests, scored
        requests, scored = self._probes[drawn]
        start = time.perf_counter()
        texts = self._answer(self.generator, model, task, requests)
        ids = tuple(sample.sample_id for sample in scored)
        return Predictions(task, ids, tuple(texts), time.perf_counter() - start), scored

    def _answer(
        self, generator: Generator, model: Any, task: str, requests: Sequence[Request], batch_size: int | None = None
    ) -> list[str]:
        training = bool(getattr(model, "training", False))
        model.eval()
        try:
            return generator.answer(model, requests, self.tasks[task].max_new_tokens, batch_size)
        finally:
            if training:
                model.train()

    def audit(
        self, model: Any, task: str, n: int = 8, seed: int = 0, batched: Predictions | None = None
    ) -> list[Disagreement]:
        """Answers a seeded sample of requests in batches and one by one, and says where the two differ.

        One by one, nothing that was kept is used: text and pictures are prepared anew, each picture alone. An empty
        list is what correct code gives, up to ties that rounding breaks.

        Args:
            model, task: as in `evaluate`.
            n: so many requests, all there are at most.
            seed: of the sample.
            batched: what the same model answered to the whole evaluation set; None asks it.
        """
        batched = batched or self.evaluate(model, task)
        requests = self.requests(task)
        chosen = [requests[i].sample for i in some_of(len(requests), task, n, seed)]
        single = Generator(self.base, self._encoder, batch_size=1, cache_bytes=0, thoughts=self._thoughts)
        alone = self._answer(single, model, task, single.prepare(chosen), 1)
        texts = dict(zip(batched.sample_ids, batched.texts, strict=True))
        return [
            Disagreement(sample.sample_id, texts[sample.sample_id], text)
            for sample, text in zip(chosen, alone, strict=True)
            if texts[sample.sample_id] != text
        ]


def some_of(total: int, task: str, limit: int, seed: int) -> list[int]:
    """Places of `limit` of a task's `total` samples, rising, drawn by seed and task; of all where there are no more."""
    if limit >= total:
        return list(range(total))
    rng = np.random.default_rng([seed, *task.encode()])
    return sorted(rng.choice(total, size=limit, replace=False).tolist())
