"""The processor's part of a batch: written conversations and pictures to unpadded token rows and picture tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from streamcvit.data.images import decode_image, image_size
from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.models.template import Written

MAX_DECODED = 20_000_000
"""Pixels of a batch's pictures that are held decoded at once (or those of one sample), before the processor brings them
to the model's size: 8 bytes each for LLaVA, up to 58 where a model takes pictures as they are (Qwen-VL)."""
# Integers that tell of one picture. Any others may be indices into the batch they were made for (Molmo's pooling).
_OF_ONE_PICTURE = re.compile(r"(_thw|_sizes?|_shapes?|_masks?|_grids?|_ids|num_\w+|rows|cols)$")
_REFUSALS = (ValueError, TypeError, IndexError, RuntimeError)
_LOCATED = {"return_offsets_mapping": True, "return_text_replacement_offsets": True}


class UnusableSamples(UserError):
    """Some samples of a batch cannot become model inputs; the others can.

    Attributes:
        reasons: sample id -> (class of fault, `image`, `text`, `length` or `template`; what is wrong, for a person).
    """

    def __init__(self, reasons: Mapping[str, tuple[str, str]]) -> None:
        self.reasons = dict(reasons)
        first, (_, detail) = next(iter(self.reasons.items()))
        more = f" (and {len(self.reasons) - 1} more samples)" if len(self.reasons) > 1 else ""
        super().__init__(detail + more, where=f"sample {first}", fix="Leave such samples out, or raise max_length")

    def __reduce__(self) -> tuple:
        return (UnusableSamples, (self.reasons,))


class PictureTooLong(ValueError):
    """A picture takes more tokens than it may, however small it is."""


