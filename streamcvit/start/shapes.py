"""From what lies there to rows of a format that is read: tables with other columns, tars, folders of classes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from streamcvit.data import strictjson
from streamcvit.data.files.rows import rows_of
from streamcvit.data.formats import FORMATS, Record
from streamcvit.data.images import HEAD, sniff
from streamcvit.data.locations import NotRegular, open_binary, open_regular
from streamcvit.data.references import BadRow
from streamcvit.data.sample import PICTURE
from streamcvit.data.shards.groups import Group, scan_groups
from streamcvit.data.shards.labels import LABELS, read_label
from streamcvit.data.shards.tar import HashingStream
from streamcvit.start.survey import Source

PEEK = 50
"""Rows by which the format, the columns and the image root are told."""
WHAT, DESCRIBE = "What is in the picture?", "Describe the picture."

_PICTURES = ("image", "images", "file_name", "filename", "image_path", "image_file", "img", "picture", "file", "path")
_QUESTIONS = ("question", "prompt", "query", "input")
_ANSWERS = ("answer", "answers", "label", "class", "category", "caption", "captions", "target", "output", "response")
_IDS = ("question_id", "id")
_TRIED = ("streamcvit", "llava", "swift", "qa")  # our own records are rows with a question and answers too


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; `question` is empty where there is none."""

    picture: str
    question: str
    answer: str
    asked: str = WHAT

    def row(self, raw: Any) -> Any:
        """The row as a question and its answer."""
        if not isinstance(raw, Mapping):
            return raw
        used = {self.picture, self.question, self.answer, "text", *_IDS}
        name = next((raw[key] for key in _IDS if raw.get(key) is not None), None)
        row = {key: value for key, value in raw.items() if key not in used and value is not None}
        row |= {} if name is None else {"question_id": name}
        row |= {"image": raw[self.picture]} if raw.get(self.picture) is not None else {}
        return row | {"text": raw.get(self.question) if self.question else self.asked, "answer": raw.get(self.answer)}

    def __str__(self) -> str:
        asked = f"column {self.question!r}" if self.question else f"{self.asked!r} (no column asks)"
        return f"picture from column {self.picture!r}, question from {asked}, answer from column {self.answer!r}"


def peek(rows: Iterable[tuple[str, int, Any]]) -> list[Any]:
    """The first rows."""
    return [row for _, _, row in islice(rows, PEEK)]


def format_of(rows: Sequence[Any]) -> tuple[str, list[Record], str]:
    """The format that reads most of the rows, what it reads, and the first fault; without a name where none does."""
    tried = [_read(name, rows) for name in _TRIED]
    name, read, fault, _ = max(tried, key=lambda one: (len(one[1]), one[3]))
    return (name if read else ""), read, fault if read or not rows else _none(rows, tried)


def _read(name: str, rows: Sequence[Any]) -> tuple[str, list[Record], str, bool]:
    """As `format_of`, of one format; and whether the rows have its shape, readable or not."""
    read, fault, shaped = list[Record](), "", False
    for row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            read.append(FORMATS[name](row))
        except (BadRow, ValueError) as wrong:
            fault = fault or str(wrong)
            shaped = shaped or (isinstance(wrong, BadRow) and wrong.reason != "shape")
    return name, read, fault, shaped


def _none(rows: Sequence[Any], tried: Sequence[tuple[str, list[Record], str, bool]]) -> str:
    """Why no format reads the rows."""
    first = rows[0]
    if isinstance(first, ValueError):
        return str(first)
    if not isinstance(first, Mapping):
        return f"holds values of type {type(first).__name__}, no rows"
    if shaped := next((fault for _, _, fault, shaped in tried if shaped), ""):
        return shaped
    if {"text", "question"} & first.keys():
        return "questions without answers"
    return f"no rows of a format that is read (keys: {', '.join(map(str, first))[:100]})"


def columns_of(rows: Sequence[Any]) -> Columns | None:
    """The columns of rows that have a picture and an answer, though not as a format names them."""
    tables = [row for row in rows if isinstance(row, Mapping)]
    keys = list(dict.fromkeys(key for row in tables for key in row))

    def one(names: Sequence[str]) -> str:
        return next((key for name in names for key in keys if key.lower() == name), "")

    picture, question, answer = one(_PICTURES), one(_QUESTIONS), one(_ANSWERS)
    if not answer and picture and not question:
        answer = one(("text",))  # of pictures with captions
    elif not question and answer:
        question = one(("text",))
    if not (picture and answer):
        return None
    answers = [str(row.get(answer) or "") for row in tables]
    long = sum(len(text.split()) > 3 for text in answers) > len(answers) / 2
    return Columns(picture, question, answer, DESCRIBE if long else WHAT)


