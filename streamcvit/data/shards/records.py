"""What a shard's records say: bytes of a member to a sample, by the format and what the tasks add to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamcvit.data import strictjson
from streamcvit.data.formats import FORMATS, PICTURE_KEYS, Record
from streamcvit.data.instructions import UNNAMED, Naming, Wording
from streamcvit.data.sample import Picture, Sample
from streamcvit.data.shards.labels import LABELS, read_label
from streamcvit.errors import UserError

OWN = "streamcvit"
"""The format of the records that we write."""
MAX_CLASSES = 100_000
"""Names of classes of a task."""

_PICTURE_PARTS = ("image", "image_url", "input_image")


@dataclass(frozen=True)
class Reading:
    """What a task adds to the records in shards of others.

    Attributes:
        question, instruction: what is asked of every picture (formats `txt` and `cls`).
        classes: names of classes by number, or all the texts there are (formats `cls` and `txt`).
        instructions, wording, instruction_field, guess_instruction: how the instruction is named (see `Naming`).
    """

    question: str = ""
    instruction: str = ""
    classes: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    wording: Wording = "given"
    instruction_field: str = ""
    guess_instruction: bool = False

    def naming(self) -> Naming:
        """How the instruction is named.

        Raises:
            UserError: settings that contradict each other.
        """
        return Naming(self.instructions, self.wording, self.instruction_field, self.guess_instruction)

    def check(self, format: str) -> None:
        """ValueError where this is of the wrong types, or does not go with the format."""
        texts = (self.question, self.instruction, self.instruction_field, *self.classes, *self.instructions)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.guess_instruction, bool):
            raise ValueError("what a task asks of its records is no text")
        if self.wording not in ("given", "single", "drawn"):
            raise ValueError(f"unknown wording {self.wording!r:.80}")
        if len(self.classes) > MAX_CLASSES or not all(name.strip() for name in self.classes):
            raise ValueError(f"class names are empty, or more than {MAX_CLASSES}")
        try:
            naming = self.naming()
        except UserError as fault:
            raise ValueError(fault.what) from None
        if format not in LABELS and (self.question or self.instruction or self.classes):
            raise ValueError(f"question, instruction and classes are for the formats {', '.join(LABELS)}")
        if format in LABELS and naming != UNNAMED:
            raise ValueError(f"for the format {format}, give the instruction itself")
        if format in LABELS and not (self.question or self.instruction):
            raise ValueError(f"format {format} holds answers alone; say what is asked (question or instruction)")

    def to_json(self) -> dict[str, Any]:
        """What is not left as it is without any settings."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Reading:
        """Inverse of `to_json`; TypeError where it names other fields."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        return cls(**fields)


class Records:
    """Reads the records of one index.

    Args:
        format: a name in `FORMATS` or `LABELS`.
        readings: by task; those it does not name add nothing.
    """

    def __init__(self, format: str, readings: Mapping[str, Reading] | None = None) -> None:
        self.format, self.readings = format, dict(readings or {})
        self.ending = format if format in LABELS else "json"
        self.pictures = 1 if format in LABELS else None  # of a record that does not say how many
        self._namings = {task: reading.naming() for task, reading in self.readings.items()}

    def read(self, data: bytes, task: str) -> Record:
        """A record.

        Args:
            data: its member's bytes.
            task: that of records which name none.

        Raises:
            ValueError, BadRow: it is none; the message says why.
        """
        if self.format in LABELS:
            asked = self.readings.get(task, Reading())
            return read_label(self.format, data, asked.question, asked.instruction, asked.classes)
        row = strictjson.loads(data)
        return FORMATS[self.format](row if self.format == OWN else _beside(row))

    def sample(self, record: Record, sample_id: str, task: str, pictures: Sequence[Picture]) -> Sample:
        """A record as a sample of this id and task, which can be written and read again.

        Raises:
            ValueError, BadRow: it is none; the message says why.
        """
        naming = self._namings.get(task, UNNAMED)
        return record.sample(sample_id, task, pictures, record.parts(naming, sample_id))

    def find(self, data: bytes, sample_id: str, task: str, pictures: Sequence[Picture]) -> Sample:
        """The sample at a place of the index, which says its id and task.

        Raises:
            ValueError, BadRow: as `read` and `sample`, or the record is of another task.
        """
        if self.format != OWN or task in self.readings:
            record = self.read(data, task)
            _check_task(record.task, task)
            return self.sample(record, sample_id, task, pictures)
        sample = Sample.from_bytes(data, pictures)
        _check_task(sample.task, task)
        if (sample.sample_id, sample.task) == (sample_id, task):
            return sample
        named = replace(sample, sample_id=sample_id, task=task)
        named.readable_bytes()  # the other name may be too long for a record
        return named


def _check_task(said: str, task: str) -> None:
    if said and said != task:
        raise ValueError(f"the record is of task {said!r:.80}, its place in the index of {task!r:.80}")


def _beside(row: Any) -> Any:
    """A row whose pictures lie beside it: where they lay when it was written says nothing any more, only how many."""
    if not isinstance(row, dict):
        return row
    row = dict(row)
    for key in PICTURE_KEYS:
        value = row.get(key)
        if isinstance(value, list):
            row[key] = ["beside"] * len(value)
        elif value not in (None, ""):
            row[key] = "beside"
    if isinstance(messages := row.get("messages"), list):
        row["messages"] = [_without_references(turn) for turn in messages]
    return row


def _without_references(turn: Any) -> Any:
    parts = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(parts, list):
        return turn
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts]
    return {
        **turn,
        "content": [
            {"type": kind} if isinstance(kind, str) and kind in _PICTURE_PARTS else part
            for kind, part in zip(kinds, parts, strict=True)
        ],
    }
