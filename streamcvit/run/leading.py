"""What rank 0 of a group tells the others while it learns as it would alone."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from streamcvit.adapters.calls import put_usage
from streamcvit.adapters.tuner import ExpertLayer
from streamcvit.errors import UserError
from streamcvit.learning import OnlineLearner
from streamcvit.learning.group import fingerprint
from streamcvit.learning.meeting import Lead
from streamcvit.learning.online import StepReport
from streamcvit.models.batch import Batch


class Leading:
    """Whatever changes what is learned, said to the other ranks just before it is done here.

    Args:
        lead: the group.
        every: steps between two comparisons of the ranks.
    """

    def __init__(self, lead: Lead, every: int) -> None:
        self.lead, self.every = lead, every

    def begin(self, method: str) -> None:
        """A method begins."""
        self.lead.tell("begin", method=method)

    def resume(self, learner: OnlineLearner, commit: Path | None) -> None:
        """Its learner is made, and goes on from a commit (None: from the start).

        Raises:
            UserError: the group is exact, and the adapter drops out.
        """
        if self.lead.exact and drops(learner.model):
            raise UserError(
                "the adapter drops out, and what is dropped depends on who computes a micro-batch",
                where="cluster.learner_mode",
                fix="Set the method's lora_dropout to 0, or cluster.learner_mode to fast",
            )
        learner.group = self.lead
        self.lead.tell("resume", commit=None if commit is None else str(commit))

    def obey(self, version: int | None, digest: str, share: float) -> None:
        """A chunk begins under an order of the guard: weights put back (None: none), and a share to rehearse."""
        self.lead.tell("obey", version=version, digest=digest, share=share)

    def learn(self, learner: OnlineLearner, batch: Batch) -> StepReport | None:
        """Learn a batch together, and compare where it is time to.

        Raises:
            GroupBroken: a rank is gone.
            UserError: a rank holds something else than this one.
        """
        self.lead.tell("learn", cursor=batch.cursor, stop=batch.next_cursor, chunk=batch.chunk)
        report = learner.learn(batch)
        if learner.step % self.every == 0:
            self.lead.tell("compare")
            own = fingerprint(learner)
            for rank, other in enumerate(self.lead.answers(), 1):
                if other != own:
                    raise UserError(
                        f"rank {rank} holds other weights, routers, moments or strategy state than rank 0 after step "
                        f"{learner.step}",
                        where="cluster.learners",
                        fix="Give all ranks machines of one kind, and continue with --resume from rank 0's last commit",
                    )
        return report

    def collect(self, model: PeftModel | None) -> None:
        """Count the other ranks' use of experts as if it were this one's."""
        self.lead.tell("usage")
        for counts in self.lead.answers():
            put_usage(model, counts)


def drops(model: torch.nn.Module) -> bool:
    """Whether something in a model drops out while it learns."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.training and module.p:
            return True
        if isinstance(module, ExpertLayer) and any(module.dropout.values()):
            return True
    return False
