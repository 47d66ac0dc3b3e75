"""A batch learned in micro-batches: the update of the whole batch, with the activations of a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamcvit.adapters import RoutingInputs, auxiliary_loss, by_samples, decide_routes, shares_routes
from streamcvit.models.batch import Batch, ModelInputs
from streamcvit.models.vision import Vision

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


class Seen(NamedTuple):
    """What is worked out of samples before the language model runs.

    Attributes:
        vision: their image features.
        facts: what routers read; None where nothing is routed.
    """

    vision: Vision
    facts: RoutingInputs | None


def gradients(learner: OnlineLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute a step's gradient: of the whole batch at once, or of one micro-batch after the other.

    In micro-batches it is that of the whole batch to rounding, unless the adapter drops out (masks are drawn by
    micro-batch): a sample's loss does not depend on its batch, what is averaged over tokens is weighed by the tokens
    of a micro-batch, routers that decide by prototypes see the whole batch first, and the strategy's penalty is taken
    once. Replayed samples are learned in micro-batches of the same size.

    Args:
        learner: takes the step; its gradients are set.
        batch: with readable samples; collated here where it was not in micro-batches.

    Returns:
        (loss [B] float32 and correct [B] bool of the batch's own samples, 0-dim loss of the step), without graph.
    """
    if not learner.micro_batch and len(batch.parts) == 1:
        return _whole(learner, batch)
    collate, size, parts = learner.base.collator.micro_batches, learner.micro_batch, batch.parts
    if len(parts) == 1 and size < len(batch.samples):
        parts = collate(batch.samples, size)
    extra = tuple(learner.strategy.extend_batch(batch))
    count, per_sample = len(batch.samples) + len(extra), by_samples(learner.model)
    learner.optimizer.zero_grad(set_to_none=True)
    losses: list[torch.Tensor] = []
    correct: list[torch.Tensor] = []
    again: list[torch.Tensor] = []
    terms: list[torch.Tensor] = []
    for group, own in ((parts, True), (collate(extra, size) if extra else (), False)):
        weighs = [weight(part, per_sample) for part in group]
        for part, share, (routes, seen) in zip(group, weighs, _looks(learner, group), strict=True):
            out = learner.outputs(part, routes, seen)
            losses_b, correct_b = out.losses()
            loss = losses_b.sum() / count
            auxiliary = auxiliary_loss(learner.model)
            if own:
                beside = learner.strategy.beside(part, out)
                if beside is not None:
                    loss = loss + beside.sum() / count
                losses.append(losses_b.detach())
                correct.append(correct_b)
                if auxiliary is not None:  # a mean over the tokens or samples of the micro-batch
                    loss = loss + auxiliary * (share / sum(weighs))
            else:
                again.append(losses_b.detach())
            backward(loss)
            terms.append(loss.detach())
    penalty = learner.strategy.penalty(learner.model)
    if penalty is not None:
        backward(penalty)
        terms.append(penalty.detach())
    losses_B = torch.cat(losses)
    learner.strategy.scored(losses_B, torch.cat(again) if again else losses_B[:0])
    return losses_B, torch.cat(correct), torch.stack([term.float() for term in terms]).sum()


def backward(loss: torch.Tensor) -> None:
    """Add up gradients; none where a loss depends on nothing that learns, as of texts where projectors alone do."""
    if loss.requires_grad:
        loss.backward()


def weight(part: ModelInputs, per_sample: bool) -> int:
    """Samples of a micro-batch, or its tokens, on the host still."""
    return len(part.answer_mask) if per_sample else int(part.tensors["attention_mask"].sum())


def _whole(learner: OnlineLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = learner.outputs(batch.parts[0])
    losses_B, correct_B = out.losses()
    auxiliary = auxiliary_loss(learner.model)
    beside = learner.strategy.beside(batch.parts[0], out)
    extra = learner.strategy.extend_batch(batch)
    total = losses_B.sum() if beside is None else losses_B.sum() + beside.sum()
    count, replayed = len(batch.samples), losses_B[:0]
    if extra:
        # A forward of its own: a sample's loss does not depend on its batch, so the sum is the same.
        replayed, _ = learner.losses(learner.base.collator.train(tuple(extra)))
        total, count = total + replayed.sum(), count + len(extra)
    loss = total / count
    for term in (auxiliary, learner.strategy.penalty(learner.model)):
        if term is not None:
            loss = loss + term
    learner.optimizer.zero_grad(set_to_none=True)
    backward(loss)
    learner.strategy.scored(losses_B.detach(), replayed.detach())
    return losses_B.detach(), correct_B, loss.detach()


def _looks(learner: OnlineLearner, parts: Sequence[ModelInputs]) -> list[tuple[torch.Tensor | None, Seen | None]]:
    """Routes of each part, decided on all of them together, and what was seen for it where that can be used again."""
    if len(parts) < 2 or learner.encoder is None or not shares_routes(learner.model):
        return [(None, None)] * len(parts)
    with torch.no_grad():
        seen = [learner.look(part.to(learner.base.device)) for part in parts]
    facts = [one.facts for one in seen if one.facts is not None]
    whole = {name: torch.cat([getattr(one, name) for one in facts]) for name in ("instruction", "visual", "image_mask")}
    routes = decide_routes(learner.model, RoutingInputs(**whole)).routes
    assert routes is not None
    split = routes.split([len(part.image_mask) for part in parts])
    # Features of a tower or projector that learns want a graph, so they are computed again.
    return [(own, None if learner.sees else one) for own, one in zip(split, seen, strict=True)]
