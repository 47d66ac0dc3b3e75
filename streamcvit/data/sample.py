"""What one example of the stream is, and what a task asks of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamcvit.data import strictjson

PICTURE = "\ufffc"
"""Stands in a text where a picture does (Unicode's object replacement character); no imported text keeps one."""
MAX_PICTURES = 64
"""Pictures a sample may have."""
MAX_TURNS = 256
"""Turns before the last that a conversation may have."""

_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False)


def canonical(record: Any) -> bytes:
    """The bytes of a record as JSON: sorted keys, UTF-8."""
    return _CANONICAL.encode(record).encode()


@dataclass(frozen=True)
class Picture:
    """An encoded picture, exactly the bytes of its file.

    Attributes:
        data: the bytes.
        ext: how they are encoded, a name in `streamcvit.data.images.EXTENSIONS`.
    """

    data: bytes = field(repr=False)
    ext: str = "png"


@dataclass(frozen=True)
class Turn:
    """A question of a conversation and what was answered, before its last question."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One instruction-following example: a conversation of one turn or more, about any number of pictures.

    In its texts (`system` excepted) `PICTURE` marks stand where the pictures stand, in the pictures' order; texts
    without a mark have all pictures in front of the first prompt.

    Attributes:
        sample_id: unique within its stream.
        task: the named family it belongs to (one metric a task).
        question: what is asked last, without the instruction; may be empty.
        instruction: how to answer ("Answer with one word."); its embedding routes experts. Empty: there is none.
        answers: one reference or more to the last question; training learns the first.
        pictures: of all turns, in their order.
        meta: what a scorer needs besides (`choices`, `slots`, `answer_bbox`, `size` ...), JSON values only.
        system: the system prompt; empty: none of the sample's own.
        turns: questions and answers before the last.
        whole: the last prompt, where it is not question, newline, instruction (the instruction stands inside it).
    """

    sample_id: str
    task: str
    question: str
    instruction: str
    answers: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    turns: tuple[Turn, ...] = ()
    whole: str | None = None

    @property
    def prompt(self) -> str:
        """The last question with its instruction, as the model reads them."""
        if self.whole is not None:
            return self.whole
        return "\n".join(part for part in (self.question, self.instruction) if part)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of all turns, the last one included, every picture marked in its place."""
        prompts = (*(turn.prompt for turn in self.turns), self.prompt)
        if self.pictures and not any(PICTURE in prompt for prompt in prompts):
            return (PICTURE * len(self.pictures) + prompts[0], *prompts[1:])
        return prompts

    @property
    def routing_text(self) -> str:
        """What routes by instruction: system prompt and instruction, without pictures; empty where neither is there."""
        text = "\n".join(part for part in (self.system, self.instruction) if part)
        return text.replace(PICTURE, " ").strip()

    @property
    def answer(self) -> str:
        """The reference that training learns."""
        return self.answers[0]

    def text_bytes(self) -> bytes:
        """Everything but the pictures, as canonical JSON (sorted keys, UTF-8).

        Keys that only some samples need (`pictures`: their number unless it is 1, `system`, `turns`, `prompt`) are left
        out elsewhere.
        """
        record: dict[str, Any] = {
            "id": self.sample_id,
            "task": self.task,
            "question": self.question,
            "instruction": self.instruction,
            "answers": list(self.answers),
            "meta": dict(self.meta),
        }
        if len(self.pictures) != 1:
            record["pictures"] = len(self.pictures)
        if self.system:
            record["system"] = self.system
        if self.turns:
            record["turns"] = [[turn.prompt, turn.answer] for turn in self.turns]
        if self.whole is not None:
            record["prompt"] = self.whole
        return canonical(record)

    def readable_bytes(self) -> bytes:
        """`text_bytes` that `from_bytes` reads again: within the limits of `strictjson` on depth and length.

        Raises:
            ValueError: it does not; the message says why.
        """
        text = self.text_bytes()
        self.from_bytes(text, self.pictures)
        return text

    @classmethod
    def from_bytes(cls, text: bytes, pictures: Sequence[Picture]) -> Sample:
        """Inverse of `text_bytes`.

        Raises:
            ValueError: the bytes are no JSON (as `strictjson` reads it) of the expected shape, or ask for another
                number of pictures; the message says why.
        """
        return cls.from_record(strictjson.loads(text), pictures)

    @classmethod
    def from_record(cls, record: Any, pictures: Sequence[Picture]) -> Sample:
        """As `from_bytes`, from the value of the JSON text."""
        if not isinstance(record, dict):
            raise ValueError("expected a JSON object")
        try:
            strings = [record[key] for key in ("id", "task", "question", "instruction")]
            answers, meta = record["answers"], record.get("meta", {})
        except KeyError as missing:
            raise ValueError(f"key {missing} is missing") from None
        system, whole, turns = record.get("system", ""), record.get("prompt", ""), record.get("turns", [])
        if not all(isinstance(value, str) for value in (*strings, system, whole)):
            raise ValueError("id, task, question, instruction, system and prompt must be strings")
        if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
            raise ValueError("answers must be a list of one string or more")
        if not isinstance(meta, dict):
            raise ValueError("meta must be an object")
        if not (isinstance(turns, list) and all(_is_pair(turn) for turn in turns)):
            raise ValueError("turns must be a list of [prompt, answer]")
        sample_id, task, question, instruction = strings
        sample = cls(
            sample_id, task, question, instruction, tuple(answers), tuple(pictures), meta, system,
            tuple(Turn(*turn) for turn in turns), whole if "prompt" in record else None,
        )  # fmt: skip
        check_pictures(sample, picture_count(record))
        return sample


def picture_count(record: Any) -> int:
    """How many pictures one of our records asks for.

    Raises:
        ValueError: it is none, or its `pictures` is no such number.
    """
    if not isinstance(record, dict):
        raise ValueError("expected a JSON object")
    count = record.get("pictures", 1)
    if type(count) is not int or not 0 <= count <= MAX_PICTURES:
        raise ValueError(f"pictures must be a number from 0 to {MAX_PICTURES}")
    return count


def check_pictures(sample: Sample, count: int) -> None:
    """ValueError where a sample has not `count` pictures, marks others than its pictures, or has too many turns."""
    if len(sample.pictures) != count:
        raise ValueError(f"the record asks for {count} pictures, {len(sample.pictures)} are there")
    if count > MAX_PICTURES:
        raise ValueError(f"the sample has {count} pictures; at most {MAX_PICTURES} are allowed")
    if len(sample.turns) > MAX_TURNS:
        raise ValueError(
            f"the conversation has {len(sample.turns)} turns before the last; at most {MAX_TURNS} are read"
        )
    last = [sample.question, sample.instruction] if sample.whole is None else [sample.whole]
    marks = "".join([*last, *[turn.prompt for turn in sample.turns]]).count(PICTURE)
    if marks not in (0, count):
        raise ValueError(f"the texts mark the places of {marks} pictures, the sample has {count}")
    if PICTURE in "".join([sample.system, *sample.answers, *[turn.answer for turn in sample.turns]]):
        raise ValueError("a system prompt or an answer marks the place of a picture")


def _is_pair(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


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
