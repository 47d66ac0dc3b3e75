"""Pictures with a label beside them, as classification and caption sets are packed: `7.jpg` with `7.cls` or `7.txt`.

A label is an answer without a question; what is asked of every picture, the task says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamcvit.data.formats import Record
from streamcvit.data.references import BadRow
from streamcvit.data.sample import PICTURE

MAX_LABEL = 1 << 20
"""Bytes of a label."""


def read_text(label: str, classes: Sequence[str]) -> str:
    """`.txt`: the answer itself, such as a caption; `classes`, where there are any, are all that it may be."""
    if classes and label not in classes:
        raise BadRow("label", f"the label {label!r:.80} is none of the {len(classes)} classes")
    return label


def read_class(label: str, classes: Sequence[str]) -> str:
    """`.cls`: the number of a class, from 0; the answer is its name, or the number where classes have no names."""
    if not (label.isascii() and label.isdigit() and len(label) < 10):
        raise BadRow("label", f"the label {label!r:.80} is no number of a class")
    number = int(label)
    if classes and number >= len(classes):
        raise BadRow("label", f"the label is class {number}; there are names of {len(classes)}, the first of class 0")
    return classes[number] if classes else str(number)


LABELS: dict[str, Callable[[str, Sequence[str]], str]] = {"txt": read_text, "cls": read_class}
"""Ending of a label's member, and name of the format -> its reader, which raises `BadRow` with what is wrong."""


def read_label(format: str, data: bytes, question: str, instruction: str, classes: Sequence[str]) -> Record:
    """The record of a labelled picture.

    Args:
        format: a name in `LABELS`.
        data: the label's bytes: UTF-8, blanks around it do not count.
        question, instruction: what is asked of every picture; one of them at least.
        classes: names by number; empty: there are none.

    Raises:
        BadRow: the label is none.
    """
    if len(data) > MAX_LABEL:
        raise BadRow("label", f"the label has {len(data)} bytes; at most {MAX_LABEL} are read")
    try:
        label = data.decode("utf-8-sig").strip().replace(PICTURE, " ")
    except UnicodeDecodeError as fault:
        raise BadRow("label", f"the label is not UTF-8: {fault}") from None
    if not label:
        raise BadRow("label", "the label is empty")
    return Record("", (LABELS[format](label, classes),), question=question, instruction=instruction)
