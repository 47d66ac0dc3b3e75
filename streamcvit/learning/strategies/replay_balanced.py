"""Replay from a memory that holds as many samples of each cluster (Chrysakis & Moens 2020), without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from streamcvit.data.sample import Sample
from streamcvit.learning.clusters import Clusters
from streamcvit.learning.outputs import Outputs
from streamcvit.learning.strategies.base import whole_number
from streamcvit.learning.strategies.replay import Replay
from streamcvit.models.batch import Batch, ModelInputs

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


class BalancedReplay(Replay):
    """Rehearse remembered samples from a memory in which every cluster has as many, however often the stream shows it.

    Class-balancing reservoir sampling (Chrysakis & Moens, "Online Continual Learning from Imbalanced Data", ICML 2020,
    algorithm 1), with clusters in the place of classes: where there is no room, a sample of a cluster that was never
    among the largest takes the place of one of the largest; one of any other cluster c takes the place of one of its
    own, with probability m_c / n_c of those kept and those seen of c. A sample's cluster is its route under the
    method's own router when it was learned (`streamcvit.learning.clusters`), never its task.

    Args:
        clusters: where the router tells samples apart by tokens or not at all: clusters that instructions, and that
            pictures, are put into.
    """

    def __init__(
        self,
        seed: int = 0,
        memory: int = 64,
        per_step: int = 0,
        share: float = 0.0,
        memory_bytes: int = 0,
        clusters: int = 8,
    ) -> None:
        super().__init__(seed, memory, per_step, share, memory_bytes)
        self.size = whole_number("clusters", clusters, 1)
        self.met: Counter[str] = Counter()  # n_c
        self.large: set[str] = set()
        self.clusters: Clusters | None = None

    def bind(self, learner: OnlineLearner) -> None:
        """Ask this learner for clusters."""
        self.clusters = Clusters(learner, self.size)

    def beside(self, inputs: ModelInputs, outputs: Outputs) -> torch.Tensor | None:
        """Note where the samples were routed; adds nothing."""
        assert self.clusters is not None
        self.clusters.note(inputs)
        return None

    def notes_of(self, batch: Batch, model: torch.nn.Module) -> Sequence[Any]:
        """The samples' clusters."""
        assert self.clusters is not None
        return self.clusters.take(len(batch.samples))

    def meet(self, note: Any) -> None:
        """Count a sample with its cluster, too."""
        super().meet(note)
        self.met[note] += 1

    def admit(self, sample: Sample, note: Any) -> None:
        """Keep a sample in the place of one of the largest cluster or of its own, or let it go."""
        held = Counter(self.notes)
        self.large |= {cluster for cluster, count in held.items() if count == max(held.values())}
        own = self.places(note)
        if note in self.large and int(self.rng.integers(self.met[note])) >= max(1, len(own)):
            return
        if self.fits(sample):
            self.keep(sample, note)
        elif note in self.large and own:
            self.replace(own[int(self.rng.integers(len(own)))], sample, note)
        else:
            self.replace(self.spare(), sample, note)

    def spare(self) -> int:
        """The place of a sample of one of the largest clusters."""
        held = Counter(self.notes)
        most = max(held.values())
        places = [place for place, cluster in enumerate(self.notes) if held[cluster] == most]
        return places[int(self.rng.integers(len(places)))]

    def places(self, cluster: str) -> list[int]:
        """Where samples of a cluster are kept."""
        return [place for place, one in enumerate(self.notes) if one == cluster]

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """As the reservoir's, with the clusters."""
        tensors, values = super().state_dict()
        own = {} if self.clusters is None else self.clusters.state_dict()
        return tensors | own, values | {"met": dict(self.met), "large": sorted(self.large)}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        super().load_state_dict(tensors, values)
        self.met, self.large = Counter(values["met"]), set(values["large"])
        if self.clusters is not None:
            self.clusters.load_state_dict(tensors)
