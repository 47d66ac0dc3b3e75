"""Rows as the field's data sets write them, one reader a format; all give a `Record`.

How a prompt comes apart: picture marks (`<image>`) and blank lines around it are dropped; then, where the task lists
its instruction wordings, the longest listed one that the prompt ends with (or starts with) is the instruction;
else the last line is, if there are more lines than one; else the whole prompt is the question and there is no
instruction. So `Sample.prompt` is the published prompt, whichever way it was cut.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamcvit.data.sample import Picture, Sample, picture_count

BAD_SHARE = 0.05
"""More bad rows than this share of a file stop the import: it is more likely the wrong format than bad data."""

SPARE = " " * 1000
"""Behind a row's id when the row is judged: room for its task in front, or a number behind."""

IMAGE_ROOT_MARK = "<STRCVIT_IMAGE_ROOT>"

_PICTURE_MARK = re.compile(r"<image>|<img>[^<]*</img>|<ImageHere>")


class BadRow(Exception):
    """A row that cannot be read; the message says why, `reason` classes it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """What a row says, before its picture is looked at.

    Attributes:
        sample_id: its id as text; empty where the row has none.
        answers: one reference or more.
        prompt: the whole prompt without picture marks; None where question and instruction are apart already.
        question, instruction: used where `prompt` is None.
        pictures: paths of the pictures as the row gives them; empty where they lie beside the row (in shards).
        count: how many pictures the row asks for; None: it does not say, so as many as lie beside it.
        task: empty where the row names none.
        meta: what else the row says (`answer_bbox`, `size` ...).
    """

    sample_id: str
    answers: tuple[str, ...]
    prompt: str | None = None
    question: str = ""
    instruction: str = ""
    pictures: tuple[str, ...] = ()
    count: int | None = None
    task: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, instructions: Sequence[str] = ()) -> tuple[str, str]:
        """Question and instruction; `instructions` are the task's known wordings."""
        if self.prompt is None:
            return self.question, self.instruction
        return split_prompt(self.prompt, instructions)

    def sample(
        self, sample_id: str, task: str, pictures: Sequence[Picture] = (), instructions: Sequence[str] = ()
    ) -> Sample:
        """The row as a sample, which can be written and read again.

        Raises:
            ValueError: it cannot: as one of our records the row would be nested too deep, or too long.
        """
        sample = Sample(sample_id, task, *self.parts(instructions), self.answers, tuple(pictures), self.meta)
        sample.readable_bytes()
        return sample


class Ids:
    """Gives every id once: one that comes again becomes `id#2`, `id#3` ..., whichever of these is still free."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._count: Counter[str] = Counter()

    def take(self, name: str) -> str:
        """`name`, or the next free one after it."""
        free = name
        while free in self._taken:
            self._count[name] += 1
            free = f"{name}#{self._count[name] + 1}"
        self._taken.add(free)
        return free


def split_prompt(prompt: str, instructions: Sequence[str] = ()) -> tuple[str, str]:
    """Question and instruction of a prompt, by the rule in this module's docstring."""
    for wording in sorted(instructions, key=len, reverse=True):
        if prompt.endswith(wording):
            return prompt[: -len(wording)].rstrip(), wording
        if prompt.startswith(wording):
            return prompt[len(wording) :].lstrip(), wording
    question, _, instruction = prompt.rpartition("\n")
    return (question.rstrip(), instruction) if question.strip() else (prompt, "")


def read_canonical(row: Any) -> Record:
    """Our own records (`Sample.text_bytes`)."""
    sample = Sample.from_record(row, [Picture(b"")] * picture_count(row))
    texts = (sample.question, sample.instruction)
    return Record(sample.sample_id, sample.answers, None, *texts, (), len(sample.pictures), sample.task, sample.meta)


def read_llava(row: Any) -> Record:
    """LLaVA conversations, `{"id", "image", "conversations": [human, gpt]}`: CoIN, SMoLoRA's CVIT, UCIT, MLLM-CL.

    One turn only: a conversation of several questions is no single sample and is refused.
    """
    row = _object(row)
    turns = _turns(row.get("conversations"), "conversations", "from", "value")
    if [who for who, _ in turns] != ["human", "gpt"]:
        raise BadRow("shape", f"expected one human and one gpt turn, found {[who for who, _ in turns]}")
    meta = _rest(row, "id", "image", "conversations")
    return Record(
        _identity(row, "id"), (turns[1][1],), _clean(turns[0][1]), pictures=_images(row.get("image")), meta=meta
    )