@dataclass
class Rows:
    """B prompts as the processor gives them, without padding.

    Attributes:
        ids: token ids of each.
        fields: further per-token values (token types ...), by the model's keyword.
        said: token places [start, end) of the earlier answers that were asked for.
        pictures: image tokens of each picture; one number for all of a sample where they cannot be told apart.
        tensors: what the vision tower reads, the pictures of all prompts in order; empty where there is none.
    """

    ids: list[list[int]]
    fields: dict[str, list[list[int]]] = field(default_factory=dict)
    said: list[list[tuple[int, int]]] = field(default_factory=list)
    pictures: list[tuple[int, ...]] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class RowReader:
    """Calls a processor so that no row depends on its batch mates.

    Large pictures are decoded and brought to the model's size group by group; prompts without a picture go apart, as
    many processors refuse them among others; what a processor refuses as a batch, it is given one by one.

    Args:
        processor: with image processor and tokenizer.
        image_token_id: the placeholder that image features replace.
        options: settings of the picture half, named in every call: some processors have defaults for their calls that
            its own attributes do not change.

    Attributes:
        fit: scales a decoded picture down, or raises `PictureTooLong`; None: pictures stay as they are.
    """

    def __init__(self, processor: Any, image_token_id: int, options: Mapping[str, Any] | None = None) -> None:
        self.processor, self.image_token_id, self.options = processor, image_token_id, dict(options or {})
        self.fit: Callable[[Image], Image] | None = None
        self._image_token = processor.tokenizer.convert_ids_to_tokens(image_token_id)

    def read(self, samples: Sequence[Sample], written: Sequence[Written]) -> Rows:
        """Rows of a batch.

        Raises:
            UnusableSamples: a picture that cannot be decoded, or that the processor refuses.
            UserError: the processor gives no pixels, or does not say where earlier answers went.
        """
        parts, reasons, start = [], {}, 0
        ends = _group_ends(samples)
        while start < len(samples):
            stop = ends.pop(0)
            try:
                parts.append(self._group(samples[start:stop], written[start:stop]))
            except UnusableSamples as fault:
                reasons.update(fault.reasons)
            start = stop
            if ends and parts and _bound(parts[-1].tensors):  # these hold for the batch they were made in only
                parts, reasons, start, ends = [], {}, 0, [len(samples)]
        if reasons:
            raise UnusableSamples(reasons)
        return _merged(parts)

    def _group(self, samples: Sequence[Sample], written: Sequence[Written]) -> Rows:
        pictures, faults = [], {}
        for sample in samples:
            try:
                pictures.append([self._fitted(decode_image(picture.data)) for picture in sample.pictures])
            except PictureTooLong as error:
                faults[sample.sample_id] = ("length", str(error))
            except ValueError as error:
                faults[sample.sample_id] = ("image", str(error))
        if faults:
            raise UnusableSamples(faults)
        seeing = [k for k, sample in enumerate(samples) if sample.pictures]
        blind = [k for k, sample in enumerate(samples) if not sample.pictures]
        parts = [
            self._rows([samples[k] for k in places], [written[k] for k in places], [pictures[k] for k in places])
            for places in (seeing, blind)
            if places
        ]
        return _merged(parts, seeing + blind)

    def _fitted(self, picture: Image) -> Image:
        return picture if self.fit is None else self.fit(picture)

    def _rows(self, samples: list[Sample], written: list[Written], pictures: list[list[Image]]) -> Rows:
        """Rows of samples that all have pictures, or all have none."""
        try:
            return self.call(written, pictures)
        except _REFUSALS as error:
            fault = error
        # One by one: some processors refuse ragged batches, and others say only so which sample they refuse.
        rows, faults = [], {}
        for sample, text, own in zip(samples, written, pictures, strict=True):
            try:
                rows.append(self.call([text], [own]))
            except _REFUSALS as error:
                faults[sample.sample_id] = error
        if faults:
            kind = "image" if pictures[0] else "text"
            reasons = {name: (kind, f"the processor refuses it: {error}") for name, error in faults.items()}
            raise UnusableSamples(reasons) from fault
        if any(_bound(row.tensors) for row in rows):
            raise UserError(
                f"the processor ({type(self.processor).__name__}) refuses a batch ({fault}), and what it gives for one "
                "sample cannot be put beside another's",
                fix="Set batch_size to 1, or use a model of another family",
            ) from fault
        return _merged(rows)

    def call(self, written: Sequence[Written], pictures: Sequence[Sequence[Image]]) -> Rows:
        """Rows of texts and their pictures, which are taken as they are; errors as the processor's."""
        # Nested images: Gemma-3 wants one list a sample, and the others flatten it.
        images = [list(own) for own in pictures] if any(pictures) else None
        located = any(text.answers for text in written) or any(len(own) > 1 for own in pictures)
        output = self._processed([text.text for text in written], images, **(_LOCATED if located else {}))
        ids = _lists(output.pop("input_ids"))
        for name in ("attention_mask", "labels"):
            output.pop(name, None)
        offsets, replaced = output.pop("offset_mapping", None), output.pop("text_replacement_offsets", None)
        fields = {name: _lists(rows) for name, rows in output.items() if _is_per_token(rows, ids)}
        tensors = {name: _to_tensor(value) for name, value in output.items() if name not in fields}
        if images is not None and "pixel_values" not in tensors:
            raise UserError(
                f"the processor ({type(self.processor).__name__}) gives no pixel_values, so the model would not see "
                "the images",
                fix="Use the model's own processor",
            )
        if images is None:
            tensors = {}
        swaps = replaced or [[] for _ in ids]
        said = [
            self._places(text, offsets[k] if offsets else None, swaps[k], len(pictures[k]))
            for k, text in enumerate(written)
        ]
        for row, places, text in zip(ids, said, written, strict=True):
            self._check(row, places, text)
        return Rows(
            ids,
            fields,
            said,
            [self._counts(row, swaps[k], len(pictures[k])) for k, row in enumerate(ids)],
            tensors,
        )

    def _processed(self, texts: list[str], images: list[list[Image]] | None, **kwargs: Any) -> dict[str, Any]:
        # A chat template writes the BOS token itself; the tokenizer must not add a second one.
        bos = self.processor.tokenizer.bos_token
        special = not (bos and texts[0].startswith(bos))
        given: dict[str, Any] = {} if images is None else {"images": images}
        if given and self.options:
            given["images_kwargs"] = dict(self.options)
        return dict(self.processor(text=texts, **given, add_special_tokens=special, padding=False, **kwargs))

    def _places(self, text: Written, offsets: Any, swaps: list[dict], pictures: int) -> list[tuple[int, int]]:
        """Tokens of earlier answers, from their characters."""
        if not text.answers:
            return []
        if offsets is None or len(swaps) != pictures:
            raise UserError(
                f"the processor ({type(self.processor).__name__}) does not say where its tokens stand in the text, so "
                "that the answers of earlier turns cannot be found",
                fix="Set learner.turns to last",
            )
        starts, ends = np.asarray(offsets).reshape(-1, 2).T
        places = []
        for span in text.answers:
            # Placeholders before it have been replaced by longer texts.
            first, last = (at + sum(_grown(swap) for swap in swaps if swap["span"][1] <= at) for at in span)
            held = np.flatnonzero((starts < last) & (ends > first))
            places.append((int(held[0]), int(held[-1]) + 1) if len(held) else (0, 0))
        return places

    def _check(self, ids: list[int], places: list[tuple[int, int]], text: Written) -> None:
        """ValueError where the tokens of an earlier answer are others: the processor changed the text (PaliGemma's)."""
        for (first, last), span in zip(places, text.answers, strict=True):
            answer = "".join(text.text[slice(*span)].split())
            if answer not in "".join(self.processor.tokenizer.decode(ids[first:last]).split()):
                raise ValueError("the answers of earlier turns cannot be found among its tokens")

    def _counts(self, row: list[int], swaps: list[dict], pictures: int) -> tuple[int, ...]:
        """Image tokens of each picture of a row."""
        if pictures == 0:
            return ()
        total = row.count(self.image_token_id)
        counts = tuple(swap["replacement"].count(self._image_token) for swap in swaps)
        return counts if len(counts) == pictures > 1 and sum(counts) == total else (total,)


