"""What the evaluator actors do, as a plain class: the local run uses it without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from streamcvit.config import RunConfig
from streamcvit.data.sample import Quarantined, Sample, TaskSpec
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, STRCVIT_SCORERS, Evaluator, Scorer, check_test_set
from streamcvit.evaluation.evaluator import Predictions
from streamcvit.evaluation.follow import published_form
from streamcvit.learning import commit as commits
from streamcvit.models.snapshot import Snapshot, load_adapter_state
from streamcvit.monitoring import traces
from streamcvit.run.loading import load_encoder, load_model, routes, settle, wrap
from streamcvit.run.messages import Job, Probed, TaskScores
from streamcvit.run.origin import put_on
from streamcvit.run.ownkinds import scorer_of
from streamcvit.run.scores import ZERO


class EvaluatorWorker:
    """Scores tasks with any snapshot of any method, on one loaded base.

    Args:
        config: the run.
        stream: folder of shards and index (test sets included).
        loaded: told of the base model, each time one is loaded.

    Raises:
        UserError: a test set of which nothing can be read, or a sample of one without what its task's rules need.
    """

    def __init__(
        self, config: RunConfig, stream: str, loaded: Callable[[torch.nn.Module], None] = lambda _: None
    ) -> None:
        settle(config)
        self.config, self.loaded = config, loaded
        self.index = StreamIndex.open(stream)
        self.tasks: dict[str, TaskSpec] = {}
        self.scorers: dict[str, Scorer] = {}
        self.samples: dict[str, list[Sample]] = {}
        self.unreadable: dict[str, dict[str, str]] = {}
        self._take_tests()
        self.model: PeftModel | None = None
        self.held = ("", -1, "")
        self._load()

    def _take_tests(self) -> dict[str, list[Sample]]:
        """Read the test sets that are there and not read yet."""
        index = self.index.eval_index()
        samples: dict[str, list[Sample]] = {}
        with ShardReader(index) as reader:
            for task in [task for task in index.tasks if task not in self.tasks]:
                self.scorers[task] = scorer_of(self.config, index.tasks[task])
                rows = reader.read(np.flatnonzero(index.task_of == task).tolist())
                good = (row for row in rows if isinstance(row, Sample))
                samples[task] = list(check_test_set(index.tasks[task], good, self.scorers[task]))
                bad = {row.sample_id: f"{row.reason}: {row.detail}" for row in rows if isinstance(row, Quarantined)}
                if rows and not samples[task]:
                    raise UserError(
                        f"not one of {len(rows)} test samples of task {task!r} can be read; the first: {bad[min(bad)]}",
                        where=index.folder,
                        fix="Restore the shards from a copy",
                    )
                self.unreadable[task] = bad
        self.tasks |= {task: index.tasks[task] for task in samples}
        self.samples |= samples
        return samples

    def _know(self, task: str) -> None:
        """Have a task's test set, also where it came after this evaluator began."""
        if task not in self.tasks:
            self.index = self.index.grown()
            self.evaluator.add(self.tasks, self._take_tests())

    def _load(self) -> None:
        self.base = load_model(self.config)
        self.encoder = load_encoder(self.config, self.base)
        how = self.config.evaluation
        self.evaluator = Evaluator(
            self.base,
            self.tasks,
            self.samples,
            how.batch_size,
            instruction_encoder=self.encoder,
            cache_bytes=how.cache_bytes,
            thoughts=how.thoughts,
            disk_bytes=how.disk_bytes,
            scratch=self.config.folder(),
        )
        self.loaded(self.base.model)

    def evaluate(self, job: Job, snapshot: Snapshot | None = None) -> TaskScores:
        """Score one task.

        Args:
            job: what to score.
            snapshot: its weights; None reads them from the job's commit.

        Raises:
            UserError: the weights that arrived are not the snapshot's, or no test sample of the task can be used.
        """
        told: dict[str, Any] = {"chunk": job.chunk, "task": job.task, "version": job.version}
        with traces.span("evaluate", job.trace, method=job.method, **told):
            return self._evaluate(job, snapshot)

    def _evaluate(self, job: Job, snapshot: Snapshot | None) -> TaskScores:
        began = time.perf_counter()
        self._know(job.task)
        digest = self._hold(job, snapshot)
        model = self.model if self.model is not None else self.base.model
        found = self.evaluator.evaluate(model, job.task)
        samples = self.evaluator.samples[job.task]
        scores = self._judged(job, digest, found, samples, began)
        if not job.audit:
            return scores
        differ = self.evaluator.audit(model, job.task, job.audit, self.config.seed, found)
        return replace(scores, audited=min(job.audit, len(samples)), differ=differ)

    def probe(self, job: Job, snapshot: Snapshot) -> Probed:
        """Score the samples of one task that the seed draws, with weights from between two boundaries.

        Whatever goes wrong is told, not raised: nothing depends on a probe, and a boundary meets it again.
        """
        began = time.perf_counter()
        try:
            self._know(job.task)
            digest = self._hold(job, snapshot)
            found, samples = self.evaluator.probe(self.model, job.task, job.probe, self.config.seed)
            return Probed(job, self._judged(job, digest, found, samples, began) if samples else None)
        except Exception as error:
            self.held = ("", -1, "")  # what the model holds by now is not known
            reason = str(error).splitlines()
            return Probed(job, None, f"{job.task}: {reason[0] if reason else type(error).__name__}"[:300])

    def _judged(self, job: Job, digest: str, found: Predictions, samples: Sequence[Sample], began: float) -> TaskScores:
        """What answers to these samples are worth."""
        spec = self.tasks[job.task]
        follows = FOLLOW_RULES[spec.follow](found.texts, samples)
        published, rule = None, published_form(spec.follow) if spec.strcvit else None
        if rule is not None:
            published = follows if rule == spec.follow else FOLLOW_RULES[rule](found.texts, samples)
        return TaskScores(
            job,
            digest,
            list(found.sample_ids),
            list(found.texts),
            [sample.answer for sample in samples],
            self.scorers[job.task](found.texts, samples),
            STRCVIT_SCORERS[spec.strcvit](found.texts, samples) if spec.strcvit else None,
            follows,
            time.perf_counter() - began,
            self.unreadable[job.task] | self.evaluator.left_out.get(job.task, {}),
            [sample.instruction for sample in samples],
            published,
            notes=[fault] if (fault := self.evaluator.generator.store.fault) else [],
        )

    def _hold(self, job: Job, snapshot: Snapshot | None) -> str:
        """Have the job's weights on the base; returns the digest of what is held."""
        method, version, digest = self.held
        if not job.commit and not job.probe:
            self._unload()
            return self.base.digest
        if method != job.method:
            self._unload()
            self.model = wrap(self.base, self.encoder, self.config, job.method, self.tasks)
            self.model.eval()
        if job.chunk == ZERO and self.model is not None:
            self.held = (job.method, 0, put_on(self.model, Path(job.commit)))
            return self.held[2]
        if (method, version) != (job.method, job.version):
            path = Path(job.commit) / "adapter" / "adapter_model.safetensors"
            try:
                digest = load_adapter_state(self.model, snapshot or load_file(path))
            except (SafetensorError, FileNotFoundError) as error:
                raise UserError(f"damaged adapter ({error})", where=str(path), fix="Restore it from a copy") from None
            if digest != job.digest:
                raise UserError(
                    f"the weights that arrived have digest {digest[:12]}, the snapshot's is {job.digest[:12]}",
                    where=f"{job.method}, version {job.version}",
                    fix="Resume the run; if it stays, the commit is damaged",
                )
            if self.model is not None and routes(self.model) and not job.probe:
                state = commits.read_note(Path(job.commit))
                if state["encoder"] != self.encoder.identity:
                    raise UserError(
                        "the instruction encoder here is another one than the learner's",
                        where=self.config.model.instruction_encoder,
                        fix="Give every machine the same files",
                    )
            self.held = (job.method, job.version, digest)
        return digest

    def _unload(self) -> None:
        """Have the base alone, as it was loaded; where an adapter wrote into its weights, load it again."""
        if self.model is not None:
            self.model.unload()
            self.model = None
        self.held = ("", -1, "")
        if not self.base.restore():
            del self.base, self.encoder, self.evaluator  # two do not fit beside each other
            self._load()
