"""Rows as the field's data sets write them, one reader a format; all give a `Record`.

A row is a conversation: prompts and answers in turns, any number of pictures, a system prompt or none. Picture marks
(`<image>`) become `PICTURE` and stand where the row puts them; but marks of all its pictures at the very start of the
first prompt are dropped with the blank lines around them, as pictures without a mark stand there anyway. A value of
null counts as absent. What a row says besides goes into `meta`, for the scorers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamcvit.data.files.taken import Taken, checksum
from streamcvit.data.instructions import UNNAMED, Naming, Parts
from streamcvit.data.references import BadRow, Reference, one_reference, references
from streamcvit.data.sample import PICTURE, Picture, Sample, Turn, picture_count

BAD_SHARE = 0.05
"""More bad rows than this share of a file stop the import: it is more likely the wrong format than bad data."""

SPARE = " " * 1000
"""Behind a row's id when the row is judged: room for its task in front, or a number behind."""

_MARK = re.compile(r"<image>|<img>[^<]*</img>|<ImageHere>")
_FRONT = re.compile(rf"(?:\s*{PICTURE})+\s*")
_OTHER_MEDIA = re.compile(r"(?m)^\s*<(video|audio)>|<(video|audio)>\s*$")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
PICTURE_KEYS = ("image", "images")
"""Where a row names its pictures."""


@dataclass(frozen=True)
class Record:
    """What a row says, before its pictures are looked at.

    Attributes:
        sample_id: its id as text; empty where the row has none.
        answers: one reference or more to the last prompt.
        prompt: the last prompt; None where question and instruction are apart already.
        question, whole: used where `prompt` is None.
        instruction: what the row itself says is its instruction; empty: nothing.
        pictures: where they lie, as the row gives it; empty where they lie beside the row (in shards).
        count: how many pictures the row asks for; None: it does not say, so as many as lie beside it.
        task: empty where the row names none.
        meta: what else the row says (`answer_bbox`, `size` ...).
        system, turns: as of a `Sample`.
    """

    sample_id: str
    answers: tuple[str, ...]
    prompt: str | None = None
    question: str = ""
    instruction: str = ""
    pictures: tuple[Reference, ...] = ()
    count: int | None = None
    task: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    turns: tuple[Turn, ...] = ()
    whole: str | None = None

    def parts(self, naming: Naming = UNNAMED, key: str = "") -> Parts:
        """The last prompt's question and instruction.

        Args:
            naming: how the task names its instructions.
            key: what a wording is drawn by.

        Raises:
            BadRow: the field that should hold the instruction holds no text.
        """
        own = self.instruction
        if naming.field and (given := self.meta.get(naming.field)) is not None:
            if not isinstance(given, str):
                raise BadRow("shape", f"{naming.field!r}, which names the instruction, is {given!r:.80} and no text")
            own = _plain(given).strip()
        if self.prompt is not None:
            return naming.split(self.prompt, own, key)
        if naming.wording == "given" and (own or not naming.wordings):
            return Parts(self.question, self.instruction, self.whole, bool(own))
        prompt = "\n".join(filter(None, [self.question, self.instruction])) if self.whole is None else self.whole
        return naming.split(prompt, own, key)

    def sample(self, sample_id: str, task: str, pictures: Sequence[Picture] = (), parts: Parts | None = None) -> Sample:
        """The row as a sample, which can be written and read again; `parts` are those of its last prompt.

        Raises:
            ValueError: it cannot: as one of our records the row would be nested too deep, or too long, or its texts
                mark another number of pictures.
        """
        return self.checked(sample_id, task, pictures, parts)[0]

    def checked(
        self, sample_id: str, task: str, pictures: Sequence[Picture] = (), parts: Parts | None = None
    ) -> tuple[Sample, bytes]:
        """As `sample`, and its `text_bytes`."""
        question, instruction, whole, _ = self.parts() if parts is None else parts
        sample = Sample(
            sample_id, task, question, instruction, self.answers, tuple(pictures), self.meta, self.system, self.turns,
            whole,
        )  # fmt: skip
        return sample, sample.readable_bytes()

    def split(self) -> list[Record]:
        """One record of each of its questions; each keeps the turns before it, which it may speak of."""
        if not self.turns:
            return [self]
        prompts = [turn.prompt for turn in self.turns]
        marks = [prompt.count(PICTURE) for prompt in prompts]
        marked = any(marks) or PICTURE in (self.prompt or self.whole or self.question)
        parts = []
        for place, turn in enumerate(self.turns):
            used = sum(marks[: place + 1])
            count = used if marked else self.count
            shown = _drop_front(prompts[: place + 1], used)
            before = tuple(Turn(prompt, earlier.answer) for prompt, earlier in zip(shown, self.turns, strict=False))
            pictures = self.pictures[:count] if marked else self.pictures
            parts.append(
                Record(
                    self.sample_id, (turn.answer,), shown[-1], pictures=pictures, count=count, task=self.task,
                    meta=self.meta, system=self.system, turns=before[:place],
                )
            )  # fmt: skip
        return [*parts, self]


