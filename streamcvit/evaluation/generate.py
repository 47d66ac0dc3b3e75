"""Answers from a model: requests tokenised once, images encoded once, batches of like length, greedy decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamcvit.adapters import InstructionEncoder, told_tasks, touched_before_language, tuner_of
from streamcvit.adapters.routing import RoutingInputs
from streamcvit.data.sample import Sample
from streamcvit.evaluation.decode import greedy
from streamcvit.evaluation.features import FeatureStore
from streamcvit.models.base import Base
from streamcvit.models.batch import ModelInputs
from streamcvit.models.collate import UnusableSamples
from streamcvit.models.pieces import Layout, Pieces
from streamcvit.models.thoughts import drop_thoughts
from streamcvit.models.vision import Vision, encode_images, pool, routing_inputs, text_tensors, tower_texts


@dataclass(frozen=True)
class Request:
    """One prompt, tokenised and without padding.

    Attributes:
        sample: what is asked.
        keys: SHA-256 of each picture's bytes, with the number of its image tokens; of all together where the processor
            does not tell their tokens apart. With the prompt's digest where the vision tower reads that (InstructBLIP).
        counts: image tokens of each key's features.
        tokens: per-token tensors [n] by the model's keyword (`input_ids`, token types ...).
        grids: per-picture tensors [pictures, ...] by keyword (`image_grid_thw` ...), without pixels.
        image_mask, prompt_mask: [n] bool, as in `ModelInputs`.
    """

    sample: Sample
    keys: tuple[str, ...]
    counts: tuple[int, ...]
    tokens: dict[str, torch.Tensor]
    grids: dict[str, torch.Tensor]
    image_mask: torch.Tensor
    prompt_mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.image_mask)


class Generator:
    """Answers requests in batches; what a request is answered does not depend on its batch.

    Args:
        base: the base model; image features hold for every adapter that leaves what is before the language model as it
            is (`touched_before_language`), and are computed anew for others.
        instruction_encoder: embeds instructions for routed adapters; None makes one from the model's own embeddings
            when a routed adapter first comes along.
        batch_size: prompts decoded together.
        cache_bytes: image features are kept in memory up to this many bytes.
        thoughts: `drop`: an answer is what follows the model's thoughts; `keep`: thoughts are part of it.
        disk_bytes: what does not fit is kept in a file up to this many bytes, and behind that encoded again each time.
            So is everything for models whose vision outputs cannot be kept apart (`Layout`).
        scratch: folder for that file (`FeatureStore`).

    Attributes:
        store: the image features kept.
    """

    def __init__(
        self,
        base: Base,
        instruction_encoder: InstructionEncoder | None = None,
        batch_size: int = 64,
        cache_bytes: int = 4 << 30,
        thoughts: str = "drop",
        disk_bytes: int = 0,
        scratch: Path | None = None,
    ) -> None:
        self.base, self.thoughts = base, thoughts
        self.batch_size = batch_size
        self.store = FeatureStore(cache_bytes, disk_bytes, scratch)
        self._encoder = instruction_encoder
        self._layout: Layout | None = None
        self._keeps = True

    def prepare(self, samples: Sequence[Sample]) -> list[Request]:
        """Tokenises samples, and encodes the images not seen before, batch by batch.

        Raises:
            UnusableSamples: as `Collator.prompts`, of all batches together.
        """
        requests: list[Request] = []
        reasons: dict[str, tuple[str, str]] = {}
        for start in range(0, len(samples), self.batch_size):
            part = samples[start : start + self.batch_size]
            try:
                inputs = self.base.collator.prompts(part)
            except UnusableSamples as fault:
                reasons |= fault.reasons
                continue
            fresh = _split(part, inputs)
            requests += fresh
            unknown = any(key not in self.store for request in fresh for key in request.keys)
            if self.keeps and unknown and not self.store.full:
                self._encode(inputs.to(self.base.device), fresh)
        if reasons:
            raise UnusableSamples(reasons)
        return requests

    def answer(
        self, model: Any, requests: Sequence[Request], max_new_tokens: int, batch_size: int | None = None
    ) -> list[str]:
        """The text of each request's answer, in the requests' order.

        Args:
            model: the base model, or a PEFT model around it, in eval mode.
            requests: from `prepare`.
            max_new_tokens: decoding stops there at the latest.
            batch_size: another one than the generator's.
        """
        size = batch_size or self.batch_size
        texts = [""] * len(requests)
        # Like lengths together: less padding to compute, and the order is the same each time.
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i]), i))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            answers = self._answer_batch(model, [requests[i] for i in rows], max_new_tokens)
            for i, text in zip(rows, answers, strict=True):
                texts[i] = text
        return texts

    def _answer_batch(self, model: Any, requests: list[Request], max_new_tokens: int) -> list[str]:
        """Answers of one batch; where the device's memory does not suffice, of its halves."""
        try:
            return self._decode(model, requests, max_new_tokens)
        except torch.OutOfMemoryError:
            if len(requests) == 1:
                raise
        # Outside the handler: the exception holds the frames, and with them the memory of the failed try.
        torch.cuda.empty_cache()
        half = len(requests) // 2
        parts = requests[:half], requests[half:]
        return [text for part in parts for text in self._answer_batch(model, part, max_new_tokens)]

    def _decode(self, model: Any, requests: list[Request], max_new_tokens: int) -> list[str]:
        collator = self.base.collator
        texts = collator.decode(self._tokens(model, requests, max_new_tokens))
        if self.thoughts == "keep":
            return texts
        opened = [collator.template.opens_thoughts(request.sample) for request in requests]
        return [drop_thoughts(text, inside) for text, inside in zip(texts, opened, strict=True)]

    def _tokens(self, model: Any, requests: list[Request], max_new_tokens: int) -> list[list[int]]:
        """New tokens of one batch, each row up to its end."""
        collator, device = self.base.collator, self.base.device
        inputs = _join(requests, collator.pad_token_id).to(device)
        vision = self._vision(requests)
        routing = None
        tuner = tuner_of(model)
        if tuner is not None and tuner.needs_routing:
            task = told_tasks(model, inputs.tasks)
            if task is None:
                routing = routing_inputs(self.encoder, inputs, vision)
            else:  # such an adapter reads nothing else
                routing = RoutingInputs(task=task.to(device))
        stops = set(collator.stop_ids) | _eos(self.base.model)
        tokens = greedy(
            model, text_tensors(inputs), vision.given, max_new_tokens, stops, collator.pad_token_id, routing=routing
        )
        return _until_stop(tokens.tolist(), stops)

    @property
    def encoder(self) -> InstructionEncoder:
        """Embeds instructions."""
        if self._encoder is None:
            self._encoder = InstructionEncoder.from_model(self.base.model, self.base.processor.tokenizer)
        return self._encoder

    def routing(self, requests: Sequence[Request]) -> RoutingInputs:
        """What routed adapters route these requests by."""
        inputs = _join(list(requests), self.base.collator.pad_token_id).to(self.base.device)
        return routing_inputs(self.encoder, inputs, self._vision(list(requests)))

    @property
    def keeps(self) -> bool:
        """Whether image features can be kept: the model can join them, and they are the base's own."""
        return self._keeps and not touched_before_language(self.base.model)

    def _vision(self, requests: list[Request]) -> Vision:
        """Features of the requests' pictures."""
        if not any(request.keys for request in requests) or not self.keeps:
            return encode_images(self.base.model, self._inputs(requests), encoder=self.encoder)
        device = self.base.device
        held = dict.fromkeys(key for r in requests for key in r.keys if key in self.store)
        missing = [request for request in requests if any(key not in held for key in request.keys)]
        found: dict[str, Pieces] = {}
        if missing:
            found = self._encode(self._inputs(missing), missing)
            if not self._keeps:
                return self._vision(requests)
        found |= {key: self.store.get(key, device) for key in held if key not in found}
        none = next(iter(found.values()))[0][:0]
        features = tuple(_joined([found[key][0] for key in request.keys], none) for request in requests)
        assert self._layout is not None
        outputs = self._layout.join([found[key] for request in requests for key in request.keys])
        return Vision(outputs, features, pool(features))

    def _inputs(self, requests: list[Request]) -> ModelInputs:
        return self.base.collator.prompts([request.sample for request in requests]).to(self.base.device)

    def _encode(self, inputs: ModelInputs, requests: list[Request]) -> dict[str, Pieces]:
        """Features of every picture of the requests, by key; kept as far as there is room."""
        outputs = encode_images(self.base.model, inputs).outputs
        if outputs is None:
            return {}
        keys = [key for request in requests for key in request.keys]
        counts = [count for request in requests for count in request.counts]
        self._layout = self._layout or Layout.of(outputs, counts)
        pieces = self._layout.cut(outputs, counts) if self._layout else None
        if pieces is None:
            self._keeps = False
            return {}
        found = dict(zip(keys, pieces, strict=True))
        for key, own in found.items():
            self.store.put(key, own)
        return found


