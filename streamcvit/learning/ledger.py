"""One row for every learned sample: the proof of single pass and the prequential record."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from streamcvit.learning.commit import fsync_folder
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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        """Write the rows so far to `<step>.parquet`, durably; nothing to write gives None."""
        if not self._rows:
            return None
        rows, self._rows = self._rows, []
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
        final, draft = self.folder / f"{step:08d}.parquet", self.folder / f".{step:08d}.{os.getpid()}"
        with open(draft, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, final)
        fsync_folder(self.folder)
        return final

    def rewind(self, step: int) -> None:
        """Forget everything after commit `step`: unflushed rows and newer files."""
        self._rows.clear()
        for path in self.folder.glob("*.parquet"):
            if int(path.stem) > step:
                path.unlink()


def read_ledger(folder: Path) -> pa.Table:
    """All flushed rows, in learning order; an empty table where nothing is flushed."""
    files = sorted(folder.glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f, schema=SCHEMA) for f in files]) if files else SCHEMA.empty_table()