def _grown(swap: dict) -> int:
    (start, end), (new_start, new_end) = swap["span"], swap["new_span"]
    return (new_end - new_start) - (end - start)


def _bound(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether some tensor may hold indices into its batch, so that it cannot be put beside another's."""
    return any(not t.is_floating_point() and not _OF_ONE_PICTURE.search(name) for name, t in tensors.items())


def _merged(parts: Sequence[Rows], order: Sequence[int] | None = None) -> Rows:
    """Rows of all parts; row k of them is the result's row `order[k]`."""
    if len(parts) == 1 and (order is None or list(order) == sorted(order)):
        return parts[0]
    place = np.argsort(range(sum(len(part.ids) for part in parts)) if order is None else order)

    def rows(each: Sequence[list]) -> list:
        flat = [row for part in each for row in part]
        return [flat[k] for k in place]

    fields = {name for part in parts for name in part.fields}
    names = dict.fromkeys(name for part in parts for name in part.tensors)
    return Rows(
        rows([part.ids for part in parts]),
        {
            name: rows([part.fields.get(name) or [[0] * len(row) for row in part.ids] for part in parts])
            for name in sorted(fields)
        },
        rows([part.said for part in parts]),
        rows([part.pictures for part in parts]),
        {name: _stack([part.tensors[name] for part in parts if name in part.tensors]) for name in names},
    )


def _is_per_token(rows: Any, ids: list[list[int]]) -> bool:
    if isinstance(rows, torch.Tensor | np.ndarray):
        rows = rows.tolist() if rows.ndim == 2 and len(rows) == len(ids) else None
    return (
        isinstance(rows, list)
        and len(rows) == len(ids)
        and all(isinstance(row, list) and len(row) == len(own) for row, own in zip(rows, ids, strict=True))
    )


def _lists(rows: Any) -> Any:
    return rows.tolist() if isinstance(rows, torch.Tensor | np.ndarray) else rows


def _group_ends(samples: Sequence[Sample]) -> list[int]:
    """Where groups of neighbours end that have `MAX_DECODED` pixels together, or are one sample."""
    ends: list[int] = []
    held = 0
    for place, sample in enumerate(samples):
        try:
            pixels = sum(width * height for width, height in (image_size(p.data) for p in sample.pictures))
        except ValueError:
            continue  # decoding it says so
        held += pixels
        if held > MAX_DECODED and place > (ends[-1] if ends else 0):
            ends.append(place)
            held = pixels
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
