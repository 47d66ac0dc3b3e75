"""Is a stream folder what it was written as? Every shard, every checksum, every sample."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

import numpy as np

from streamcvit.data import locations
from streamcvit.data.images import MAX_PIXELS
from streamcvit.data.sample import Sample
from streamcvit.data.shards.groups import scan_groups
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.tar import Fault, HashingStream
from streamcvit.errors import UserError

_SHOWN = 50
_AT_ONCE = 64


@dataclass
class VerifyReport:
    """What `verify` found.

    Attributes:
        folder: what was verified.
        shards, samples, bytes: what the indexes of stream and test sets list.
        unreadable: samples that would be quarantined.
        problems: what is wrong, with shard and byte position.
        known: the first faults that were in the shards when they were indexed; no sample of the stream depends on them.
        notes: what is to be said of them.
    """

    folder: str
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    unreadable: int = 0
    problems: list[Fault] = field(default_factory=list)
    known: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def lines(self) -> list[str]:
        """The report for a person: the first problems, then the sums."""
        lines = [str(fault) for fault in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"and {len(self.problems) - _SHOWN} problems more")
        lines += self.notes
        verdict = "all well" if self.ok else f"{len(self.problems)} problems, {self.unreadable} samples unreadable"
        size = f"{self.shards} shards, {self.samples} samples, {self.bytes / 1e6:.1f} MB"
        return [*lines, f"{self.folder}: {size}: {verdict}"]


def verify(folder: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> VerifyReport:
    """Verify a stream folder and its test sets.

    Raises:
        UserError: there is no stream in the folder, or its index is damaged.
    """
    index = StreamIndex.open(folder)
    report = VerifyReport(index.folder)
    indexes = [index]
    if index.meta["eval"] is not None:
        try:
            indexes.append(index.eval_index())
        except UserError as fault:
            report.problems.append(Fault(fault.where, 0, "index", fault.what))
    for one in indexes:
        _verify_index(one, report, max_pixels)
    return report


def _verify_index(index: StreamIndex, report: VerifyReport, max_pixels: int) -> None:
    gone = set()
    report.samples += len(index)
    report.known += [Fault(**fault) for fault in index.meta["faults"]]
    report.notes += index.fault_lines()
    for place, (location, note) in enumerate(zip(index.shards, index.meta["shards"], strict=True)):
        report.shards += 1
        report.bytes += note["bytes"]
        try:
            report.problems += _verify_shard(location, note, index.records().ending)
        except (UserError, OSError) as fault:
            gone.add(place)
            report.problems.append(Fault(note["path"], 0, "missing", str(fault)))
    shard_of = index.column("shard")
    lost = np.isin(shard_of, list(gone))
    report.unreadable += int(lost.sum())
    readable = np.flatnonzero(~lost)
    with ShardReader(index, max_pixels, decode=True) as reader:
        for start in range(0, len(readable), _AT_ONCE):
            for found in _examine(reader, readable[start : start + _AT_ONCE].tolist()):
                if isinstance(found, Fault):
                    report.unreadable += 1
                    report.problems.append(found)


def _examine(reader: ShardReader, places: list[int]) -> list[Sample | Fault]:
    try:
        return [found for _, found in reader.examine(places)]
    except UserError as fault:  # from a URL, bytes that never come as indexed are an error
        if len(places) > 1:
            return [found for place in places for found in _examine(reader, [place])]
        index, place = reader.index, places[0]
        shard = index.meta["shards"][int(index.column("shard")[place])]["path"]
        return [Fault(shard, int(index.column("json_offset")[place]), "fetch", fault.what)]


def _verify_shard(location: str, note: dict, record: str) -> list[Fault]:
    """The shard's faults; none where it is byte for byte the one that was indexed, for then they were known."""
    with contextlib.closing(locations.open_binary(location)) as raw:
        stream = HashingStream(raw)
        faults = [found for found in scan_groups(stream, note["path"], record) if isinstance(found, Fault)]
    if stream.position != note["bytes"]:
        detail = f"{stream.position} bytes; {note['bytes']} were indexed"
        return [*faults, Fault(note["path"], min(stream.position, note["bytes"]), "size", detail)]
    if stream.hexdigest() != note["sha256"]:
        return [*faults, Fault(note["path"], 0, "checksum", "SHA-256 differs from the indexed one")]
    return []
