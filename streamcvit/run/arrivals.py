"""What of an arriving shard or manifest is taken, what has to wait, and what is set aside, with the reason."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamcvit.data import strictjson
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.data.shards.check import check_task
from streamcvit.data.shards.index import LOSSES, StreamIndex, index_of
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.records import OWN
from streamcvit.data.shards.scan import Shard, scan_shards
from streamcvit.data.sources import INDEXED, Source
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, SCORERS, STRCVIT_SCORERS, check_test_set

REASONS = ("damaged", "duplicate", "late", "manifest", "order", "redefined", "stream", "task", "tests")
"""Why something is set aside: it cannot be read whole; it is there already; it came after the end; a manifest that is
none; it has a lower number than one before it; a manifest of a task that is there, saying otherwise; it is of another
stream; no manifest came for its task; a test set that cannot be used."""


class Wait(Exception):
    """It cannot be taken yet; the message says why."""


class Refused(Exception):
    """It is set aside.

    Args:
        reason: of `REASONS`.
        detail: in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Arrived:
    """A shard that was read as a whole.

    Attributes:
        name: in its source.
        table: its rows as in an index; positions ascend from 0.
        note: its entry in an index: path beneath the stream's folder, bytes, sha256.
        stream: what it says of which stream it is; empty: nothing.
    """

    name: str
    table: pa.Table
    note: Mapping[str, Any]
    stream: str = ""

    @property
    def first(self) -> np.ndarray:
        """The row of each sample's first picture."""
        return np.flatnonzero(np.diff(self.table["position"].to_numpy(), prepend=-1))

    def column(self, name: str) -> list[Any]:
        """A column, one value a sample."""
        return self.table[name].take(pa.array(self.first)).to_pylist()


def read_shard(source: Source, name: str, folder: Path) -> Arrived:
    """A complete shard: its rows from the index beside it, or from a scan of all its bytes.

    Args:
        source: where it is.
        name: there.
        folder: of the run's stream.

    Raises:
        Wait: it is not there as a whole.
        Refused: it is damaged.
    """
    try:
        path = source.fetch(name, folder)
    except UserError as fault:
        raise Wait(fault.what) from None
    try:
        if (folder / (path + INDEXED)).is_file():
            return _indexed(name, path, folder)
        scan = scan_shards([Shard(path, str(folder / path))])
    except UserError as fault:
        raise Refused("damaged", fault.what) from None
    if lost := [fault for fault in scan.faults if fault.fatal or fault.reason in LOSSES]:
        raise Refused("damaged", str(lost[0]))
    if not len(scan):
        raise Refused("damaged", "it holds no sample")
    wanted, note = source.checksum(name), scan.shards[0]
    if wanted and wanted != note["sha256"]:
        raise Wait(f"its SHA-256 is {note['sha256'][:12]}..., not {wanted[:12]}... as the checksum beside it says")
    return Arrived(name, scan.table(np.zeros(len(scan), np.int32)), note)


def _indexed(name: str, path: str, folder: Path) -> Arrived:
    index = StreamIndex.read(str(folder / (path + INDEXED)), str(folder))
    if len(index.meta["shards"]) != 1 or index.meta["format"] != OWN or index.meta.get("reading") or not len(index):
        raise Refused("damaged", "the index beside it is not of one shard of our own records")
    note, size = index.meta["shards"][0], (folder / path).stat().st_size
    if size != note["bytes"]:
        raise Wait(f"it has {size} bytes, its index says {note['bytes']}")
    entry = {"path": path, "bytes": note["bytes"], "sha256": note["sha256"]}
    return Arrived(name, index.table, entry, str(index.meta.get("stream", "")))


