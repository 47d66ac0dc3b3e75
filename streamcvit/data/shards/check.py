"""An index file from elsewhere: what it may unpack to, and what its metadata may say."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamcvit.data.formats import FORMATS
from streamcvit.data.plan import Plan
from streamcvit.data.sample import TaskSpec
from streamcvit.data.shards.labels import LABELS
from streamcvit.data.shards.records import Reading
from streamcvit.data.shards.scan import SCHEMA
from streamcvit.errors import UserError

MAX_INDEX = 1 << 30
"""Bytes of an index file, and of what it unpacks to a row group."""
MAX_TOKENS = 4096
"""The longest answer a task may ask for."""

MAX_NAME = 128
"""Bytes of a task's name: a file system takes 255, and what is written beside a file gets a longer name."""

_NOT_IN_A_NAME = re.compile(r"[/\\\x00-\x1f\x7f]")
_RULE = "it becomes a file's name, so a letter, digit or _ comes first, and no / or \\ or control character is in it"
DAMAGE = (
    pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError
)  # fmt: skip


def read_parquet(raw: bytes) -> tuple[pa.Table, Mapping[bytes, bytes]]:
    """The table and the notes of an index file; any of `DAMAGE` where it is none, or unpacks to too much."""
    texts = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
    file = pq.ParquetFile(io.BytesIO(raw), page_checksum_verification=True, read_dictionary=texts)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    # Values that repeat take next to nothing in a file, so what they unpack to is counted before they are.
    size = max(file.metadata.num_rows * 64, sum(group.total_byte_size for group in groups))
    if size > 4 * MAX_INDEX:
        raise ValueError("it unpacks to more than an index may hold")
    table = file.read(columns=SCHEMA.names).select(SCHEMA.names)
    for name in texts:
        for part in table[name].chunks:
            lengths = pc.binary_length(part.dictionary).take(part.indices)
            if (pc.sum(lengths).as_py() or 0) > MAX_INDEX:
                raise ValueError(f"the column {name} unpacks to more than an index may hold")
    return table.cast(SCHEMA), file.schema_arrow.metadata or {}


def check_meta(meta: Mapping[str, Any]) -> None:
    """Any of `DAMAGE` where the metadata is not what `build_index` writes."""
    if meta["format"] not in {*FORMATS, *LABELS}:
        raise ValueError(f"unknown format {meta['format']!r:.80}")
    for note in meta["shards"]:
        if not (isinstance(note["path"], str) and isinstance(note["sha256"], str) and type(note["bytes"]) is int):
            raise ValueError("a shard's entry is incomplete")
    for fault in meta["faults"]:
        texts, offset = [fault[name] for name in ("shard", "reason", "detail")], fault["offset"]
        odd = fault.keys() - {"shard", "offset", "reason", "detail", "fatal"}
        if odd or not all(isinstance(text, str) for text in texts) or type(offset) is not int:
            raise ValueError("a fault's entry is incomplete")
    if type(meta["n_faults"]) is not int:
        raise ValueError("the faults are not counted")
    if type(meta.get("n_lost", 0)) is not int:
        raise ValueError("the lost samples are not counted")
    tasks = {task["name"] for task in meta["tasks"]}
    for task, added in meta.get("reading", {}).items():
        if task not in tasks:
            raise ValueError(f"it reads records of the task {task!r:.80}, which is not listed")
        Reading.from_json(added).check(meta["format"])
    if meta["format"] in LABELS and meta.get("reading", {}).keys() != tasks:
        raise ValueError("it does not say what is asked of the pictures")
    if not isinstance(meta["eval"], str | None):
        raise ValueError("the test sets' digest is no text")
    for task in meta["tasks"]:
        check_task(TaskSpec(**task))
    try:
        plan = Plan.from_json(meta["plan"])
    except UserError as fault:
        raise ValueError(fault.what) from None
    if len(plan) and list(plan.tasks) != [task["name"] for task in meta["tasks"]]:
        raise ValueError("the plan's tasks are not the stream's")


def check_tasks(tasks: Mapping[str, TaskSpec]) -> None:
    """UserError where a task cannot be used."""
    for spec in tasks.values():
        try:
            check_task(spec)
        except ValueError as fault:
            raise UserError(str(fault), fix="Rename it, or mend its settings") from None


def check_task(spec: TaskSpec) -> None:
    """ValueError where a task cannot be used: its name becomes a file's in a run folder, its rules are looked up."""
    if not isinstance(spec.name, str):
        raise ValueError(f"{spec.name!r:.80} is no name of a task: it is no text")
    odd = _NOT_IN_A_NAME.search(spec.name)
    if odd or not re.match(r"\w", spec.name):
        what = f"holds {odd[0]!r}" if odd else f"starts with {spec.name[0]!r}" if spec.name else "is empty"
        raise ValueError(f"{spec.name!r:.80} is no name of a task: it {what}; {_RULE}")
    if (size := len(spec.name.encode())) > MAX_NAME:
        raise ValueError(f"the task name {spec.name!r:.80} takes {size} bytes; at most {MAX_NAME} are allowed")
    if not all(isinstance(rule, str) for rule in (spec.scorer, spec.follow, spec.strcvit)):
        raise ValueError(f"task {spec.name!r}: scorer, follow and strcvit are names")
    if type(spec.max_new_tokens) is not int or not 1 <= spec.max_new_tokens <= MAX_TOKENS:
        raise ValueError(f"task {spec.name!r}: max_new_tokens is not from 1 to {MAX_TOKENS}")
    if not isinstance(spec.in_average, bool):
        raise ValueError(f"task {spec.name!r}: in_average is neither true nor false")