def read_swift(row: Any) -> Record:
    """ms-swift messages, `{"messages": [user, assistant], "images": ["<STRCVIT_IMAGE_ROOT>/..."]}`: StrCVIT."""
    row = _object(row)
    turns = _turns(row.get("messages"), "messages", "role", "content")
    meta = _rest(row, "id", "images", "messages")
    if turns and turns[0][0] == "system":
        meta["system"] = turns.pop(0)[1]
    if [who for who, _ in turns] != ["user", "assistant"]:
        raise BadRow("shape", f"expected one user and one assistant turn, found {[who for who, _ in turns]}")
    images = row.get("images")
    if not isinstance(images, list) or len(images) != 1:
        raise BadRow("shape", f"expected one picture in 'images', found {images!r:.80}")
    first = images[0].get("path") if isinstance(images[0], dict) else images[0]
    return Record(_identity(row, "id"), (turns[1][1],), _clean(turns[0][1]), pictures=_images(first), meta=meta)


def read_question_answer(row: Any) -> Record:
    """Test rows, `{"question_id", "image", "text", "answer"}`; `answer` may list several references.

    What else a row has (`answer_bbox`, `size`, `unit` ...) goes into `meta` for the scorer.
    """
    row = _object(row)
    answer, text = row.get("answer"), row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise BadRow("shape", "'text' is missing or empty")
    answers = tuple(_answer(one) for one in (answer if isinstance(answer, list) else [answer]))
    if not answers:
        raise BadRow("shape", "'answer' is an empty list")
    meta = _rest(row, "question_id", "image", "text", "answer")
    return Record(_identity(row, "question_id"), answers, _clean(text), pictures=_images(row.get("image")), meta=meta)


FORMATS: dict[str, Callable[[Any], Record]] = {
    "streamcvit": read_canonical,
    "llava": read_llava,
    "swift": read_swift,
    "qa": read_question_answer,
}
"""Format name -> reader of one row; readers raise `BadRow` (or ValueError) with what is wrong."""


def _object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadRow("shape", f"expected an object, found {type(row).__name__}")
    return row


def _identity(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow("shape", f"{key!r} is neither text nor an integer")
    return str(value)


def _answer(value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow("shape", f"the answer {value!r:.80} is neither text nor a number")


def _turns(value: Any, name: str, who: str, what: str) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        raise BadRow("shape", f"{name!r} is missing or no list")
    turns = []
    for turn in value:
        if not (isinstance(turn, dict) and isinstance(turn.get(who), str) and isinstance(turn.get(what), str)):
            raise BadRow("shape", f"{name!r} has a turn without text in {who!r} and {what!r}")
        if not turn[what].strip():
            raise BadRow("shape", f"the {turn[who]} turn is empty")
        turns.append((turn[who], turn[what]))
    return turns


def _rest(row: Mapping[str, Any], *known: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in known}


def _clean(prompt: str) -> str:
    cleaned = _PICTURE_MARK.sub("", prompt).strip()
    if not cleaned:
        raise BadRow("shape", "the prompt is empty but for the picture")
    return cleaned


def _images(path: Any) -> tuple[str, ...]:
    return tuple(filter(None, [_image(path)]))


def _image(path: Any) -> str:
    """The picture's path beneath the image root; BadRow where it leads out of it. Shards' records may name none."""
    if path is None:
        return ""
    if not isinstance(path, str) or not path:
        raise BadRow("shape", f"the picture's path is {path!r:.80}")
    path = path.removeprefix(IMAGE_ROOT_MARK).lstrip("/") if path.startswith(IMAGE_ROOT_MARK) else path
    path = path.removeprefix("./")
    if path.startswith("/") or "\\" in path or "\0" in path or ":" in path or ".." in path.split("/"):
        raise BadRow("path", f"the picture {path!r:.80} lies out of the image root")
    return path
