"""Samples to model inputs: one processor call a batch, padding, and the masks that learning and routing need."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.models.batch import ModelInputs
from streamcvit.models.pictures import Asking, PictureRules, reader_of
from streamcvit.models.processor import image_token_of, image_tokens, load_config, load_processor
from streamcvit.models.rows import Rows, UnusableSamples
from streamcvit.models.template import ChatTemplate, Written
from streamcvit.models.thoughts import MARKS

__all__ = ["MAX_CHARACTERS", "TURNS", "Collator", "UnusableSamples"]

TURNS = ("all", "last")
_TOKEN_CHARACTERS = 64  # few tokenizers have a longer token
MAX_CHARACTERS = 1 << 20
"""Characters of a conversation that are tokenised where the model knows no longest row."""


class _Asked(NamedTuple):
    sample: Sample
    written: Written
    answer: list[int]


class Collator:
    """Turns samples into `ModelInputs`; needs the processor only, not the model.

    A pure function: the same samples give the same tensors to the bit in any process, and a row's tokens do not
    depend on its batch mates (only the padding around them does). A row holds the tokens of the whole conversation as
    the chat template writes it (see `ChatTemplate`). The tokens before the last answer are the same in `train` and
    `prompts`, because that answer is tokenised apart and appended, with the end token behind it.

    Args:
        processor: a vision-language processor (image processor and tokenizer).
        max_length: the most tokens a row may have, images, answers and end tokens included; None takes the tokenizer's
            own limit, if it has one. A longer sample is never cut: it raises `UnusableSamples`.
        turns: which answers of a conversation are learned: `all`, or the `last` one only.
        template_options: keyword arguments of the chat template.
        image_token_id: the placeholder of the model's config; None takes the first that the processor names, which may
            be another where its text has a mark that the processor writes placeholders for.
        pictures: bounds on pictures, and settings of the processor's picture half; None: the processor's own.
        chat_template: text of a chat template in the place of the processor's own; empty: that one.

    Attributes:
        image_token_id: the placeholder that image features replace.
        end_token_id: the token that ends the last answer: the chat template's end of turn, else the tokenizer's EOS.
        stop_ids: tokens at which decoding stops.
        lowered: what of the processor was set lower to keep to the bound on tokens; empty: nothing.

    Raises:
        UserError: neither processor nor config name an image token; there is neither end-of-turn nor EOS token; the
            chat template cannot be served, or does not know an option; pictures cannot be prepared as the rules ask.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        turns: str = "all",
        template_options: Mapping[str, Any] | None = None,
        image_token_id: int | None = None,
        pictures: PictureRules | None = None,
        chat_template: str = "",
    ) -> None:
        if turns not in TURNS:
            raise ValueError(f"turns is {turns!r}; it may be {' or '.join(TURNS)}")
        self.processor, self.turns = processor, turns
        self.tokenizer = processor.tokenizer
        limit = max_length or self.tokenizer.model_max_length
        self.max_length: int | None = int(limit) if limit and limit < 1e6 else None
        self.rules = pictures or PictureRules()
        self._source: tuple[Any, ...] | None = None
        options = dict(template_options or {})
        self._given = (processor, max_length, turns, options, image_token_id, self.rules, chat_template)
        if chat_template:
            self.processor = processor = copy.copy(processor)
            processor.chat_template = chat_template
        named = image_tokens(processor) if image_token_id is None else [image_token_id]
        if not named or not getattr(processor, "image_token", None):
            raise UserError(
                f"the processor ({type(processor).__name__}) names no image token: pictures have no place in a text",
                where="image_token",
                fix="Set it in tokenizer_config.json (extra_special_tokens), or use a model of another family",
            )
        self.image_token_id = int(named[0])
        self.template = ChatTemplate(processor, template_options)
        self._reader, self._asking, self.lowered = reader_of(processor, self.image_token_id, self.template, self.rules)
        self._cost: Asking | None = None
        end, eos = self.template.end_token_id, self.tokenizer.eos_token_id
        if end is None and eos is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, and the chat template no end of turn",
                fix="Set eos_token in tokenizer_config.json",
            )
        self.end_token_id: int = end if end is not None else eos
        self.stop_ids: tuple[int, ...] = tuple(sorted({i for i in (end, eos) if i is not None}))
        # PaliGemma's: answers are of a type of their own, without which their tokens would see later ones.
        self._answer_types = {"token_type_ids": int("suffix" in inspect.signature(processor.__call__).parameters)}
        specials = self.tokenizer.added_tokens_decoder.items()
        self._skipped = {number for number, token in specials if token.special and str(token) not in MARKS}
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = pad if pad is not None else self.end_token_id

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        max_length: int | None = None,
        turns: str = "all",
        template_options: Mapping[str, Any] | None = None,
        pictures: PictureRules | None = None,
        chat_template: str = "",
        **kwargs: Any,
    ) -> Collator:
        """A collator of the processor at `name_or_path` (`"embedded"`, a folder, a hub name).

        Pickles as its name and arguments, so it is cheap to send to another process.

        Raises:
            UserError: as `load_processor` and the class itself.
        """
        placeholder = image_token_of(load_config(name_or_path, kwargs.get("revision", "")))
        processor = load_processor(name_or_path, **kwargs)
        collator = cls(processor, max_length, turns, template_options, placeholder, pictures, chat_template)
        options = dict(template_options or {})
        collator._source = (str(name_or_path), max_length, turns, options, collator.rules, chat_template, kwargs)
        return collator

    def unbounded(self) -> Collator:
        """The same for rows of any length, to look at what they take."""
        other = copy.copy(self)
        other.max_length = None
        return other

    def __reduce__(self) -> tuple:
        return (Collator, self._given) if self._source is None else (_rebuild, self._source)

    def train(self, samples: Sequence[Sample]) -> ModelInputs:
        """Right-padded conversations; `answer_mask` is true on the answers to learn and their end tokens.

        Raises:
            UnusableSamples: an image that cannot be decoded, a conversation that the chat template refuses, or a row
                longer than `max_length`.
        """
        asked, reasons = self._write(samples)
        texts = [written.answer for _, written in asked]
        answers = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if asked else []
        ended = [[*answer, self.end_token_id] for answer in answers]
        return self._collate([_Asked(*a, answer) for a, answer in zip(asked, ended, strict=True)], reasons, left=False)

    def micro_batches(self, samples: Sequence[Sample], size: int = 0) -> tuple[ModelInputs, ...]:
        """What `train` gives, `size` samples at a time, all rows as wide as the whole batch's; 0: in one.

        Each part is the processor's own output for its samples, since how pixels of several samples are laid out
        (pictures, tiles or patches first, padded or not) is each processor's affair.

        Raises:
            UnusableSamples: as `train`, with the faults of all parts.
        """
        if not size or size >= len(samples):
            return (self.train(samples),)
        parts: list[ModelInputs] = []
        reasons: dict[str, tuple[str, str]] = {}
        for start in range(0, len(samples), size):
            try:
                parts.append(self.train(samples[start : start + size]))
            except UnusableSamples as fault:
                reasons |= fault.reasons
        if reasons:
            raise UnusableSamples(reasons)
        width = max(part.image_mask.shape[1] for part in parts)
        return tuple(part.widened(width, self.pad_token_id) for part in parts)

    def prompts(self, samples: Sequence[Sample]) -> ModelInputs:
        """Left-padded conversations up to their last answer, ready for generation; `answer_mask` is all false.

        Raises:
            UnusableSamples: as `train`.
        """
        asked, reasons = self._write(samples)
        return self._collate([_Asked(*a, []) for a in asked], reasons, left=True)

    def picture_row(self, width: int, height: int) -> tuple[int, int]:
        """Tokens of a row that asks next to nothing about a picture of that size, and its image tokens.

        Raises:
            PictureTooLong: the picture takes too many tokens however small it is.
        """
        if self._cost is None:
            self._cost = self._asking()
        return self._cost.row((width, height))

    def changed_settings(self) -> dict[str, Any]:
        """Settings of the processor's picture half that are others than its own, as its configuration writes them."""
        was, now = (half.image_processor.to_dict() for half in (self.processor, self._reader.processor))
        return {name: value for name, value in now.items() if value != was.get(name)}

    def decode(self, token_ids: Sequence[Sequence[int]] | torch.Tensor) -> list[str]:
        """The text of each row up to its first stop token, without special tokens and outer whitespace.

        The marks of a thinking block stay, be they special tokens or not.
        """
        rows = token_ids.tolist() if isinstance(token_ids, torch.Tensor) else token_ids
        cut = []
        for row in rows:
            stop = next((k for k, token in enumerate(row) if token in self.stop_ids), len(row))
            cut.append([token for token in row[:stop] if token not in self._skipped])
        texts = self.tokenizer.batch_decode(cut, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def _write(self, samples: Sequence[Sample]) -> tuple[list[tuple[Sample, Written]], dict[str, tuple[str, str]]]:
        """Conversations as the template writes them, and why others cannot be used.

        Those whose text cannot fit are left out first: megabytes take a tokenizer many seconds.
        """
        if not samples:
            raise ValueError("a batch needs one sample or more")
        limit = self.max_length * _TOKEN_CHARACTERS if self.max_length else MAX_CHARACTERS
        reasons = {}
        for sample in samples:
            texts = (sample.system, *sample.prompts, *(turn.answer for turn in sample.turns), sample.answer)
            if (length := sum(map(len, texts))) > limit:
                reasons[sample.sample_id] = ("length", f"{length} characters; at most {limit} are looked at")
        short = [sample for sample in samples if sample.sample_id not in reasons]
        written = self.template.write(short, locate=self.turns == "all") if short else []
        pairs = list(zip(short, written, strict=True))
        reasons |= {sample.sample_id: ("template", text) for sample, text in pairs if isinstance(text, str)}
        return [(sample, text) for sample, text in pairs if isinstance(text, Written)], reasons

    def _collate(self, asked: list[_Asked], reasons: dict[str, tuple[str, str]], left: bool) -> ModelInputs:
        while asked:
            try:
                inputs = self._pad(asked, left)
            except UnusableSamples as fault:
                # All faults at once: the rest may hold others, and a caller leaves samples out once.
                reasons |= fault.reasons
                asked = [row for row in asked if row.sample.sample_id not in reasons]
                continue
            if not reasons:
                return inputs
            break
        raise UnusableSamples(reasons)

    def _pad(self, asked: Sequence[_Asked], left: bool) -> ModelInputs:
        rows = self._read(asked)
        lengths = [len(prompt) + len(row.answer) for prompt, row in zip(rows.ids, asked, strict=True)]
        width = max(lengths)
        shape = (len(asked), width)
        ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        filled = np.zeros(shape, dtype=np.int64)
        is_answer, said = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        fields = {name: np.zeros(shape, dtype=np.int64) for name in rows.fields}
        for i, (prompt, row) in enumerate(zip(rows.ids, asked, strict=True)):
            start = width - lengths[i] if left else 0
            middle, stop = start + len(prompt), start + lengths[i]
            ids[i, start:middle] = prompt
            ids[i, middle:stop] = row.answer
            filled[i, start:stop] = 1
            is_answer[i, middle:stop] = True
            for first, last in rows.said[i]:
                said[i, start + first : start + last] = True
            for name, values in rows.fields.items():
                fields[name][i, start:middle] = values[i]
                fields[name][i, middle:stop] = self._answer_types.get(name, 0)
        image_mask = (ids == self.image_token_id) & (filled == 1) & ~is_answer
        text = {"input_ids": ids, "attention_mask": filled, **fields}
        return ModelInputs(
            {name: torch.from_numpy(array) for name, array in text.items()} | rows.tensors,
            torch.from_numpy(is_answer if left else is_answer | said),
            torch.from_numpy((filled == 1) & ~is_answer & ~said & ~image_mask),
            torch.from_numpy(image_mask),
            tuple(row.sample.routing_text for row in asked),
            tuple(rows.pictures),
            tuple(row.sample.task for row in asked),
        )

    def _read(self, asked: Sequence[_Asked]) -> Rows:
        """The processor's rows, where they fit; those for which the answer makes a row too long are named."""
        rows = self._reader.read([row.sample for row in asked], [row.written for row in asked])
        if self.max_length is not None:
            lengths = [len(prompt) + len(row.answer) for prompt, row in zip(rows.ids, asked, strict=True)]
            reasons = {
                row.sample.sample_id: ("length", f"{n} tokens are more than max_length={self.max_length}{_of(own)}")
                for row, n, own in zip(asked, lengths, rows.pictures, strict=True)
                if n > self.max_length
            }
            if reasons:
                raise UnusableSamples(reasons)
        return rows


def _of(pictures: Sequence[int]) -> str:
    return f", {sum(pictures)} of them of pictures" if pictures else ""


def _rebuild(*given: Any) -> Collator:
    *own, kwargs = given
    return Collator.from_pretrained(*own, **kwargs)
