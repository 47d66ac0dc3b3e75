"""Every learned sample of a run, and the prequential curve of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ledger:
    """Every learned sample, in stream order; all arrays have one entry a sample.

    Attributes:
        position: place in the stream, int64.
        chunk: chunk it came in, int64, from 0.
        task: names, object array of str.
        loss: loss in nats before learning from it, float64 (prequential); NaN where it was not finite.
        correct: whether every answer token was the most likely one before learning from it, bool.
    """

    position: np.ndarray
    chunk: np.ndarray
    task: np.ndarray
    loss: np.ndarray
    correct: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def curve(self, bins_per_chunk: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prequential loss and accuracy, averaged within equal parts of each chunk; no part spans two chunks.

        Returns:
            place of each part's middle in chunks (0.5 is the middle of the first), mean loss in nats, accuracy 0..1.
        """
        places, losses, hits = [], [], []
        for chunk in np.unique(self.chunk):
            rows = np.flatnonzero(self.chunk == chunk)
            for part, members in enumerate(np.array_split(rows, min(bins_per_chunk, len(rows)))):
                places.append(chunk + (part + 0.5) / min(bins_per_chunk, len(rows)))
                known = self.loss[members][np.isfinite(self.loss[members])]
                losses.append(known.mean() if len(known) else np.nan)
                hits.append(self.correct[members].mean())
        return np.array(places), np.array(losses), np.array(hits)


def empty_ledger() -> Ledger:
    """Nothing learned yet."""
    whole = np.zeros(0, dtype=np.int64)
    return Ledger(whole, whole, np.zeros(0, dtype=object), np.zeros(0), np.zeros(0, dtype=bool))
