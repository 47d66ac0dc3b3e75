"""What pictures take of a row, said and checked before a run starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.data.files.rows import files_of, rows_of
from streamcvit.data.images import image_size
from streamcvit.data.locations import is_url
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Picture, Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.embedded.images import SIZE
from streamcvit.errors import UserError
from streamcvit.models.collate import Collator
from streamcvit.models.pictures import TOKENS, PictureRules
from streamcvit.models.rows import PictureTooLong
from streamcvit.questions import picture_of, record_of
from streamcvit.run.loading import collation

USUAL = (640, 480)
"""Of a picture where nothing is known of a stream's own: COCO's most frequent size."""
LOOKED_AT = 32
"""Pictures of a stream whose sizes are looked at."""
_QUICK = 16 << 20  # bytes of a JSON list whose pictures are looked at
_ROOM = 128  # tokens for question and answer

Size = tuple[int, int]


def picture_lines(config: RunConfig, collator: Collator) -> list[str]:
    """What a typical picture of a run takes, of which size, and what was done to keep to a bound.

    Args:
        config: the run.
        collator: of its model and settings.

    Raises:
        UserError: a typical picture alone makes a row longer than `model.max_length`, or cannot be brought to
            `model.max_picture_tokens`: nearly all samples would be left out.
    """
    lines = []
    if collator.lowered:
        lines.append(f"{TOKENS} {collator.rules.max_tokens}: the processor's {collator.lowered}")
    blind, found = _sizes(config)
    sizes = _sorted(found)
    middle = _middle(sizes)
    try:
        tokens, image = collator.picture_row(*middle)
    except PictureTooLong as fault:
        raise UserError(
            str(fault), where=TOKENS, fix="Raise it, or set the processor in model.processor_options"
        ) from None
    limit = collator.max_length
    if limit is not None and tokens > limit and (sizes or not blind):
        raise UserError(
            f"a picture of {_said(middle)} takes {image} tokens and its row {tokens} before anything is asked, more "
            f"than the {limit} that a row may have, so that nearly all samples would be left out",
            where="model.max_length",
            fix=_mend(config, tokens, image, limit, middle),
        )
    whose = f"the middle one of {len(sizes)} looked at" if sizes else "a usual one, as none of the stream is known"
    if blind and not sizes:
        whose = "a usual one, as no row looked at has one"
    if config.stream.source == "embedded":
        whose = "the stream's own size"
    line = f"a {_said(middle)} picture ({whose}) takes {image} tokens; model.max_length is {limit}"
    if sizes and sizes[-1] != middle:
        line += f"; the largest, {_said(sizes[-1])}, {_largest(collator, sizes[-1])}"
    return [*lines, line]


def typical_size(config: RunConfig) -> Size:
    """(width, height) of the middle picture of those of a run that are looked at; a usual one where none is known."""
    return _middle(_sorted(_sizes(config)[1]))


def _sorted(sizes: list[Size]) -> list[Size]:
    return sorted(sizes, key=lambda size: size[0] * size[1])


def _middle(sizes: list[Size]) -> Size:
    return sizes[len(sizes) // 2] if sizes else USUAL


def _largest(collator: Collator, size: Size) -> str:
    try:
        tokens, image = collator.picture_row(*size)
    except PictureTooLong:
        return "too many for model.max_picture_tokens: such samples are left out"
    over = collator.max_length is not None and tokens > collator.max_length
    return f"{image}" + (f": such samples are left out (or set {TOKENS})" if over else "")


def _mend(config: RunConfig, tokens: int, image: int, limit: int, size: Size) -> str:
    fix = f"Set it to {-(-(tokens + _ROOM) // 256) * 256}"
    rules: PictureRules = collation(config)["pictures"]
    bound = limit - (tokens - image) - min(_ROOM, limit // 8)
    try:
        asked = {**collation(config), "pictures": PictureRules(rules.max_pixels, bound, rules.options)}
        Collator.from_pretrained(config.model.name_or_path, **asked).picture_row(*size)
    except (UserError, PictureTooLong):  # it cannot be kept
        return f"{fix}, or set the processor lower in model.processor_options"
    return f"{fix}, or {TOKENS} to {bound}"


def _said(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _sizes(config: RunConfig) -> tuple[int, list[Size]]:
    """How many rows of a stream that were looked at have no picture, and the sizes of pictures of the others.

    There is neither where they cannot be had at once.
    """
    stream = config.stream
    if stream.source == "embedded":
        return 0, [(SIZE, SIZE)]
    if stream.source == "follow":
        return 0, []
    blind, found = 0, []
    for pictures in (_of_shards if stream.source == "shards" else _of_files)(config):
        blind += not pictures
        for picture in pictures:
            with contextlib.suppress(ValueError):  # what is wrong with it is said where the stream is made
                found.append(image_size(picture.data))
    return blind, found


def _of_files(config: RunConfig) -> Iterator[list[Picture]]:
    """Pictures of each of the first rows of every task, where they can be read."""
    root = os.path.expanduser(config.stream.data)
    tasks = [task for task in config.stream.tasks.values() if task.train]
    for task in tasks:
        with contextlib.suppress(UserError, BadRow, ValueError, LookupError, TypeError, AttributeError, OSError):
            path = Path(root, task.train)
            if any(file.suffix == ".json" and file.stat().st_size > _QUICK for file in files_of(path)):
                continue
            for _, _, row in islice(rows_of(path), max(1, LOOKED_AT // len(tasks))):
                named = record_of(row, task.format).pictures
                pictures = [picture_of(one, os.path.join(root, task.images)) for one in named]
                if not any(isinstance(one, BadRow) for one in pictures):
                    yield [one for one in pictures if isinstance(one, Picture)]


def _of_shards(config: RunConfig) -> Iterator[list[Picture]]:
    """Pictures of each of some samples of shards on this machine, drawn by the seed."""
    if is_url(config.stream.data):
        return
    index = StreamIndex.open(config.stream.data)
    places = np.random.default_rng([config.seed, 7]).permutation(len(index))[:LOOKED_AT]
    with ShardReader(index) as reader:
        for row in reader.read(sorted(places.tolist())):
            if isinstance(row, Sample):
                yield list(row.pictures)
