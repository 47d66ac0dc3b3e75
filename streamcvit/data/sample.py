"""What one example of the stream is, and what a task asks of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamcvit.data import strictjson


@dataclass(frozen=True)
class Sample:
    """One instruction-following example.

    Attributes:
        sample_id: unique within its stream.
        task: the named family it belongs to (one metric a task).
        question: what is asked, without the instruction; may be empty.
        instruction: how to answer ("Answer with one word."); its embedding routes experts.
        answers: one reference or more; training learns the first.
        image: the encoded picture, exactly the bytes of its file.
        image_ext: how they are encoded: png, jpg or webp.
        meta: what a scorer needs besides (`choices`, `slots`, `answer_bbox`, `size` ...), JSON values only.
    """

    sample_id: str
    task: str
    question: str
    instruction: str
    answers: tuple[str, ...]
    image: bytes
    image_ext: str = "png"
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """Question and instruction as the model reads them."""
        return "\n".join(part for part in (self.question, self.instruction) if part)

    @property
    def answer(self) -> str:
        """The reference that training learns."""
        return self.answers[0]

    def text_bytes(self) -> bytes:
        """Everything but the picture, as canonical JSON (sorted keys, UTF-8)."""
        record = {
            "id": self.sample_id,
            "task": self.task,
            "question": self.question,
            "instruction": self.instruction,
            "answers": list(self.answers),
            "meta": dict(self.meta),
        }
        return json.dumps(record, sort_keys=True, ensure_ascii=False).encode()

    def readable_bytes(self) -> bytes:
        """`text_bytes` that `from_bytes` reads again: within the limits of `strictjson` on depth and length.

        Raises:
            ValueError: it does not; the message says why.
        """
        text = self.text_bytes()
        self.from_bytes(text, b"", self.image_ext)
        return text

    @classmethod
    def from_bytes(cls, text: bytes, image: bytes, image_ext: str) -> Sample:
        """Inverse of `text_bytes`.

        Raises:
            ValueError: the bytes are no JSON (as `strictjson` reads it) of the expected shape; the message says why.
        """
        return cls.from_record(strictjson.loads(text), image, image_ext)

    @classmethod
    def from_record(cls, record: Any, image: bytes, image_ext: str) -> Sample:
        """As `from_bytes`, from the value of the JSON text."""
        if not isinstance(record, dict):
            raise ValueError("expected a JSON object")
        try:
            strings = [record[key] for key in ("id", "task", "question", "instruction")]
            answers, meta = record["answers"], record.get("meta", {})
        except KeyError as missing:
            raise ValueError(f"key {missing} is missing") from None
        if not all(isinstance(value, str) for value in strings):
            raise ValueError("id, task, question and instruction must be strings")
        if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
            raise ValueError("answers must be a list of one string or more")
        if not isinstance(meta, dict):
            raise ValueError("meta must be an object")
        sample_id, task, question, instruction = strings
        return cls(sample_id, task, question, instruction, tuple(answers), image, image_ext, meta)


@dataclass(frozen=True)
class Quarantined:
    """A position whose bytes cannot be learned from; it keeps its place in the stream.

    Attributes:
        position: place in the stream (-1 where the sample never got one, as in an importer).
        sample_id: its id, as far as known.
        reason: a short class of fault with few distinct values (`json`, `image`, `checksum` ...), a metric label.
        detail: file, row or byte and what is wrong there, for a person.
    """

    position: int
    sample_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class TaskSpec:
    """How a task is answered and judged.

    Attributes:
        name: the task.
        scorer: a name in `streamcvit.evaluation.SCORERS` (the strict family).
        follow: a name in `streamcvit.evaluation.FOLLOW_RULES` (instruction following).
        strcvit: the published scorer of the kind, a name in `streamcvit.evaluation.STRCVIT_SCORERS`; empty: none fits.
        max_new_tokens: decoding stops there at the latest.
        in_average: whether AP and its kin hold this task.
    """

    name: str
    scorer: str
    follow: str
    strcvit: str = ""
    max_new_tokens: int = 16
    in_average: bool = True