def renamed(rows: Sequence[Any], format: str, records: Sequence[Record]) -> Columns | None:
    """The columns to rename, where a format does not read the rows, or would lose their pictures."""
    if format not in ("", "qa"):
        return None
    columns = columns_of(rows)
    lost = columns is not None and not any(record.count for record in records)
    named = columns is not None and columns.picture in ("image", "images") and bool(format)
    return columns if lost and not named else None


def rows_in(source: Source, root: Path, told: Callable[[str], None] = lambda _: None) -> Iterator[tuple[str, int, Any]]:
    """(file, number in it, row) of a source; rows of tars with their pictures in them.

    Args:
        told: what is wrong with a tar.
    """
    if not source.tar:
        for path, number, row in rows_of(root / source.path):
            yield str(path), number, row
        return
    record = _record(source)
    for file in source.files:
        with contextlib.closing(open_binary(str(file))) as stream:
            number = 0
            for found in scan_groups(HashingStream(stream), file.name, record):
                if isinstance(found, Group):
                    yield str(file), number, _tar_row(found, record)
                    number += 1
                else:
                    told(str(found))


def _record(source: Source) -> str:
    """The ending of the members that say the answers: the first of `json`, `cls`, `txt` that makes a sample."""
    for record in ("json", *sorted(LABELS)):
        with contextlib.closing(open_binary(str(source.files[0]))) as stream:
            if any(isinstance(one, Group) for one in islice(scan_groups(HashingStream(stream), "", record), PEEK)):
                return record
    return "json"


def _tar_row(group: Group, record: str) -> Any:
    try:
        if record in LABELS:
            (label,) = read_label(record, group.record.data, WHAT, "", ()).answers
            row: Any = {"text": DESCRIBE if len(label.split()) > 3 else WHAT, "answer": label}
        else:
            row = strictjson.loads(group.record.data)
            if isinstance(row, dict) and {"question", "instruction", "answers"} <= row.keys():
                row = _of_ours(FORMATS["streamcvit"](row))
    except (BadRow, ValueError) as fault:
        return ValueError(f"key {group.key!r}: {fault}")
    if not isinstance(row, dict):
        return ValueError(f"key {group.key!r}: expected an object")
    if not any(row.get(key) is not None for key in _IDS):
        row["id"] = group.key
    row.pop("image", None)
    if group.pictures:
        row["images"] = [member.data for member in group.pictures]
    else:
        row.pop("images", None)
    return row


def _of_ours(record: Record) -> dict[str, Any]:
    if record.turns:
        raise ValueError("our own records of several turns are read as a stream: `source: shards`")
    prompt = "\n".join(filter(None, [record.question, record.instruction])) if record.whole is None else record.whole
    row = {"id": record.sample_id, "text": prompt.replace(PICTURE, "<image>"), "answer": list(record.answers)}
    return {**record.meta, **row, "instruction": record.instruction}


def class_rows(root: Path, classes: Mapping[str, tuple[Path, Sequence[str]]]) -> Iterator[dict[str, Any]]:
    """A row a picture; the answer is its folder's name. Files that are no pictures are left out."""
    for label, (folder, names) in classes.items():
        for name in names:
            path = (folder / name).relative_to(root).as_posix()
            try:
                with os.fdopen(open_regular(str(folder / name)), "rb") as stream:
                    head = stream.read(HEAD)
            except (NotRegular, FileNotFoundError):
                continue
            if sniff(head):
                yield {"id": path, "image": path, "text": WHAT, "answer": label}


def as_line(row: Any) -> str:
    """A row as a line of JSON, its pictures in base64."""
    return json.dumps(_plain(row), ensure_ascii=False) + "\n"


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, bytes):
        text = base64.b64encode(value).decode("ascii")
        return text if key == "bytes" else {"bytes": text}
    if isinstance(value, Mapping):
        return {name: _plain(one, name) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
