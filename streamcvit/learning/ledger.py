"""One row for every learned sample: the proof of single pass and the prequential record."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from streamcvit.learning.durable import fsync_folder
from streamcvit.learning.epochs import Epoch, history, name_of, parse_name
from streamcvit.models.batch import Batch

SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("sample_id", pa.string()),
        ("task", pa.string()),
        ("chunk", pa.int32()),
        ("step", pa.int64()),
        ("loss", pa.float32()),
        ("correct", pa.bool_()),
    ]
)


class Ledger:
    """Rows since the last flush, and the files of all flushes.

    Args:
        folder: `ledger/` of a run folder; created on the first flush.
        epoch: the writer's; None for a writer that no other can follow (a notebook).
    """

    def __init__(self, folder: Path, epoch: Epoch | None = None) -> None:
        self.folder, self.epoch = folder, epoch or Epoch(folder.parent, 0)
        self._rows: list[tuple[Batch, int, torch.Tensor, torch.Tensor]] = []

    def add(self, batch: Batch, step: int, loss: torch.Tensor, correct: torch.Tensor) -> None:
        """Note a learned batch; its tensors stay on their device until the flush.

        Args:
            batch: its n samples.
            step: the optimizer step that learned them.
            loss: [n] prequential loss, nats a token.
            correct: [n] bool.
        """
        self._rows.append((batch, step, loss, correct))

    def flush(self, step: int) -> Path | None:
        """Write the rows so far, durably, to a part of its own; nothing to write gives None.

        Raises:
            Fenced: a newer learner took over; a part that shows nevertheless does not count.
        """
        if not self._rows:
            return None
        rows = self._rows
        columns = [
            [p for batch, *_ in rows for p in batch.positions],
            [s.sample_id for batch, *_ in rows for s in batch.samples],
            [s.task for batch, *_ in rows for s in batch.samples],
            [batch.chunk for batch, *_ in rows for _ in batch.samples],
            [number for batch, number, *_ in rows for _ in batch.samples],
            torch.cat([loss for *_, loss, _ in rows]).float().cpu().numpy(),
            torch.cat([correct for *_, correct in rows]).cpu().numpy(),
        ]
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"{name_of(step, self.epoch.number)}.parquet"
        draft = final.with_name(f".{final.name}")
        try:
            with open(draft, "wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            self.epoch.check()
            os.replace(draft, final)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        fsync_folder(self.folder)
        self._rows = []
        return final

    def rewind(self, step: int) -> None:
        """Forget everything after commit `step`: unflushed rows, parts that do not count, drafts of older writers.

        Names belong to one epoch, so this can never touch a newer learner's work, however late it comes.
        """
        self._rows.clear()
        counts = history(self.folder.parent)
        for path in self.folder.glob("*.parquet"):
            place = parse_name(path.stem.removeprefix("."))
            if place is None or place[1] > self.epoch.number:
                continue
            if path.name.startswith(".") or place[0] > step or not counts.holds(*place):
                self.epoch.check()
                path.unlink(missing_ok=True)


def read_ledger(folder: Path) -> pa.Table:
    """All flushed rows that count, in learning order; an empty table where nothing is flushed."""
    counts = history(folder.parent)
    parts = [(place, path) for path in folder.glob("*.parquet") if (place := parse_name(path.stem))]
    files = [path for place, path in sorted(parts) if counts.holds(*place)]
    return pa.concat_tables([pq.read_table(f, schema=SCHEMA) for f in files]) if files else SCHEMA.empty_table()
