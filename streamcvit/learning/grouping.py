"""Samples of like length in one batch: an order inside each chunk that keeps the stream's from afar."""

from __future__ import annotations

import contextlib
import hashlib
import io

import numpy as np
from PIL import Image

from streamcvit.data.sample import Picture, Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.models.collate import Collator, UnusableSamples

MEGABATCH = 50
"""Batches, about, within which samples change places; transformers' `LengthGroupedSampler` has as many."""


_BYTES = 4
"""Of a record's JSON, that make a token, about."""
_PICTURE, _SIDES = 256, (640, 480)
"""Tokens of a picture where the processor cannot be asked, and the pixels of the one that it is asked with."""


def picture_tokens(collator: Collator) -> int:
    """Tokens of a picture of usual size, as this processor takes it."""
    buffer = io.BytesIO()
    Image.new("RGB", _SIDES).save(buffer, "PNG")
    found = []
    for pictures in (2, 1, 0):  # some models take no sample without, some none with two
        sample = Sample("", "", "a", "", ("a",), (Picture(buffer.getvalue()),) * pictures)
        with contextlib.suppress(UnusableSamples):
            found.append(int(collator.train([sample]).tensors["attention_mask"].sum()))
    return found[-2] - found[-1] if len(found) > 1 else _PICTURE


def lengths_of(index: StreamIndex, picture: int) -> np.ndarray:
    """How many tokens each sample has, about, by what the index knows of it: [n] int64.

    Nothing is read but the index: the bytes of a sample's record stand for its texts, and each of its pictures for
    `picture` tokens, whatever its pixels.
    """
    return index.column("json_size") // _BYTES + index.pictures_of * picture


def grouped(order: np.ndarray, stops: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """An order whose batches hold samples of like length.

    Each chunk is cut into equal stretches of about `MEGABATCH` batches. A stretch is sorted by length and cut into
    batches, which then come in an order that the seed draws, so that none goes from short to long. Where a chunk ends
    in a batch that is not full, that one comes last, and which lengths it holds is drawn too. Inside a batch the order
    is the one given.

    Args:
        order: [n] int64, stream position read at each cursor.
        stops: [T] int64, cursor after the last sample of each chunk.
        lengths: [n] by stream position.
        batch_size: samples a batch.
        seed: of the draws; each chunk has its own.

    Returns:
        [n] int64: the same positions, each in the chunk that it was in.
    """
    found = np.array(order)
    start = 0
    for chunk, stop in enumerate(stops.tolist()):
        rng = np.random.default_rng([seed, 7, chunk])
        firsts = np.arange(start, stop, batch_size)
        for stretch in np.array_split(firsts, max(1, round(len(firsts) / MEGABATCH))) if len(firsts) else ():
            places = np.arange(stretch[0], min(stretch[-1] + batch_size, stop))
            batches = _batches(places[np.argsort(lengths[order[places]], kind="stable")], batch_size, rng)
            found[places] = order[np.concatenate([np.sort(batch) for batch in batches])]
        start = stop
    return found


def _batches(places: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Sorted places as shuffled batches, the one that is not full last."""
    full, rest = divmod(len(places), size)
    last = int(rng.integers(full + 1)) * size if rest else len(places)
    short = places[last : last + rest]
    whole = np.concatenate([places[:last], places[last + rest :]]).reshape(full, size)
    return [*whole[rng.permutation(full)], *([short] if rest else [])]


def order_digest(order: np.ndarray) -> str:
    """SHA-256 of an order, the same on every machine."""
    return hashlib.sha256(np.ascontiguousarray(order, dtype="<i8").tobytes()).hexdigest()
