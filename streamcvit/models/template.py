"""How a chat template writes a conversation: the text that the processor reads, and where its answers stand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from streamcvit.data.sample import PICTURE, Sample
from streamcvit.errors import UserError
from streamcvit.models.thoughts import MARKS, has_thoughts, opening_tag, within_thoughts

# What a template's code may raise on a conversation that it was not written for.
_FAULTS = (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
_QUESTION, _ANSWER, _SYSTEM = "QUESTION", "ANSWER", "SYSTEM"
_WORDS = ("yes", "Two", "3", "a cat")
_PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% elif message['role'] == 'user' %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The conversation of a model without a chat template, in LLaVA-1.5's words."""


@dataclass(frozen=True)
class Written:
    """A conversation as the processor and the tokenizer read it.

    Attributes:
        text: everything before the last answer, pictures as the template's placeholders.
        answers: [start, end) in `text` of each earlier answer, its end of turn included; empty where not looked for.
        answer: the last answer, as it is to be tokenised apart from `text`.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    answer: str


class ChatTemplate:
    """Writes conversations as a processor's chat template does.

    What the template puts before an answer (role words, an empty thinking block) belongs to the prompt, in training as
    in generation; what it means is read off a finished conversation, once. A generation prompt that opens a thinking
    block is followed by an answer where the answer holds thoughts; for any other answer the block is closed, or left
    out, as the template itself writes finished turns. With `enable_thinking: true` among the options the thinking
    block, empty or not, is for the model to write.

    Templates that take texts only are given the pictures' placeholders inside the text. So are templates that put all
    pictures of a message in front, where a message has one elsewhere. A template without a system role (it refuses
    one, drops it, or writes it as an answer) gets the system prompt in front of the first prompt, on a line of its own.

    Special tokens that a text spells out (`<image>` in a question, say) are broken up with a space, as they would
    otherwise count as control tokens.

    Args:
        processor: with a tokenizer; its chat template, else the tokenizer's, else a plain one is used.
        options: keyword arguments of the template (`enable_thinking` ...).

    Attributes:
        end_token_id: the token that ends a turn; None: the template writes none.

    Raises:
        UserError: the template refuses a question with its answer, or drops the picture or the answer, or does not
            know one of the options.
    """

    def __init__(self, processor: Any, options: Mapping[str, Any] | None = None) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.options = dict(options or {})
        self._picture = str(processor.image_token)
        specials = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        specials += [self._picture, getattr(processor, "video_token", "")]
        specials = [text for text in specials if text not in MARKS]
        self._control = re.compile("|".join(re.escape(s) for s in sorted(set(specials), key=len, reverse=True) if s))
        own = processor.chat_template or self.tokenizer.chat_template
        self._template: str | None = None if processor.chat_template else own or _PLAIN.replace("IMAGE", self._picture)
        for name in self.options:
            if not re.search(rf"\b{re.escape(name)}\b", str(own or "")):
                raise UserError(
                    f"the chat template reads no {name!r}",
                    where="model.template_options",
                    fix="Leave it out, or look into the model's chat_template.jinja for the name it reads",
                )
        self._as_parts = self._as_images = self._in_place = True
        self._choose_form()
        self._system = self._system_form()
        self._read_frame()

    def write(self, samples: Sequence[Sample], locate: bool = False) -> list[Written | str]:
        """Conversations up to their last answers; where the template cannot write one, why.

        Args:
            samples: conversations.
            locate: say where earlier answers stand.
        """
        messages = [self._messages(sample) for sample in samples]
        try:
            texts: Sequence[str | Exception] = self._render(messages, prompt=True)
        except _FAULTS:
            texts = [self._tried(own) for own in messages]
        written: list[Written | str] = []
        for sample, own, text in zip(samples, messages, texts, strict=True):
            if isinstance(text, Exception):
                written.append(f"the chat template refuses it: {_one_line(text)}")
                continue
            try:
                places = self._places(sample, own, text) if locate and sample.turns else ()
                written.append(self._finish(sample, own, text, places))
            except ValueError as error:
                written.append(str(error))
        return written

    def _tried(self, messages: list[dict]) -> str | Exception:
        try:
            return self._render([messages], prompt=True)[0]
        except _FAULTS as error:
            return error

    def opens_thoughts(self, sample: Sample) -> bool:
        """Whether the sample's prompt leaves a thinking block open."""
        return self._opens and (self._writes_thoughts or has_thoughts(sample.answer))

    def plain(self, text: str) -> str:
        """`text` with the control tokens that it spells out broken up."""
        return self._control.sub(lambda found: found[0][0] + " " + found[0][1:], text)

    def _finish(self, sample: Sample, messages: list[dict], text: str, places: tuple) -> Written:
        """The prompt's end and the answer's start, as the answer holds thoughts or not."""
        answer = self.plain(sample.answer)
        if has_thoughts(answer):
            return Written(text, places, self._thoughts_after(messages, text, answer))
        if self._surplus and text.endswith(self._surplus):
            text = text[: -len(self._surplus)]
        return Written(text + self._lead, places, self._start + answer)

    def _thoughts_after(self, messages: list[dict], text: str, answer: str) -> str:
        """An answer with thoughts as the template writes it behind the generation prompt `text`."""
        try:
            whole = self._render([[*messages, self._said(answer)]], prompt=False)[0]
        except _FAULTS:
            whole = ""
        rest = whole[len(text) :].removesuffix(self._tail) if whole.startswith(text) else ""
        if has_thoughts(rest):
            return rest
        # The template strips thoughts from finished turns: they follow the generation prompt as they are.
        tag = opening_tag(answer) if within_thoughts(text) else ""
        return answer.strip().removeprefix(tag).lstrip("\n") if tag else answer

    def _places(self, sample: Sample, messages: list[dict], text: str) -> tuple[tuple[int, int], ...]:
        """Where earlier answers stand in `text`: between what the template writes around other answers.

        A template may change them (thoughts of earlier turns are usually left out).
        """
        said = [self.plain(turn.answer) for turn in sample.turns]
        held = "".join([text, *said])
        mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in held)
        marks = iter(f"{mark}{k}{mark}" for k in range(len(said)))
        masked = [self._said(next(marks)) if m["role"] == "assistant" else m for m in messages]
        pieces = re.split(f"{mark}\\d+{mark}", self._render([masked], prompt=True)[0])
        if len(pieces) != len(said) + 1 or not text.startswith(pieces[0]):
            raise ValueError("the chat template does not write earlier answers where they belong")
        places, at = [], len(pieces[0])
        for k, (answer, piece) in enumerate(zip(said, pieces[1:], strict=True)):
            if k == len(said) - 1:
                stop = len(text) - len(piece)
            elif text.startswith(answer + piece, at):
                stop = at + len(answer)
            else:
                stop = text.find(piece, at)
            if stop < at or not text.startswith(piece, stop):
                raise ValueError(f"cannot tell where answer {k + 1} stands in what the chat template writes")
            blank = len(piece) - len(piece.lstrip())
            ends = self._end and piece.startswith(self._end, blank)
            at += len(text[at:stop]) - len(text[at:stop].lstrip())
            places.append((at, stop + blank + len(self._end) if ends else stop))
            at = stop + len(piece)
        return tuple(places)

    def _messages(self, sample: Sample) -> list[dict]:
        """The conversation up to its last question."""
        prompts = [self.plain(prompt) for prompt in sample.prompts]
        messages = []
        if sample.system:
            system = self.plain(sample.system)
            if self._system == "front":
                # Where the template puts pictures in front, they stay there.
                front = 0 if self._in_place else len(prompts[0]) - len(prompts[0].lstrip(PICTURE))
                prompts[0] = f"{prompts[0][:front]}{system}\n{prompts[0][front:]}"
            else:
                messages.append({"role": "system", "content": _parts(system) if self._system == "parts" else system})
        for prompt, turn in zip(prompts, sample.turns, strict=False):
            messages += [self._asked(prompt), self._said(self.plain(turn.answer))]
        return [*messages, self._asked(prompts[-1])]

    def _asked(self, prompt: str) -> dict[str, Any]:
        return {"role": "user", "content": self._content(prompt)}

    def _said(self, answer: str) -> dict[str, Any]:
        return {"role": "assistant", "content": self._content(answer)}

    def _content(self, text: str) -> Any:
        """A message's content; `text` with `PICTURE` marks."""
        if not self._as_images or (not self._in_place and PICTURE in text.lstrip(PICTURE)):
            text = self._spelled(text)
        return _parts(text) if self._as_parts else text

    def _spelled(self, text: str) -> str:
        """The picture's placeholder in place of every mark; a line of their own for those in front."""
        front = len(text) - len(text.lstrip(PICTURE))
        line = "\n" if front and not text[front:].startswith("\n") else ""
        return self._picture * front + line + text[front:].replace(PICTURE, self._picture)

    def _render(self, conversations: list[list[dict]], prompt: bool) -> list[str]:
        return self.processor.apply_chat_template(
            conversations, chat_template=self._template, add_generation_prompt=prompt, **self.options
        )

    def _choose_form(self) -> None:
        """Whether the template takes content in parts, pictures among them, and leaves those where they stand."""
        fault, why = None, "drops the picture"
        for self._as_parts, self._as_images in ((True, True), (False, False), (True, False)):
            try:
                shown, bare = self._render([[self._asked(mark + _QUESTION)] for mark in (PICTURE, "")], prompt=True)
                whole = self._render([[self._asked(PICTURE + _QUESTION), self._said(_ANSWER)]], prompt=False)[0]
            except _FAULTS as error:
                fault = fault or error
                continue
            if _QUESTION in shown and _ANSWER in whole and "'type'" not in shown and shown != bare:
                break
            if _QUESTION in shown and _ANSWER not in whole:
                why = "drops the answer"
        else:
            if fault is not None:
                why = f"refuses a question about a picture with its answer: {_one_line(fault)}"
            raise UserError(
                f"the chat template {why}",
                where=str(getattr(self.tokenizer, "name_or_path", "")) or type(self.processor).__name__,
                fix="Put one for conversations with pictures into chat_template.jinja in the model's folder",
            )
        if self._as_images:
            between = self._render([[self._asked(_QUESTION + PICTURE + _ANSWER)]], prompt=True)[0]
            self._in_place = not between.partition(_QUESTION)[2].lstrip().startswith(_ANSWER)

    def _system_form(self) -> str:
        """`parts` or `text`, as the template takes a system prompt; `front` where it has no such role."""
        question = self._asked(_QUESTION)
        for form, content in (("parts", _parts(_SYSTEM)), ("text", _SYSTEM)):
            text = self._tried([{"role": "system", "content": content}, question])
            if isinstance(text, Exception) or _SYSTEM not in text or _QUESTION not in text or "'type'" in text:
                continue
            if text != self._tried([{"role": "assistant", "content": content}, question]):
                return form
        return "front"

    def _read_frame(self) -> None:
        """What stands between the generation prompt and an answer, and what ends one."""
        asked = self._asked(PICTURE + _QUESTION)
        before = self._render([[asked]], prompt=True)[0]
        whole = self._render([[asked, self._said(_ANSWER)]], prompt=False)[0]
        head, _, self._tail = whole.rpartition(_ANSWER)
        found = self._control.match(self._tail.lstrip())
        self._end = found[0] if found else ""
        self.end_token_id: int | None = self.tokenizer.convert_tokens_to_ids(self._end) if found else None
        self._surplus = lead = ""
        opened = within_thoughts(before)
        self._opens, self._writes_thoughts = bool(opened), False
        if head.startswith(before):
            lead = head[len(before) :]
        elif opened and before.startswith(head):
            self._surplus = before[len(head) :]
        elif opened:
            lead = f"\n{opened}\n\n"
        if self.options.get("enable_thinking") is True and (opened or has_thoughts(lead)):
            self._writes_thoughts = True
            self._surplus, self._lead, self._start = "", "", lead or f"\n{opened}\n\n"
            return
        self._lead, self._start = self._cut(before.removesuffix(self._surplus), lead)

    def _cut(self, before: str, lead: str) -> tuple[str, str]:
        """The lead's part that ends the prompt, and the part that the answer's first token holds (a space, mostly).

        Prompt and answer are tokenised apart and must give the tokens of both together. A tokenizer that puts a space
        before every text by itself (SentencePiece) must not get a second one.
        """
        joined = {word: self._ids(before + lead + word) for word in _WORDS}
        for cut in range(len(lead), -1, -1):
            prompt = self._ids(before + lead[:cut])
            for start in dict.fromkeys((lead[cut:], lead[cut:].lstrip(" "))):
                if all(prompt + self._ids(start + word) == ids for word, ids in joined.items()):
                    return lead[:cut], start
        cut = len(lead.rstrip())
        return lead[:cut], lead[cut:]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _parts(text: str) -> list[dict[str, str]]:
    """Content parts: an image for each mark, the texts between."""
    parts: list[dict[str, str]] = []
    for k, piece in enumerate(text.split(PICTURE)):
        if k:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    # Templates may count on a text.
    return parts if any(part["type"] == "text" for part in parts) else [*parts, {"type": "text", "text": ""}]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