def _joined(features: list[torch.Tensor], none: torch.Tensor) -> torch.Tensor:
    return features[0] if len(features) == 1 else torch.cat([none, *features])


def _eos(model: Any) -> set[int]:
    """End tokens that the model's generation config names."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)


def _until_stop(rows: list[list[int]], stops: set[int]) -> list[list[int]]:
    return [row[: next((k for k, token in enumerate(row) if token in stops), len(row))] for row in rows]


def _split(samples: Sequence[Sample], inputs: ModelInputs) -> list[Request]:
    """One request a sample, cut out of a padded batch."""
    shape = inputs.image_mask.shape
    text = text_tensors(inputs)
    numbers = [len(sample.pictures) for sample in samples]
    grids = {name: tensor.split(numbers) for name, tensor in text.items() if tensor.shape != shape}
    names = [name for name in text if name not in grids and name != "attention_mask"]
    requests = []
    read = iter(tower_texts(inputs))
    for i, (sample, counts) in enumerate(zip(samples, inputs.pictures, strict=True)):
        held = inputs.tensors["attention_mask"][i].bool()
        requests.append(
            Request(
                sample,
                _keys(sample, counts, next(read, "") if counts else ""),
                counts,
                {name: text[name][i][held] for name in names},
                {name: each[i] for name, each in grids.items()},
                inputs.image_mask[i][held],
                inputs.prompt_mask[i][held],
            )
        )
    return requests


def _keys(sample: Sample, counts: tuple[int, ...], read: str) -> tuple[str, ...]:
    digests = [hashlib.sha256(picture.data).hexdigest() for picture in sample.pictures]
    if len(digests) != len(counts):
        digests = ["+".join(digests)]
    # A picture may be given to the tower otherwise among others than alone (LLaVA-OneVision's tiles).
    return tuple(f"{digest}/{count}{read}" for digest, count in zip(digests, counts, strict=True))


def _join(requests: list[Request], pad_id: int) -> ModelInputs:
    """A left-padded batch of requests, without pixels."""
    width = max(len(request) for request in requests)

    def pad(rows: list[torch.Tensor], fill: int = 0) -> torch.Tensor:
        out = rows[0].new_full((len(rows), width), fill)
        for i, row in enumerate(rows):
            out[i, width - len(row) :] = row
        return out

    names = dict.fromkeys(name for request in requests for name in request.tokens)
    tensors = {
        # Values that prompts without a picture lack are zero there.
        name: pad(
            [r.tokens[name] if name in r.tokens else torch.zeros(len(r), dtype=torch.long) for r in requests],
            pad_id if name == "input_ids" else 0,
        )
        for name in names
    }
    tensors["attention_mask"] = pad([torch.ones(len(r), dtype=torch.long) for r in requests])
    grids = dict.fromkeys(name for request in requests for name in request.grids)
    tensors |= {name: torch.cat([r.grids[name] for r in requests if name in r.grids]) for name in grids}
    image_mask = pad([r.image_mask for r in requests])
    return ModelInputs(
        tensors,
        torch.zeros_like(image_mask),
        pad([r.prompt_mask for r in requests]),
        image_mask,
        tuple(r.sample.routing_text for r in requests),
        tuple(r.counts for r in requests),
        tuple(r.sample.task for r in requests),
    )
