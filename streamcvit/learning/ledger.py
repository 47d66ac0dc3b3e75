"""One row for every learned sample: the proof of single pass and the prequential record.

Samples of a step that was skipped, because its loss or gradient was not finite, have theirs too, marked `skipped`.

Every part holds the name and SHA-256 of the part before it, and every commit those of its last part. So a commit of the
same size, however long the stream, vouches for each byte of the ledger up to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from streamcvit.errors import UserError
from streamcvit.learning.durable import fsync_folder
from streamcvit.learning.epochs import Epoch, epochs_in, history, name_of, parse_name
from streamcvit.models.batch import Batch

ASIDE = ".aside-"
_BEFORE = b"before"  # in a part's metadata: the part before it

SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("sample_id", pa.string()),
        ("task", pa.string()),
        ("chunk", pa.int32()),
        ("step", pa.int64()),
        ("loss", pa.float32()),
        ("correct", pa.bool_()),
        ("skipped", pa.bool_()),
    ]
)


Link = dict[str, str]
"""A part's `name` and `sha256`."""


class Ledger:
    """Rows since the last flush, and the files of all flushes.

    Args:
        folder: `ledger/` of a run folder; created on the first flush.
        epoch: the writer's; None for a writer that no other can follow (a notebook).
    """

    def __init__(self, folder: Path, epoch: Epoch | None = None) -> None:
        self.folder, self.epoch = folder, epoch or Epoch(folder.parent, 0)
        self._rows: list[tuple[Batch, int, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._last: Link | None = None
        self._knows_last = False  # looked up when it is needed: only then are all parts there that will count

    def add(
        self,
        batch: Batch,
        step: int,
        loss: torch.Tensor,
        correct: torch.Tensor,
        skipped: torch.Tensor = torch.tensor(False),  # noqa: B008 - never written to
    ) -> None:
        """Note a learned batch; its tensors stay on their device until the flush.

        Args:
            batch: its n samples.
            step: the optimizer step that learned them.
            loss: [n] prequential loss, nats a token; may be NaN or infinite.
            correct: [n] bool.
            skipped: 0-dim bool, whether the step changed nothing.
        """
        self._rows.append((batch, step, loss, correct, skipped))

    def flush(self, step: int) -> Link | None:
        """Write the rows so far, durably, to a part of its own.

        Returns:
            The newest part, this one or an older one if there was nothing to write; None where there is none at all.

        Raises:
            Fenced: a newer learner took over; a part that shows nevertheless does not count.
        """
        if not self._knows_last:
            before = [path for (at, _), path in _parts(self.folder) if at < step]
            self._last, self._knows_last = _link(before[-1]) if before else None, True
        if not self._rows:
            return self._last
        rows = self._rows
        columns = [
            [p for batch, *_ in rows for p in batch.positions],
            [s.sample_id for batch, *_ in rows for s in batch.samples],
            [s.task for batch, *_ in rows for s in batch.samples],
            [batch.chunk for batch, *_ in rows for _ in batch.samples],
            [number for batch, number, *_ in rows for _ in batch.samples],
            torch.cat([loss for *_, loss, _, _ in rows]).float().cpu().numpy(),
            torch.cat([correct for *_, correct, _ in rows]).cpu().numpy(),
            torch.cat([skipped.expand(len(batch.samples)) for batch, *_, skipped in rows]).cpu().numpy(),
        ]
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata({_BEFORE: json.dumps(self._last)})
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        data = sink.getvalue()
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"{name_of(step, self.epoch.number)}.parquet"
        draft = final.with_name(f".{final.name}")
        try:
            with open(draft, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.epoch.check()
            os.replace(draft, final)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        fsync_folder(self.folder)
        self._rows = []
        self._last = {"name": final.name, "sha256": hashlib.sha256(data).hexdigest()}
        return self._last

    def rewind(self, step: int) -> None:
        """Forget everything after commit `step`: unflushed rows, parts that do not count (kept aside), drafts of older
        writers.

        Names belong to one epoch, so this can never touch a newer learner's work, however late it comes.
        """
        self._rows.clear()
        self._knows_last = False
        there = [
            (place, path) for path in self.folder.glob("*.parquet") if (place := parse_name(path.stem.lstrip(".")))
        ]
        counts = history(self.folder.parent, epochs_in(self.folder))
        for place, path in there:
            if place[1] > self.epoch.number:
                continue
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
            elif place[0] > step or not counts.holds(*place):
                self.epoch.check()
                with contextlib.suppress(FileNotFoundError):  # two learners may begin at once
                    os.rename(path, path.with_name(f"{ASIDE}{path.name}"))


def read_ledger(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """All flushed rows that count, in learning order; an empty table where nothing is flushed.

    Args:
        folder: `ledger/` of a run folder.
        columns: those to read; None: all.

    Raises:
        UserError: a part is damaged.
    """
    schema = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
    tables = [schema.empty_table()]
    for _, path in _parts(folder):
        try:
            tables.append(pq.read_table(path, columns=columns, schema=SCHEMA, page_checksum_verification=True))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, " ".join(str(error).split())[:200]) from None
    return pa.concat_tables(tables)


def check_parts(folder: Path, step: int, last: Link | None) -> None:
    """The parts that count up to a commit are those that it vouches for, each byte of them.

    Args:
        folder: `ledger/` of a run folder.
        step: of the commit.
        last: what `Ledger.flush` gave for it.

    Raises:
        UserError: a part is damaged, missing, or one too many.
    """
    there = {path.name for (at, _), path in _parts(folder) if at <= step}
    while last is not None:
        path = folder / last["name"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _damaged(path, error.strerror or "cannot be read") from None
        if hashlib.sha256(data).hexdigest() != last["sha256"]:
            raise _damaged(path, "its checksum differs")
        there.discard(path.name)
        last = json.loads(pq.read_schema(pa.BufferReader(data)).metadata[_BEFORE])
    if there:
        raise _damaged(folder / min(there), "no commit vouches for it")


def check_coverage(folder: Path, total: int, quarantined: Collection[int]) -> None:
    """Every position of the stream was learned once, or is quarantined.

    Args:
        folder: `ledger/` of a run folder.
        total: positions of the stream.
        quarantined: those that could not be learned.

    Raises:
        UserError: some are missing, or there more than once.
    """
    learned = read_ledger(folder, ["position"])["position"].to_numpy()
    times = np.bincount(learned, minlength=total)
    wanted = np.arange(len(times)) < total
    missing = times < wanted
    missing[list(quarantined)] = False
    for what, wrong in (("lacks", missing), ("holds too often", times > wanted)):
        if wrong.any():
            raise UserError(
                f"{what} {wrong.sum()} positions of the stream's {total}, the first is {wrong.argmax()}",
                where=str(folder),
                fix="Restore it from a copy, or start another run",
            )


def _parts(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """((step, epoch), file) of the parts that count, in learning order."""
    there = sorted((place, path) for path in folder.glob("*.parquet") if (place := parse_name(path.stem)))
    counts = history(folder.parent, {epoch for (_, epoch), _ in there})
    return [(place, path) for place, path in there if counts.holds(*place)]


def _link(path: Path) -> Link:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"damaged ({why})", where=str(path), fix="Restore it from a copy, or start another run")
