"""Questions as samples: one that a person asks, and rows of any format, which need no reference answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamcvit.data.files.spool import Spool
from streamcvit.data.files.taskrows import look_at
from streamcvit.data.formats import FORMATS, PICTURE_KEYS, Record
from streamcvit.data.instructions import UNNAMED, Naming
from streamcvit.data.references import BadRow, references
from streamcvit.data.sample import Picture, Sample
from streamcvit.errors import UserError

_UNANSWERED = "-"  # readers want a reference, which a question has none of; it is never looked at
_CANONICAL = {"id", "task", "question", "instruction", "answers"}


def question(
    text: str,
    images: Sequence[str | Path] = (),
    *,
    system: str = "",
    instruction: str = "",
    task: str = "",
    naming: Naming = UNNAMED,
) -> Sample:
    """One question as a sample.

    Args:
        text: the question; `<image>` marks say where the pictures stand, without marks they stand in front.
        images: files of pictures.
        system: the system prompt; empty: none.
        instruction: how to answer, which routed adapters route by; stands behind the question.
        task: of the run; its `max_new_tokens` hold.
        naming: finds the instruction in a text that holds it already.

    Raises:
        UserError: no question, or a picture that is not there or of no kind that is read.
    """
    if not text.strip():
        raise UserError("there is no question", fix="Ask one with --question TEXT")
    pictures = [picture_of(str(image), "") for image in images]
    bad = next((one for one in pictures if isinstance(one, BadRow)), None)
    if bad is not None:
        raise UserError(f"cannot be asked about: {bad}", where="--image", fix="Give a PNG, JPEG, WebP, GIF or BMP file")
    row = {"text": text, "answer": _UNANSWERED, "instruction": instruction}
    try:
        record = replace(FORMATS["qa"](row), system=system)
        return sample_of(record, "question", task, [one for one in pictures if isinstance(one, Picture)], naming)
    except (BadRow, ValueError) as fault:
        raise UserError(
            f"the question cannot be asked: {fault}", fix="Mark as many places as there are pictures"
        ) from None


def sample_of(record: Record, name: str, task: str, pictures: Sequence[Picture], naming: Naming) -> Sample:
    """A question as the sample that is asked; BadRow where its texts mark another number of pictures."""
    if record.count not in (None, len(pictures)):
        raise BadRow("pictures", f"the texts mark the places of {record.count} pictures, {len(pictures)} are given")
    parts = record.parts(naming, record.sample_id or name)
    return replace(record.sample(name, task, pictures, parts), sample_id=name)


def picture_of(reference: str | bytes, root: str) -> Picture | BadRow:
    """A picture as a row names it, or why it cannot be had."""
    spool = Spool()
    try:
        return look_at(reference, root, spool).load(spool)
    except BadRow as fault:
        return fault


def format_of(row: Mapping[str, Any]) -> str:
    """The format of a row, by its keys."""
    for key, name in (("conversations", "llava"), ("messages", "swift")):
        if key in row:
            return name
    return "streamcvit" if row.keys() >= _CANONICAL - {"answers"} else "qa"


def record_of(row: Mapping[str, Any], form: str | None) -> Record:
    """What a row says; a reference is put where it has none."""
    form = form or format_of(row)
    row = dict(row)
    if form == "llava" and isinstance(row.get("conversations"), list):
        row["conversations"] = _closed(row["conversations"], "from", "value", "gpt")
    elif form == "swift" and isinstance(row.get("messages"), list):
        row["messages"] = _closed(row["messages"], "role", "content", "assistant")
    elif form == "qa" and row.get("answer") is None and row.get("answers") is None:
        row["answer"] = _UNANSWERED
    elif form == "streamcvit":
        named = references(row, *PICTURE_KEYS)
        row = {"id": "", "task": "", "instruction": "", "answers": [_UNANSWERED], "pictures": len(named)} | row
        return replace(FORMATS[form](row), pictures=named)
    return FORMATS[form](row)


def _closed(turns: list[Any], who: str, what: str, answerer: str) -> list[Any]:
    """A conversation that ends in a question, with a reference behind it."""
    last = turns[-1] if turns else None
    asks = isinstance(last, dict) and str(last.get(who)).lower() in ("human", "user")
    return [*turns, {who: answerer, what: _UNANSWERED}] if asks else turns
