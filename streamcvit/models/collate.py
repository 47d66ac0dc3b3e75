"""Samples to model inputs: one processor call a batch, padding, and the masks that learning and routing need."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamcvit.data.images import decode_image, image_size
from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.models.batch import ModelInputs
from streamcvit.models.processor import load_processor

_PROBE = "probe"
_TOKEN_CHARACTERS = 64  # few tokenizers have a longer token
MAX_CHARACTERS = 1 << 20
"""Characters of prompt and answer that are tokenised where the model knows no longest row."""
MAX_DECODED = 20_000_000
"""Pixels of a batch's pictures that are held decoded at once (or one larger picture), before the processor brings them
to the model's size: 8 bytes each for LLaVA, up to 58 where a model takes pictures as they are (Qwen-VL)."""


class UnusableSamples(UserError):
    """Some samples of a batch cannot become model inputs; the others can.

    Attributes:
        reasons: sample id -> (short class of fault, `image` or `length`; what is wrong, for a person).
    """

    def __init__(self, reasons: Mapping[str, tuple[str, str]]) -> None:
        self.reasons = dict(reasons)
        first, (_, detail) = next(iter(self.reasons.items()))
        more = f" (and {len(self.reasons) - 1} more samples)" if len(self.reasons) > 1 else ""
        super().__init__(detail + more, where=f"sample {first}", fix="Leave such samples out, or raise max_length")

    def __reduce__(self) -> tuple:
        return (UnusableSamples, (self.reasons,))


