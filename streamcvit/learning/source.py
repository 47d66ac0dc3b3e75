"""From index and cursor to batch: the pure function that exactly-once, resume and tests rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from streamcvit.data.sample import Quarantined, Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.learning.grouping import grouped
from streamcvit.models.batch import Batch, ModelInputs
from streamcvit.models.collate import Collator, UnusableSamples


@dataclass(frozen=True)
class Schedule:
    """In which order a run reads the stream, and where its chunks end.

    Attributes:
        order: [n] int64, stream position read at each cursor.
        stops: [T] int64, cursor after the last sample of each chunk; the last is n, equal ones are of empty chunks.
        batch_size: samples a batch at most.
    """

    order: np.ndarray
    stops: np.ndarray
    batch_size: int

    @classmethod
    def of(
        cls,
        index: StreamIndex,
        batch_size: int,
        order: Literal["stream", "joint"] = "stream",
        seed: int = 0,
        lengths: np.ndarray | None = None,
    ) -> Schedule:
        """The stream as it comes, or the whole of it shuffled into one chunk (`joint`, the upper bound).

        With `lengths`, [n] by stream position, samples of like length share a batch: they change places inside their
        chunk (`streamcvit.learning.grouping`).
        """
        n = len(index)
        if order == "joint":
            places, stops = np.random.default_rng([seed, 1]).permutation(n), np.array([n])
        else:
            places = np.arange(n)
            stops = np.searchsorted(index.chunk_of, np.arange(index.n_chunks), side="right")
        if lengths is not None:
            places = grouped(places, stops, lengths, batch_size, seed)
        return cls(places, stops, batch_size)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def n_chunks(self) -> int:
        return len(self.stops)

    def chunk_of(self, cursor: int) -> int:
        """The chunk that the sample at `cursor` belongs to."""
        return int(np.searchsorted(self.stops, cursor, side="right"))

    def bounds(self, chunk: int) -> tuple[int, int]:
        """First cursor of a chunk and the one after its last."""
        return (int(self.stops[chunk - 1]) if chunk else 0), int(self.stops[chunk])

    def next_cursor(self, cursor: int) -> int:
        """Where the batch that starts at `cursor` ends: at cursor + batch size or at the chunk's end."""
        return min(cursor + self.batch_size, int(self.stops[self.chunk_of(cursor)]))


class BatchSource:
    """`batch(cursor)`, equal to the bit however often and wherever it is asked.

    Args:
        reader: reads samples by position.
        collator: turns samples into tensors.
        schedule: order and chunk ends.
        micro_batch: samples a micro-batch; 0: batches are whole.
    """

    def __init__(self, reader: ShardReader, collator: Collator, schedule: Schedule, micro_batch: int = 0) -> None:
        self.reader, self.collator, self.schedule, self.micro_batch = reader, collator, schedule, micro_batch

    def batch(self, cursor: int) -> Batch:
        """The batch that starts at `cursor`.

        Raises:
            IndexError: the cursor is outside the stream.
            UserError: a shard cannot be read (its name is in the message).
        """
        if not 0 <= cursor < len(self.schedule):
            raise IndexError(f"cursor {cursor} is outside the stream of {len(self.schedule)} samples")
        stop = self.schedule.next_cursor(cursor)
        positions = self.schedule.order[cursor:stop].tolist()
        rows = self.reader.read(positions)
        good = [(p, row) for p, row in zip(positions, rows, strict=True) if isinstance(row, Sample)]
        bad = [row for row in rows if isinstance(row, Quarantined)]
        parts: tuple[ModelInputs, ...] = ()
        try:
            parts = self._collate(good)
        except UnusableSamples as fault:
            # What the processor refuses depends on the sample's bytes alone, so the batch stays a pure function.
            reasons = fault.reasons
            bad += [Quarantined(p, s.sample_id, *reasons[s.sample_id]) for p, s in good if s.sample_id in reasons]
            good = [(p, s) for p, s in good if s.sample_id not in reasons]
            parts = self._collate(good)
        samples = tuple(row for _, row in good)
        return Batch(
            cursor=cursor,
            next_cursor=stop,
            chunk=self.schedule.chunk_of(cursor),
            positions=tuple(p for p, _ in good),
            samples=samples,
            inputs=parts[0] if len(parts) == 1 else None,
            quarantined=tuple(bad),
            micro=parts if len(parts) > 1 else (),
        )

    def _collate(self, good: list[tuple[int, Sample]]) -> tuple[ModelInputs, ...]:
        return self.collator.micro_batches([row for _, row in good], self.micro_batch) if good else ()