class Ids:
    """Gives every id once: one that comes again becomes `id#2`, `id#3` ..., whichever of these is still free."""

    def __init__(self) -> None:
        self._taken = Taken()
        self._count: Counter[str] = Counter()

    def free(self, name: str) -> str:
        """`name`, or the next free one after it."""
        free = name
        while checksum(free.encode()) in self._taken:
            self._count[name] += 1
            free = f"{name}#{self._count[name] + 1}"
        return free

    def take(self, name: str) -> str:
        """The same, which is free no more."""
        self._taken.add(checksum((free := self.free(name)).encode()))
        return free


def read_canonical(row: Any) -> Record:
    """Our own records (`Sample.text_bytes`)."""
    one = Sample.from_record(row, [Picture(b"")] * picture_count(row))
    return Record(
        one.sample_id, one.answers, None, one.question, one.instruction, (), len(one.pictures), one.task, one.meta,
        one.system, one.turns, one.whole,
    )  # fmt: skip


def read_llava(row: Any) -> Record:
    """LLaVA and ShareGPT conversations, `{"id", "image", "conversations": [{"from", "value"}, ...]}`: CoIN, SMoLoRA's
    CVIT, UCIT, MLLM-CL, LLaVA's mixes. `image` is one picture or a list of them."""
    return _conversation(row, "conversations", "from", "value")


def read_swift(row: Any) -> Record:
    """ms-swift and OpenAI messages, `{"messages": [{"role", "content"}, ...], "images": [...]}`: StrCVIT, TRL, Qwen.

    `content` is text or a list of parts: `{"type": "text", "text"}`, `{"type": "image", "image"}`, `{"type":
    "image_url", "image_url": {"url"}}`; an image part without a picture takes the next of `images`.
    """
    return _conversation(row, "messages", "role", "content")


def read_question_answer(row: Any) -> Record:
    """Rows of one question, `{"question_id", "image", "text", "answer"}`, and the columns of a table.

    `question_id` may be called `id`, `text` `question`; `answer` may list several references; an `instruction`, where
    there is one, stands behind the question. What else a row has (`answer_bbox`, `size`, `unit` ...) goes into `meta`
    for the scorer.
    """
    row = _object(row)
    (name, one), (what, text), (ref, answer) = (
        _either(row, *keys) for keys in (("question_id", "id"), ("text", "question"), ("answer", "answers"))
    )
    if not isinstance(text, str) or not text.strip():
        raise BadRow("shape", "'text' (or 'question') is missing or empty")
    answers = tuple(_answer(each) for each in (answer if isinstance(answer, list) else [answer]))
    if not answers:
        raise BadRow("shape", "'answer' is an empty list")
    own = row.get("instruction") or ""
    if not isinstance(own, str):
        raise BadRow("shape", f"'instruction' is {own!r:.80} and no text")
    marked, marks = _marked(text)
    (prompt,), pictures, count = _place([_prompt(marked)], [None] * marks, references(row, *PICTURE_KEYS))
    meta = _rest(row, {name, what, ref, "instruction", *PICTURE_KEYS})
    own = _plain(own).strip()
    return Record(
        _identity(name, one), answers, prompt, instruction=own, pictures=pictures, count=count, meta=meta
    )  # fmt: skip


FORMATS: dict[str, Callable[[Any], Record]] = {
    "streamcvit": read_canonical,
    "llava": read_llava,
    "swift": read_swift,
    "qa": read_question_answer,
}
"""Format name -> reader of one row; readers raise `BadRow` (or ValueError) with what is wrong."""


def _conversation(row: Any, name: str, who: str, what: str) -> Record:
    row = _object(row)
    turns = row.get(name)
    if not isinstance(turns, list):
        raise BadRow("shape", f"{name!r} is missing or no list")
    systems: list[str] = []
    prompts: list[str] = []
    answers: list[str] = []
    inline: list[Reference | None] = []
    for number, turn in enumerate(turns):
        role, text, given = _turn(turn, name, who, what)
        if role == "system" and not prompts:
            systems.append(text)
        elif role == "user" and len(prompts) == len(answers):
            prompts.append(text)
            inline += given
        elif role == "assistant" and len(prompts) == len(answers) + 1:
            answers.append(text)
        else:
            raise BadRow("turns", f"turns must alternate, a question first; turn {number} is of {turn[who]!r}")
    if not prompts or len(answers) < len(prompts):
        raise BadRow("turns", f"the last of {len(turns)} turns must be an answer" if turns else f"{name!r} is empty")
    if isinstance(row.get("system"), str) and (text := _plain(row["system"]).strip()) and text not in systems:
        systems.insert(0, text)
    prompts, pictures, count = _place(prompts, inline, references(row, *PICTURE_KEYS))
    meta = _rest(row, {"id", name, "system", *PICTURE_KEYS})
    before = tuple(Turn(prompt, answer) for prompt, answer in zip(prompts, answers[:-1], strict=False))
    return Record(
        _identity("id", row.get("id")), (answers[-1],), prompts[-1], pictures=pictures, count=count, meta=meta,
        system="\n".join(systems), turns=before,
    )  # fmt: skip