class Collator:
    """Turns samples into `ModelInputs`; needs the processor only, not the model.

    A pure function: the same samples give the same tensors to the bit in any process, and a row's tokens do not
    depend on its batch mates (only the padding around them does). The prompt's tokens in `train` and `prompts` are
    the same because the answer is tokenised apart and appended, with the end token behind it.

    Special tokens that a sample's own text spells out (`<image>` in a question, say) are broken up with a space, as
    they would otherwise count as control tokens.

    Args:
        processor: a vision-language processor (image processor and tokenizer).
        max_length: the most tokens a row may have, image, answer and end token included; None takes the tokenizer's
            own limit, if it has one. A longer sample is never cut: it raises `UnusableSamples`.

    Attributes:
        image_token_id: the placeholder that image features replace.
        end_token_id: the token that ends an answer: the chat template's end of turn, else the tokenizer's EOS.
        stop_ids: tokens at which decoding stops.

    Raises:
        UserError: the processor gives no pixels, or knows neither end-of-turn nor EOS token.
    """

    def __init__(self, processor: Any, max_length: int | None = None) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        limit = max_length or self.tokenizer.model_max_length
        self.max_length: int | None = int(limit) if limit and limit < 1e6 else None
        self._source: tuple[str, int | None, dict[str, Any]] | None = None
        self.image_token_id = int(processor.image_token_ids[0])
        specials = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        specials += [getattr(processor, "image_token", ""), getattr(processor, "video_token", "")]
        self._control = re.compile("|".join(re.escape(s) for s in sorted(set(specials), key=len, reverse=True) if s))
        self._lead, end = self._answer_frame()
        eos = self.tokenizer.eos_token_id
        if end is None and eos is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, and the chat template no end of turn",
                fix="Set eos_token in tokenizer_config.json",
            )
        self.end_token_id: int = end if end is not None else eos
        self.stop_ids: tuple[int, ...] = tuple(sorted({i for i in (end, eos) if i is not None}))
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = pad if pad is not None else self.end_token_id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, max_length: int | None = None, **kwargs: Any) -> Collator:
        """A collator of the processor at `name_or_path` (`"embedded"`, a folder, a hub name).

        Pickles as its name and arguments, so it is cheap to send to another process.

        Raises:
            UserError: as `load_processor`.
        """
        collator = cls(load_processor(name_or_path, **kwargs), max_length)
        collator._source = (str(name_or_path), max_length, kwargs)
        return collator

    def __reduce__(self) -> tuple:
        if self._source is None:
            return (Collator, (self.processor, self.max_length))
        return (_rebuild, self._source)

    def train(self, samples: Sequence[Sample]) -> ModelInputs:
        """Right-padded prompt + answer + end token for each sample; `answer_mask` is true on the last two.

        Raises:
            UnusableSamples: an image that cannot be decoded, or a row longer than `max_length`.
        """
        short, reasons = self._sift(samples)
        texts = [self._lead + self._plain(sample.answer) for sample in short]
        answers = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if short else []
        return self._collate(short, [[*answer, self.end_token_id] for answer in answers], reasons, left=False)

    def prompts(self, samples: Sequence[Sample]) -> ModelInputs:
        """Left-padded prompts, ready for generation; `answer_mask` is all false.

        Raises:
            UnusableSamples: as `train`.
        """
        short, reasons = self._sift(samples)
        return self._collate(short, [[] for _ in short], reasons, left=True)

    def decode(self, token_ids: Sequence[Sequence[int]] | torch.Tensor) -> list[str]:
        """The text of each row up to its first stop token, without special tokens and outer whitespace."""
        rows = token_ids.tolist() if isinstance(token_ids, torch.Tensor) else token_ids
        cut = []
        for row in rows:
            stop = next((k for k, token in enumerate(row) if token in self.stop_ids), len(row))
            cut.append(row[:stop])
        texts = self.tokenizer.batch_decode(cut, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def _sift(self, samples: Sequence[Sample]) -> tuple[list[Sample], dict[str, tuple[str, str]]]:
        """Samples whose text may fit, and why the others cannot: megabytes take a tokenizer many seconds."""
        if not samples:
            raise ValueError("a batch needs one sample or more")
        limit = self.max_length * _TOKEN_CHARACTERS if self.max_length else MAX_CHARACTERS
        reasons = {}
        for sample in samples:
            if (length := len(sample.prompt) + len(sample.answer)) > limit:
                reasons[sample.sample_id] = ("length", f"{length} characters; at most {limit} are looked at")
        return [sample for sample in samples if sample.sample_id not in reasons], reasons

    def _collate(
        self, samples: Sequence[Sample], answers: list[list[int]], reasons: dict[str, tuple[str, str]], left: bool
    ) -> ModelInputs:
        pairs = list(zip(samples, answers, strict=True))
        while pairs:
            try:
                inputs = self._pad([s for s, _ in pairs], [a for _, a in pairs], left)
            except UnusableSamples as fault:
                # All faults at once: the rest may hold others, and a caller leaves samples out once.
                reasons |= fault.reasons
                pairs = [(s, a) for s, a in pairs if s.sample_id not in reasons]
                continue
            if not reasons:
                return inputs
            break
        raise UnusableSamples(reasons)

    def _pad(self, samples: Sequence[Sample], answers: list[list[int]], left: bool) -> ModelInputs:
        prompts, token_fields, tensors = self._process(samples, answers)
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        width = max(lengths)
        shape = (len(samples), width)
        ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        filled = np.zeros(shape, dtype=np.int64)
        is_answer = np.zeros(shape, dtype=bool)
        fields = {name: np.zeros(shape, dtype=np.int64) for name in token_fields}
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start = width - lengths[i] if left else 0
            middle, stop = start + len(prompt), start + lengths[i]
            ids[i, start:middle] = prompt
            ids[i, middle:stop] = answer
            filled[i, start:stop] = 1
            is_answer[i, middle:stop] = True
            for name, rows in token_fields.items():
                fields[name][i, start:middle] = rows[i]
        image_mask = (ids == self.image_token_id) & (filled == 1) & ~is_answer
        text = {"input_ids": ids, "attention_mask": filled, **fields}
        return ModelInputs(
            {name: torch.from_numpy(array) for name, array in text.items()} | tensors,
            torch.from_numpy(is_answer),
            torch.from_numpy((filled == 1) & ~is_answer & ~image_mask),
            torch.from_numpy(image_mask),
            tuple(sample.instruction for sample in samples),
        )

    def _process(
        self, samples: Sequence[Sample], answers: list[list[int]]
    ) -> tuple[list[list[int]], dict[str, list[list[int]]], dict[str, torch.Tensor]]:
        """Prompt ids, further per-token fields (token types ...), and image tensors of a batch, unpadded.

        Large pictures are decoded and brought to the model's size group by group. As no row depends on its batch
        mates, this gives the bits that one call would give.
        """
        parts, reasons, start = [], {}, 0
        for stop in _group_ends(samples):
            try:
                parts.append(self._process_group(samples[start:stop], answers[start:stop]))
            except UnusableSamples as fault:
                reasons.update(fault.reasons)
            start = stop
        if reasons:
            raise UnusableSamples(reasons)
        prompts, fields, tensors = zip(*parts, strict=True)
        return (
            [row for part in prompts for row in part],
            {name: [row for part in fields for row in part[name]] for name in fields[0]},
            {name: _stack([part[name] for part in tensors]) for name in tensors[0]},
        )

    def _process_group(
        self, samples: Sequence[Sample], answers: list[list[int]]
    ) -> tuple[list[list[int]], dict[str, list[list[int]]], dict[str, torch.Tensor]]:
        images, faults = [], {}
        for sample in samples:
            try:
                images.append(decode_image(sample.pictures[0].data))
            except ValueError as error:
                faults[sample.sample_id] = ("image", str(error))
        if faults:
            raise UnusableSamples(faults)
        texts = self._render([self._plain(sample.prompt) for sample in samples])
        try:
            # Nested images: Gemma-3 wants one list a sample, and the others flatten it.
            output = dict(self._call(texts, [[image] for image in images]))
        except ValueError as error:
            raise self._blame(samples, texts, images, error) from error
        prompts = output.pop("input_ids")
        if self.max_length is not None:
            lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
            reasons = {
                sample.sample_id: ("length", f"{n} tokens are more than max_length={self.max_length}")
                for sample, n in zip(samples, lengths, strict=True)
                if n > self.max_length
            }
            if reasons:
                raise UnusableSamples(reasons)
        output.pop("attention_mask", None)
        fields = {name: rows for name, rows in output.items() if _is_per_token(rows, prompts)}
        tensors = {name: _to_tensor(value) for name, value in output.items() if name not in fields}
        if "pixel_values" not in tensors:
            raise UserError(
                f"the processor ({type(self.processor).__name__}) gives no pixel_values, so the model would not see "
                "the images",
                fix="Use the model's own processor",
            )
        return prompts, fields, tensors

    def _call(self, texts: list[str], images: list[list[Any]]) -> Mapping[str, Any]:
        # A chat template writes the BOS token itself; the tokenizer must not add a second one.
        bos = self.tokenizer.bos_token
        special = not (bos and texts[0].startswith(bos))
        return self.processor(text=list(texts), images=images, add_special_tokens=special, padding=False)

    def _blame(
        self, samples: Sequence[Sample], texts: list[str], images: list[Any], error: ValueError
    ) -> UnusableSamples:
        """Which samples the processor refuses, found one by one (Qwen's refuses extreme aspect ratios, say)."""
        reasons = {}
        for sample, text, image in zip(samples, texts, images, strict=True):
            try:
                self._call([text], [[image]])
            except ValueError as own:
                reasons[sample.sample_id] = ("image", f"the processor refuses it: {own}")
        if not reasons:
            raise error
        return UnusableSamples(reasons)

    def _plain(self, text: str) -> str:
        return self._control.sub(lambda found: found[0][0] + " " + found[0][1:], text)

    def _render(self, prompts: Sequence[str]) -> list[str]:
        """The text that the processor reads for each prompt, up to where the answer starts."""
        if self.processor.chat_template is None:
            return [f"USER: {self.processor.image_token}\n{prompt} ASSISTANT:" for prompt in prompts]
        return self.processor.apply_chat_template([[_user(p)] for p in prompts], add_generation_prompt=True)

    def _answer_frame(self) -> tuple[str, int | None]:
        """What stands between prompt and answer, and the id of the end-of-turn token (None: there is none).

        Both are read off the chat template by rendering a finished conversation.
        """
        before = self._render([_PROBE])[0]
        lead, end = " ", None
        if self.processor.chat_template is not None:
            reply = {"role": "assistant", "content": [{"type": "text", "text": "ANSWER"}]}
            whole = self.processor.apply_chat_template([[_user(_PROBE), reply]])[0]
            head, _, tail = whole.rpartition("ANSWER")
            lead = head[len(before) :] if head.startswith(before) else ""
            found = self._control.match(tail.lstrip())
            end = self.tokenizer.convert_tokens_to_ids(found[0]) if found else None
        # A tokenizer that puts a space before every text by itself (SentencePiece) must not get a second one: the
        # lead to take is the one with which prompt and answer apart give the tokens of both together.
        for candidate in dict.fromkeys((lead, lead.rstrip(" "))):
            if all(self._ids(before + candidate + w) == self._ids(before) + self._ids(candidate + w) for w in _WORDS):
                return candidate, end
        return lead, end

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


_WORDS = ("yes", "Two", "3", "a cat")


def _user(prompt: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}


def _is_per_token(rows: Any, prompts: list[list[int]]) -> bool:
    return (
        isinstance(rows, list)
        and len(rows) == len(prompts)
        and all(isinstance(row, list) and len(row) == len(p) for row, p in zip(rows, prompts, strict=True))
    )


def _group_ends(samples: Sequence[Sample]) -> list[int]:
    """Where groups of neighbouring samples end whose pictures have `MAX_DECODED` pixels together, or are one."""
    ends: list[int] = []
    held = 0
    for place, sample in enumerate(samples):
        try:
            width, height = image_size(sample.pictures[0].data)
        except ValueError:
            continue  # decoding it says so
        held += width * height
        if held > MAX_DECODED and place > (ends[-1] if ends else 0):
            ends.append(place)
            held = width * height
    return [*ends, len(samples)]


def _stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The groups' tensors below one another. Processors that give every picture of a batch as many tiles as the one
    with the most (Idefics) fill up with zeros behind; across groups this is done here."""
    if len(parts) == 1:
        return parts[0]
    sides = [max(lengths) for lengths in zip(*(part.shape[1:] for part in parts), strict=True)]
    stacked = parts[0].new_zeros(sum(map(len, parts)), *sides)
    for part, rows in zip(parts, stacked.split([len(part) for part in parts]), strict=True):
        rows[(slice(None), *map(slice, part.shape[1:]))] = part
    return stacked


def _to_tensor(value: Any) -> torch.Tensor:
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
    return tensor.float() if tensor.is_floating_point() else tensor


def _rebuild(name_or_path: str, max_length: int | None, kwargs: dict[str, Any]) -> Collator:
    return Collator.from_pretrained(name_or_path, max_length, **kwargs)
