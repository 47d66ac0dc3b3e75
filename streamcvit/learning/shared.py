"""A step's gradient by a group of ranks: each computes that of its own micro-batches, and all get that of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamcvit.adapters import RoutingInputs, auxiliary_loss, by_samples, decide_routes, shares_routes
from streamcvit.learning.microbatch import Seen, backward, weight
from streamcvit.models.batch import Batch, ModelInputs
from streamcvit.models.vision import vision_dim

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


def shared_gradients(learner: OnlineLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `streamcvit.learning.microbatch.gradients` computes, shared by the ranks of the learner's group.

    Each micro-batch weighs as it does there: its samples over those of the whole batch, and what is averaged over
    tokens or samples by these. In an exact group the result is that of one process with the same `micro_batch`, to the
    bit.

    Args:
        learner: takes the step; its gradients are set.
        batch: with readable samples, of which this rank may hold the pictures of its own micro-batches alone.

    Returns:
        As `gradients`, of the whole batch on every rank.

    Raises:
        GroupBroken: a rank is gone; the learner is to be built anew.
    """
    group = learner.group
    assert group is not None
    collate, size, parts = learner.base.collator.micro_batches, learner.micro_batch, batch.parts
    if len(parts) == 1 and 0 < size < len(batch.samples):
        parts = collate(batch.samples, size)
    extra = tuple(learner.strategy.extend_batch(batch))
    more = collate(extra, size) if extra else ()
    count, items = len(batch.samples) + len(extra), [*parts, *more]
    if not group.exact:  # what is dropped out differs from rank to rank, and is the same again after a restart
        own_rng = np.random.default_rng([group.seed, 4, learner.step, group.rank])  # torch reads 32 bits of a seed
        torch.manual_seed(int(own_rng.integers(1 << 32)))
    learner.optimizer.zero_grad(set_to_none=True)
    own, per_sample = group.share(len(items)), by_samples(learner.model)
    weighs = [weight(part, per_sample) for part in parts]
    looks = [*_looks(learner, parts, 0, len(items)), *_looks(learner, more, len(parts), len(items))]
    starts = [sum(len(part.image_mask) for part in items[:place]) for place in range(len(items))]
    total = group.sums(learner.parameters)
    notes = torch.zeros(2 * count + len(items), device=learner.base.device)
    losses_n, correct_n, terms = notes.split([count, count, len(items)])
    for place in own:
        routes, seen = looks[place]
        total.begin(last=place == own[-1])
        out = learner.outputs(items[place], routes, seen)
        losses_b, correct_b = out.losses()
        loss = losses_b.sum() / count
        auxiliary = auxiliary_loss(learner.model)
        if place < len(parts):
            beside = learner.strategy.beside(items[place], out)
            if beside is not None:
                loss = loss + beside.sum() / count
            if auxiliary is not None:
                loss = loss + auxiliary * (weighs[place] / sum(weighs))
        backward(loss)
        rows = slice(starts[place], starts[place] + len(losses_b))
        losses_n[rows], correct_n[rows], terms[place] = losses_b.detach(), correct_b.float(), loss.detach()
        total.take()
    losses_n, correct_n, terms = total.finish(notes).split([count, count, len(items)])
    penalty = learner.strategy.penalty(learner.model)
    if penalty is not None:
        backward(penalty)
        terms = torch.cat([terms, penalty.detach().float().reshape(1)])
    samples = len(batch.samples)
    learner.strategy.scored(losses_n[:samples].clone(), losses_n[samples:].clone())
    return losses_n[:samples].clone(), correct_n[:samples] > 0, terms.clone().sum()


def _looks(
    learner: OnlineLearner, parts: Sequence[ModelInputs], before: int, items: int
) -> list[tuple[torch.Tensor | None, Seen | None]]:
    """Routes of each part and what this rank saw for its own ones, decided by every rank on all parts together.

    Args:
        learner: whose routers decide.
        parts: micro-batches that are decided on together.
        before: micro-batches of the step that come before them.
        items: micro-batches of the step.
    """
    group = learner.group
    assert group is not None
    if not parts or learner.encoder is None or not shares_routes(learner.model):
        return [(None, None)] * len(parts)
    sizes = [len(part.image_mask) for part in parts]
    shares = [_within(group.share_of(rank, items), before, len(parts)) for rank in range(group.ranks)]
    with torch.no_grad():
        seen = {place: learner.look(parts[place].to(learner.base.device)) for place in shares[group.rank]}
    facts = [one.facts for one in seen.values() if one.facts is not None]
    dims = {"instruction": learner.encoder.dim, "visual": vision_dim(learner.base.model)}
    counts = [sum(sizes[place] for place in share) for share in shares]
    whole = {}
    for name, dim in dims.items():
        empty = torch.zeros(0, dim, device=learner.base.device)
        whole[name] = group.rows(torch.cat([empty, *(getattr(one, name) for one in facts)]), counts)
    whole["image_mask"] = torch.cat([part.image_mask for part in parts]).to(learner.base.device)
    routes = decide_routes(learner.model, RoutingInputs(**whole)).routes
    assert routes is not None
    # Features of a tower or projector that learns want a graph, so they are computed again.
    kept = {} if learner.sees else seen
    return [(own, kept.get(place)) for place, own in enumerate(routes.split(sizes))]


def _within(share: range, first: int, count: int) -> range:
    """Places of a share that lie in a stretch, counted from its beginning."""
    return range(max(share.start - first, 0), min(share.stop - first, count))