def _turn(turn: Any, name: str, who: str, what: str) -> tuple[str, str, list[Reference | None]]:
    """A turn's role, its text (a question's with its pictures marked), and the picture of each mark that names one."""
    if not (isinstance(turn, dict) and isinstance(turn.get(who), str) and isinstance(turn.get(what), str | list)):
        raise BadRow("shape", f"{name!r} has a turn without text in {who!r} and {what!r}")
    role = _ROLES.get(turn[who].lower())
    if role is None:
        raise BadRow("turns", f"a turn is of {turn[who]!r:.80}; turns of {', '.join(_ROLES)} are read")
    parts = turn[what] if isinstance(turn[what], list) else [{"type": "text", "text": turn[what]}]
    text, inline = "", list[Reference | None]()
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            one, marks = _marked(part["text"]) if role == "user" else (_plain(part["text"]), 0)
            text += one
            inline += [None] * marks
        elif kind in ("image", "image_url", "input_image") and role == "user":
            text += PICTURE
            inline.append(_part_reference(part))
        elif isinstance(kind, str) and re.search("video|audio", kind):
            raise BadRow("media", f"a part of type {kind!r:.80}: video and audio are not read")
        else:
            raise BadRow("shape", f"the content of a turn of {turn[who]!r} has a part {part!r:.80}, which is not read")
    if role == "user" and inline:
        return role, _prompt(text), inline
    if not text.strip():
        raise BadRow("shape", f"the {turn[who]} turn is empty")
    return role, text.strip() if role == "user" else text, inline


def _part_reference(part: Mapping[str, Any]) -> Reference | None:
    for key in ("image", "image_url", "url", "path", "bytes"):
        value = part.get(key)
        if key == "bytes" and value is not None:
            value = {"bytes": value}
        elif key == "image_url" and isinstance(value, dict):
            value = value.get("url")
        if value is not None:
            return one_reference(value)
    return None


def _marked(text: str) -> tuple[str, int]:
    """A prompt with `PICTURE` for each of its marks, and their number."""
    if ("<video>" in text or "<audio>" in text) and (found := _OTHER_MEDIA.search(text)):
        raise BadRow("media", f"the prompt marks {found[0].strip()}: video and audio are not read")
    return _MARK.subn(PICTURE, _plain(text))


def _prompt(marked: str) -> str:
    if not marked.replace(PICTURE, "").strip():
        raise BadRow("shape", "the prompt is empty but for the picture")
    return marked.strip()


def _plain(text: str) -> str:
    return text.replace(PICTURE, " ")


def _place(
    prompts: list[str], inline: Sequence[Reference | None], named: tuple[Reference, ...]
) -> tuple[list[str], tuple[Reference, ...], int | None]:
    """The prompts, the pictures in the order of their marks, and how many the row asks for.

    Args:
        prompts: with their marks.
        inline: for each mark the picture that it names itself, or None.
        named: those the row names beside the texts, for the other marks in turn.
    """
    if not inline:
        return prompts, named, len(named) or None
    rest = iter(named)
    pictures = [next(rest, None) if own is None else own for own in inline]
    over = len(tuple(rest))
    if over or (None in pictures and any(pictures)):
        there = len(named) + sum(own is not None for own in inline)
        raise BadRow("pictures", f"the texts mark the places of {len(inline)} pictures, the row names {there}")
    found = () if None in pictures else tuple(one for one in pictures if one is not None)
    return _drop_front(prompts, len(inline)), found, len(inline)


def _drop_front(prompts: Sequence[str], count: int) -> list[str]:
    """The prompts without the marks at the very start, if these are all `count` marks that they have."""
    front = _FRONT.match(prompts[0])
    if not count or front is None or front[0].count(PICTURE) < count:
        return list(prompts)
    return [prompts[0][front.end() :], *prompts[1:]]


def _object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadRow("shape", f"expected an object, found {type(row).__name__}")
    for key in ("video", "videos", "audio", "audios"):
        if row.get(key):
            raise BadRow("media", f"the row has {key!r}: video and audio are not read")
    return row


def _rest(row: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
    """What else the row says; of a table's columns not those with binary values, for which JSON has no word."""
    return {key: value for key, value in row.items() if key not in used and not _holds_bytes(value)}


def _holds_bytes(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, bytes) or any(map(_holds_bytes, inner))


def _either(row: Mapping[str, Any], key: str, other: str) -> tuple[str, Any]:
    """The one of two keys that the row has, and its value."""
    key = key if row.get(key) is not None or row.get(other) is None else other
    return key, row.get(key)


def _identity(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise BadRow("shape", f"{key!r} is neither text nor an integer")
    return "" if value is None else str(value)


def _answer(value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return _plain(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow("shape", f"the answer {value!r:.80} is neither text nor a number")
