"""Online leader clustering: which expert a feature belongs to, learned from the stream alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

_FOREIGN = 4.0  # taken off a cosine: below every other, and still in order
_UNLIKE = 4.0  # taken off besides, between a text and a picture
_NEVER = -13.0  # below even that: no such prototype
_HOPELESS = -14.0  # below even that
_HUGE = 1e15  # squares of features beyond it could not be summed


class Prototypes(nn.Module):
    """One prototype per expert, in the order in which the stream brought them.

    While learning, a sample whose cosine to every prototype is below `spawn_below` takes the next free expert and its
    feature becomes the prototype; any other sample goes to the nearest. A batch sees the prototypes as they stood
    before it, and those spawned earlier in it; prototypes move and statistics grow only in `step`. Samples may come in
    groups: a prototype belongs to the group of the sample that spawned it, and others see it only where their own group
    has none and no expert is free. Groups below 0 are of texts, among the features of pictures: they are compared as
    they are, stay out of the statistics, and take half of the experts at most. A feature that is not finite, or huge,
    neither spawns nor moves anything. Nothing waits for the device: the loop over a batch runs on tensors, two small
    operations a sample. All state is in buffers, so it is saved with the adapter.

    Args:
        size: number of experts E.
        dim: feature size D.
        spawn_below: cosine below which a sample takes a free expert.
        standardise: compare features after z-scoring each dimension with running statistics (prototypes are kept
            unscaled, so they stay comparable as the statistics move); otherwise features are only scaled to length 1.
        warmup: with `standardise`, samples that fill the statistics before anything spawns; they go to expert 0.
        spawn_below_text: the cosine below which a text takes a free expert.
        cap: a prototype is the mean of its samples, later ones weighing at least 1 / cap.
    """

    centroids: torch.Tensor
    counts: torch.Tensor
    group: torch.Tensor
    used: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    seen: torch.Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        spawn_below: float,
        *,
        standardise: bool,
        warmup: int = 32,
        spawn_below_text: float = 0.8,
        cap: int = 200,
    ) -> None:
        super().__init__()
        self.size, self.spawn_below, self.spawn_below_text, self.cap = size, spawn_below, spawn_below_text, cap
        self.standardise, self.warmup = standardise, warmup if standardise else 0
        self.register_buffer("centroids", torch.zeros(size, dim))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("group", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("used", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("square", torch.zeros(dim))
        self.register_buffer("seen", torch.zeros(()))
        self._pending: tuple[torch.Tensor, ...] | None = None
        self._before: tuple[torch.Tensor, ...] | None = None  # what spawning changes, as the last step left it

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Prototypes:
        # model.to(bfloat16) must not round the state: only the device of the move is taken over.
        device = fn(torch.empty(0, device=self.centroids.device)).device
        super()._apply(
            lambda tensor: torch.empty_like(tensor, device=device) if device.type == "meta" else tensor.to(device)
        )
        return self

    @torch.no_grad()
    def assign(self, features: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
        """Nearest prototype of each feature [B, D], of its own group ([B] int64; None: all one) where that has any.

        [B] int64, 0 where there is no prototype yet. Changes nothing.
        """
        groups = self._groups(groups, len(features))
        features = self._prepared(features, groups)
        return self._similarity(self._scaled(features, groups), groups).argmax(1)

    @torch.no_grad()
    def learn(self, features: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
        """Routes of a training batch [B, D] in stream order; [B] int64. Spawns now, moves at the next `step`.

        Args:
            features: [B, D].
            groups: [B] int64, the group of each sample, below 0 that of a text; None: all one.
        """
        if self._before is None:
            self._before = self.centroids, self.group, self.used
        groups = self._groups(groups, len(features))
        sound, text, features = self._sound(features), groups < 0, self._prepared(features, groups)
        scaled = self._scaled(features, groups)
        similarity, mutual = self._similarity(scaled, groups), scaled @ scaled.T
        mutual = mutual - _FOREIGN * (groups.unsqueeze(1) != groups)
        rows, slots = (torch.arange(size, device=features.device) for size in (len(features), self.size))
        warm = (self.seen >= self.warmup) | text
        score = torch.where(warm, torch.where(text, self.spawn_below_text, self.spawn_below), _HOPELESS)
        # A sample that spawns keeps later ones like it from spawning. Those for whom no expert is free do so too, to no
        # effect: none is free for later ones either.
        compatible = (mutual < score) | (rows.unsqueeze(1) <= rows)
        spawns = (similarity.amax(1) < score) & sound
        for row, others in enumerate(compatible.unbind(1)[:-1]):
            spawns = torch.where(spawns[row], spawns & others, spawns)
        texts = ((self.group < 0) & (slots < self.used)).sum() + (spawns & text).cumsum(0)
        spawns = spawns & (~text | (texts <= max(1, self.size // 2)))
        place = self.used - 1 + spawns.cumsum(0)
        fresh = spawns.unsqueeze(1) & (place.unsqueeze(1) == slots)
        spawner, taken = fresh.int().argmax(0), fresh.any(0)
        # Whom a sample sees: the prototypes as they stood, and those spawned before it.
        visible = taken & (spawner < rows.unsqueeze(1))
        nearest = torch.where(visible, mutual.index_select(1, spawner), similarity).argmax(1)
        chosen = torch.where(fresh.any(1), place, nearest)
        self.centroids = torch.where(taken.unsqueeze(1), fresh.T.float() @ features, self.centroids)
        self.group = torch.where(taken, groups.index_select(0, spawner), self.group)
        self.used = self.used + taken.sum()
        self._remember(features, chosen, warm & sound, sound & ~text)
        return chosen

    @torch.no_grad()
    def step(self) -> None:
        """Apply what was learned since the last step: move prototypes to their samples, grow the statistics."""
        self._before = None
        if self._pending is None:
            return
        (counts, sums, number, total, square), self._pending = self._pending, None
        weight = torch.minimum(self.counts + counts, torch.full_like(counts, self.cap)).clamp_min(1)
        self.centroids = self.centroids + (sums - counts.unsqueeze(1) * self.centroids) / torch.maximum(
            weight, counts
        ).unsqueeze(1)
        self.counts = self.counts + counts
        if self.standardise:
            # Chan's merge of (n, mean, sum of squared deviations); both sides non-empty or zero.
            seen = (self.seen + number).clamp_min(1)
            batch_mean = total / number.clamp_min(1)
            delta = batch_mean - self.mean
            deviations = square - number * batch_mean.square()
            self.square = self.square + deviations.clamp_min(0) + delta.square() * (self.seen * number / seen)
            self.mean = self.mean + delta * (number / seen)
            self.seen = self.seen + number

    @torch.no_grad()
    def undo(self) -> None:
        """Forget what was learned since the last step."""
        self._pending = None
        if self._before is not None:
            (self.centroids, self.group, self.used), self._before = self._before, None

    def _remember(
        self, features: torch.Tensor, routes: torch.Tensor, moving: torch.Tensor, counted: torch.Tensor
    ) -> None:
        """Note which features move their prototype, and which enter the statistics; both [B] bool."""
        # Sums, not a list of batches: bounded memory however seldom `step` is called.
        owner = routes.unsqueeze(0) == torch.arange(self.size, device=routes.device).unsqueeze(1)
        owner = (owner & moving).float()
        seen = features * counted.unsqueeze(1)
        now = (
            owner.sum(1),
            owner @ features,
            counted.sum().to(self.seen.dtype),
            seen.sum(0),
            seen.square().sum(0),
        )
        self._pending = now if self._pending is None else tuple(a + b for a, b in zip(self._pending, now, strict=True))

    def _sound(self, features: torch.Tensor) -> torch.Tensor:
        """[B] bool: whether a feature may be learned from."""
        return (features.detach().to(self.centroids.device).abs() < _HUGE).all(1)

    def _prepared(self, features: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """In float32, zeros in place of one that is not sound."""
        sound = self._sound(features).unsqueeze(1)
        features = features.detach().to(self.centroids.device, torch.float32).masked_fill(~sound, 0.0)
        unit = F.normalize(features, dim=-1)
        return torch.where((groups < 0).unsqueeze(1), unit, features) if self.standardise else unit

    def _scaled(self, features: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Unit vectors in the space where cosines are taken."""
        if self.standardise:
            deviation = (self.square / self.seen.clamp_min(1)).sqrt()
            scores = (features - self.mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
            features = torch.where((groups < 0).unsqueeze(1), features, scores)
        return F.normalize(features, dim=-1)

    def _groups(self, groups: torch.Tensor | None, batch: int) -> torch.Tensor:
        device = self.centroids.device
        return torch.zeros(batch, dtype=torch.int64, device=device) if groups is None else groups.to(device)

    def _similarity(self, scaled: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Cosine to each prototype [B, E]; other groups' below any cosine, and experts still free below those."""
        free = torch.arange(self.size, device=scaled.device) >= self.used
        groups = groups.unsqueeze(1)
        far = _FOREIGN * (groups != self.group) + _UNLIKE * ((groups < 0) != (self.group < 0))
        return (scaled @ self._scaled(self.centroids, self.group).T - far).masked_fill(free, _NEVER)
