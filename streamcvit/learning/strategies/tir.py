"""Task-similarity-informed regularisation (He et al.): importances count for less the more alike their tasks are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from streamcvit.adapters.instruction import TokenMeans
from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.learning.outputs import Outputs
from streamcvit.learning.strategies.ewc import EWC
from streamcvit.learning.strategies.importance import Importance, scaled
from streamcvit.learning.strategies.likeness import Likeness
from streamcvit.learning.strategies.mas import MAS
from streamcvit.models.batch import Batch

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner

KINDS: dict[str, type[Importance]] = {"mas": MAS, "ewc": EWC}


class TIR(Importance):
    """Hold weights by the importance of other tasks, and the less the more these are like the one that is learned.

    He et al., "Continual Instruction Tuning for Large Multimodal Models": after task k, I_n <- max(I_n, I_k,n), and the
    owner o_n of the maximum is kept; while task t is learned, I_n counts as I_n * (1 - s[t, o_n]), s being the
    similarity of tasks (`Likeness`). Here chunks mix tasks, so

    - I_k is the importance by MAS or EWC (`Importance`) from the samples of task k in a chunk alone, over its mean;
    - at a boundary each task of the chunk is taken into the maximum so, and the weights are held where they are;
    - a step weighs by the mean of s[t, o_n] over its batch's samples, t being each one's task. The weight is not put
      into I: a task that comes back would have lost its hold for good;
    - s[t, t] is 1: a task does not hold its own weights against itself. One that is not known yet is like none.

    It is told the task of each training sample; nothing is told when it answers. What is stored grows by one number a
    weight for each task of a chunk until its end, and by three embeddings for each task of the stream.

    Args:
        seed: of the draw.
        strength: lambda, of the penalty; 0: none.
        importance: how importances are measured: `mas`, or `ewc`.
        per_step: samples of each batch whose gradient is taken, drawn at random; 0: all of them.
    """

    held = 7  # importance, owner, where the weights were, and what four tasks of a chunk say
    needs_task = True

    def __init__(self, seed: int = 0, strength: float = 1.0, importance: str = "mas", per_step: int = 4) -> None:
        super().__init__(seed, strength, per_step=per_step)
        if importance not in KINDS:
            raise ValueError(f"importance must be one of {', '.join(KINDS)}, not {importance!r}")
        self.by, self._kind = importance, KINDS[importance]
        self.sums: dict[str, torch.Tensor] = {}
        self.owner: torch.Tensor | None = None
        self.likeness = Likeness()
        self.batch_tasks: list[str] = []

    def measure(self, outputs: Outputs) -> torch.Tensor:
        """As `importance` has it."""
        return self._kind.measure(self, outputs)

    def matter(self, gradient: torch.Tensor) -> torch.Tensor:
        """As `importance` has it."""
        return self._kind.matter(self, gradient)

    def bind(self, learner: OnlineLearner) -> None:
        """Remember whose samples and weights these are, and what embeds their texts."""
        super().bind(learner)
        self.means = TokenMeans(learner.base.model.get_input_embeddings().weight.detach())

    def extend_batch(self, batch: Batch) -> tuple[()]:
        """Note which tasks are about to be learned."""
        for sample in batch.samples:
            if not sample.task:
                raise UserError(
                    f"sample {sample.sample_id!r:.80} names no task, and TIR weighs by tasks",
                    where="strategy TIR",
                    fix="Name the samples' tasks, or take ewc or mas, which ask for none",
                )
        self.batch_tasks = [sample.task for sample in batch.samples]
        return ()

    def _note(self, sample: Sample) -> None:
        inputs, task = self.learner.base.collator.train([sample]), sample.task
        seen = self.learner.look(inputs.to(self.learner.base.device))
        said = self._said(self.measure(self.learner.outputs(inputs, seen=seen)))
        self.sums[task] = self.sums[task].add_(said) if task in self.sums else said
        pooled = seen.vision.pooled[0] if sample.pictures else None
        instruction, answer = map(self._embedded, (sample.routing_text, sample.answer))
        self.likeness.add(task, {"image": pooled, "instruction": instruction, "answer": answer})

    def _embedded(self, text: str) -> torch.Tensor:
        return self.means.text(self.learner.base.tokenizer(text, add_special_tokens=False)["input_ids"])

    def after_chunk(self, chunk: int, model: torch.nn.Module) -> None:
        """Take the chunk's tasks into the maximum, and hold the weights as they are."""
        for task, said in self.sums.items():
            own, place = scaled(said), self.likeness.tasks.index(task)
            if self.importance is None or self.owner is None:
                self.importance, self.owner = torch.zeros_like(own), torch.zeros_like(own, dtype=torch.int32)
            more = own > self.importance
            self.importance = torch.where(more, own, self.importance)
            self.owner = torch.where(more, place, self.owner)
        if self.sums:
            self.anchor, self.sums = self._now().clone(), {}

    def hold(self) -> torch.Tensor | None:
        """I_n * (1 - s[t, o_n]), [N], of the batch that is learned."""
        if self.importance is None or self.owner is None:
            return None
        return self.importance * (1 - self.likeness.of(self.batch_tasks)).index_select(0, self.owner)

    def _held(self) -> dict[str, torch.Tensor]:
        own = {} if self.owner is None else {"owner": self.owner}
        return {**super()._held(), **own, **{f"of.{k}": said for k, said in enumerate(self.sums.values())}}

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What was measured and held, whose it is, and what is known of the tasks."""
        tensors, values = super().state_dict()
        embeddings, known = self.likeness.state_dict()
        return {**tensors, **embeddings}, {**values, "by": self.by, "sums": list(self.sums), "known": known}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`; errors as `Importance`."""
        super().load_state_dict(tensors, values)
        if values["by"] != self.by:
            told, fix = f"the commit's importances are by {values['by']}", "Resume with the run's own config"
            raise UserError(told, where="strategy TIR", fix=fix)
        device = next(iter(self.weights.values())).device
        self.owner = tensors["owner"].to(device, copy=True) if "owner" in tensors else None
        self.sums = {task: tensors[f"of.{k}"].to(device, copy=True) for k, task in enumerate(values["sums"])}
        self.likeness.load_state_dict(tensors, values["known"], device)