def check_shard(shard: Arrived, tasks: Mapping[str, TaskSpec], ids: set[str], stream: str, bad_share: float) -> None:
    """Whether a shard fits the stream so far.

    Args:
        shard: what arrived.
        tasks: those there are.
        ids: of all samples of the stream.
        stream: what its shards say of themselves; empty: nothing is asked.
        bad_share: of its samples, whose pictures may not decode.

    Raises:
        Wait: a task has no manifest yet.
        Refused: it is of another stream, holds a sample that is there, or too many that cannot be used.
    """
    if stream and shard.stream and shard.stream != stream:
        raise Refused("stream", f"it is of the stream {shard.stream!r:.80}, not of {stream!r:.80}")
    found = shard.column("sample_id")
    twice = next((one for one, count in Counter(found).items() if count > 1 or one in ids), None)
    if twice is not None:
        raise Refused("duplicate", f"the sample {twice!r:.80} is in the stream already")
    if unknown := sorted(set(shard.column("task")) - set(tasks)):
        raise Wait(f"no manifest of the task {unknown[0]!r:.80} came yet")
    faults = np.array(shard.table["image_fault"].to_pylist(), object) != ""
    broken = len(np.unique(shard.table["position"].to_numpy()[faults]))
    if broken > bad_share * len(found):
        raise Refused("damaged", f"{broken} of {len(found)} samples have pictures that do not decode")


def read_manifest(text: str) -> tuple[TaskSpec, str]:
    """The task that a manifest names, and the name of its test shard.

    Raises:
        Wait: it is no whole JSON text (yet).
        Refused: it is no manifest.
    """
    try:
        said = strictjson.loads(text)
    except ValueError as fault:
        raise Wait(f"it is no whole JSON text: {fault}") from None
    known = {field.name for field in dataclasses.fields(TaskSpec)} - {"name"} | {"task", "test"}
    if not isinstance(said, dict) or not isinstance(said.get("task"), str) or not isinstance(said.get("test"), str):
        raise Refused("manifest", 'it is not of the form {"task": NAME, "test": SHARD, "scorer": ...}')
    if odd := sorted(said.keys() - known):
        raise Refused("manifest", f"it has the unknown key {odd[0]!r:.80}; allowed: {', '.join(sorted(known))}")
    rules = {key: value for key, value in said.items() if key not in ("task", "test")}
    spec = TaskSpec(said["task"], **{"scorer": "exact", "follow": "single_word", **rules})
    try:
        check_task(spec)
        return _known_rules(spec), said["test"]
    except (ValueError, TypeError) as fault:
        raise Refused("manifest", str(fault)) from None


def _known_rules(spec: TaskSpec) -> TaskSpec:
    for kind, rule, known in (
        ("scorer", spec.scorer, SCORERS),
        ("strcvit", spec.strcvit, {"", *STRCVIT_SCORERS}),
        ("follow", spec.follow, FOLLOW_RULES),
    ):
        if rule not in known:
            raise ValueError(f"it names the unknown {kind} {rule!r:.80}")
    return spec


def check_tests(shard: Arrived, spec: TaskSpec, folder: Path) -> None:
    """Whether a task's test set can be scored.

    Raises:
        Refused: it holds samples of other tasks, some that lack what a rule reads, or none that can be read.
    """
    if others := sorted(set(shard.column("task")) - {spec.name}):
        raise Refused("tests", f"the test set {shard.name} holds samples of the task {others[0]!r:.80}")
    chunks = np.full(len(shard.table), -1, np.int32)
    table = shard.table.set_column(shard.table.column_names.index("chunk"), "chunk", pa.array(chunks))
    try:
        index = index_of(folder, table, [shard.note], {spec.name: spec}, one_each=False)
        with ShardReader(index) as reader:
            samples = [one for one in reader.read(range(len(index))) if isinstance(one, Sample)]
        usable = sum(1 for _ in check_test_set(spec, samples))
    except UserError as fault:
        raise Refused("tests", f"{fault.where}: {fault.what}" if fault.where else fault.what) from None
    if not usable:
        raise Refused("tests", f"not one sample of the test set {shard.name} can be read")
