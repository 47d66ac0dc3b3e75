"""Bounds on what a picture may take: scaled down, or the processor set lower, before its tokens fill the row."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from streamcvit.data.sample import Picture, Sample
from streamcvit.errors import UserError
from streamcvit.models.rows import PictureTooLong, RowReader, Rows
from streamcvit.models.template import ChatTemplate, Written

OPTIONS, TOKENS = "model.processor_options", "model.max_picture_tokens"
PROBES = ((640, 480), (480, 480), (360, 640), (640, 256))
"""Pictures that the bound must hold for: of a usual size, and of the shapes that tiling processors tell apart."""
RARE = ((640, 213), (213, 640), (640, 128), (128, 640))
"""Shapes that it holds for too where a setting of the processor can see to it; else such pictures are left out."""
_SMALL = 32
"""Pixels of the long side that a picture is scaled down to at most."""
_STEP = 0.93
_FALLING = (3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16)
# How tensors are handed over is the collator's affair.
_NOT_OURS = {"data_format", "input_data_format", "device", "return_tensors", "disable_grouping"}

Size = tuple[int, int]


@dataclass(frozen=True)
class PictureRules:
    """How pictures are prepared, apart from what the model's own processor says.

    Attributes:
        max_pixels: of a picture; a larger one is scaled down, its aspect kept; 0: no bound.
        max_tokens: image tokens of a picture; 0: no bound.
        options: settings of the processor's picture half in the place of its own, by name.
    """

    max_pixels: int = 0
    max_tokens: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.max_pixels or self.max_tokens or self.options)


class Asking:
    """A processor with some settings of its picture half, and what pictures take with it.

    Args:
        processor: whose picture half is set; it stays as it is.
        options: the settings.
        image_token_id: the placeholder of image features.
        written: a question about one picture.
        told: whether the processor's own word on its tokens holds; None: that is tried out.

    Attributes:
        reader: with those settings.

    Raises:
        UserError: there is no such setting, or it cannot have that value.
    """

    def __init__(
        self,
        processor: Any,
        options: Mapping[str, Any],
        image_token_id: int,
        written: Written,
        told: bool | None = None,
    ) -> None:
        self.options = dict(options)
        self.reader = RowReader(with_options(processor, options), image_token_id, self.options)
        self._written = written
        self._known: dict[Any, int] = {}
        self._told = told

    def tokens(self, size: Size) -> int:
        """Image tokens of a picture of (width, height), or a few more.

        The processor's own word (`_get_num_multimodal_tokens`, which may count the marks around tiles too) where it
        has one that holds for pictures that were really processed; else a blank picture is processed, once for all
        sizes that are cut into the same tiles.
        """
        key = size if self.told else self._tiles(size)
        if key not in self._known:
            self._known[key] = self._ask(size) if self.told else self._try(size)
        return self._known[key]

    @property
    def told(self) -> bool:
        """Whether the processor's own word holds."""
        if self._told is None:
            self._told = all(self._holds(size) for size in (PROBES[0], (50, 70)))
        return self._told

    def _holds(self, size: Size) -> bool:
        told = self._ask(size)
        if not told:
            return False
        row = self._read(size)
        return sum(row.pictures[0]) <= told <= len(row.ids[0])

    def row(self, size: Size) -> tuple[int, int]:
        """Tokens of a row with the question and a blank picture of (width, height), and its image tokens."""
        picture = Image.new("RGB", size, (127, 127, 127))
        if self.reader.fit is not None:
            picture = self.reader.fit(picture)
        row = self.reader.call([self._written], [[picture]])
        return len(row.ids[0]), sum(row.pictures[0])

    def _try(self, size: Size) -> int:
        return sum(self._read(size).pictures[0])

    def _read(self, size: Size) -> Rows:
        return self.reader.call([self._written], [[Image.new("RGB", size)]])

    def _ask(self, size: Size) -> int:
        given = {"images_kwargs": self.options} if self.options else {}
        try:
            told = self.reader.processor._get_num_multimodal_tokens(image_sizes=[size[::-1]], **given)
            return int(told["num_image_tokens"][0])
        except Exception:  # an interface of transformers' own: whatever it raises, the picture itself is asked
            return 0

    def _tiles(self, size: Size) -> Any:
        try:
            return "tiles", self.reader.processor.image_processor.get_number_of_image_patches(*size[::-1], self.options)
        except Exception:  # as above
            return size

    def least(self, size: Size) -> int:
        """The fewest tokens that a picture of (width, height) takes, scaled down as far as it is done."""
        smallest = min(1.0, _SMALL / max(size))
        steps = math.ceil(math.log(smallest) / math.log(_STEP)) if self.told else 0  # processing them takes its time
        scales = [*(_STEP**step for step in range(steps)), 1.0, 0.5, smallest]
        return min(self.tokens(_scaled(size, scale)) for scale in scales)

    def keeps(self, limit: int, sizes: Iterable[Size] = PROBES) -> bool:
        """Whether every picture of these sizes can be made small enough."""
        return all(self.tokens(size) <= limit or self.least(size) <= limit for size in sizes)


class Bounds:
    """Scales pictures down until they keep to rules.

    Args:
        rules: the bounds.
        asking: says what a picture takes.
    """

    def __init__(self, rules: PictureRules, asking: Asking) -> None:
        self.rules, self.asking = rules, asking
        self._sizes: dict[Size, Size] = {}

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture, scaled down where it has to be; the same for the same picture in every process.

        Raises:
            PictureTooLong: it takes too many tokens however small it is.
        """
        size = self.size(picture.size)
        return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)

    def size(self, size: Size) -> Size:
        """The (width, height) that a picture is scaled to."""
        if size not in self._sizes:
            self._sizes[size] = self._by_tokens(self._by_pixels(size))
        return self._sizes[size]

    def _by_pixels(self, size: Size) -> Size:
        pixels, limit = size[0] * size[1], self.rules.max_pixels
        if not 0 < limit < pixels:
            return size
        width, height = _scaled(size, math.sqrt(limit / pixels))
        return min(width, max(1, limit // height)), min(height, max(1, limit // width))  # strips are one pixel high

    def _by_tokens(self, size: Size) -> Size:
        limit = self.rules.max_tokens
        if not limit or (count := self.asking.tokens(size)) <= limit:
            return size
        # Where tokens grow with the area the first scale nearly fits; where they jump, the next that does is taken.
        scale = math.sqrt(limit / count)
        while True:
            found = _scaled(size, scale)
            if self.asking.tokens(found) <= limit:
                return found
            if max(found) <= _SMALL:
                least = self.asking.least(size)
                raise PictureTooLong(
                    f"a picture of {size[0]}x{size[1]} takes at least {least} tokens, max_picture_tokens is {limit}"
                )
            scale = max(scale * _STEP, _SMALL / max(size))


def reader_of(
    processor: Any, image_token_id: int, template: ChatTemplate, rules: PictureRules | None
) -> tuple[RowReader, Callable[[], Asking], str]:
    """What reads pictures and texts under rules.

    Where pictures cannot be made small enough by scaling, the first of the processor's own settings with which they
    are is lowered: those that it calls `max_...`, the long side that it brings pictures to, and cutting into tiles.

    Returns:
        The reader; what tells the cost of pictures with it; what was set lower, empty: nothing.

    Raises:
        UserError: no such setting, a value that it cannot have, or a bound that cannot be kept.
    """

    def ask(options: Mapping[str, Any], told: bool | None = None) -> Asking:
        return Asking(processor, options, image_token_id, _question(template), told)

    if not rules:
        return RowReader(processor, image_token_id), lambda: ask({}), ""
    _check_options(processor, rules.options, ask)
    asking = ask(rules.options)
    said = ""
    if rules.max_tokens:
        asking, said = _lowered(asking, rules, ask)
    if rules.max_pixels or rules.max_tokens:
        asking.reader.fit = Bounds(rules, asking)
    return asking.reader, lambda: asking, said


def with_options(processor: Any, options: Mapping[str, Any]) -> Any:
    """A processor like this one whose picture half has other settings.

    Raises:
        Exception: whatever the picture half has against them.
    """
    if not options:
        return processor
    half = processor.image_processor
    changed = copy.copy(processor)
    changed.image_processor = type(half)(**{**half.to_dict(), **options})
    return changed


def settings_of(processor: Any) -> list[str]:
    """Names that a processor's picture half can be set by: those of its own first."""
    from transformers.processing_utils import ImagesKwargs

    names = list(processor.image_processor.valid_kwargs.__annotations__)
    common = set(ImagesKwargs.__annotations__)
    return sorted((name for name in names if name not in _NOT_OURS), key=lambda name: (name in common, name))


def follow(config: Any, rules: PictureRules | None) -> None:
    """Set what a model's config knows under the same name as its processor (LLaVA-NeXT's `image_grid_pinpoints`)."""
    for name, value in (rules.options if rules else {}).items():
        if hasattr(config, name):
            setattr(config, name, value)


def _check_options(processor: Any, options: Mapping[str, Any], ask: Callable[[Mapping[str, Any]], Asking]) -> None:
    if not options:
        return
    from huggingface_hub.dataclasses import validate_typed_dict

    known = settings_of(processor)
    half = processor.image_processor
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"the processor's picture half ({type(half).__name__}) has no such setting",
                where=f"{OPTIONS}.{name}",
                fix=f"It has {', '.join(known)}",
            )
        try:
            validate_typed_dict(half.valid_kwargs, {name: value})
        except Exception as error:  # of huggingface_hub's own kinds
            raise _impossible(name, value, error.__cause__ or error) from None
    try:
        _try_out(ask, options)
    except UserError:
        raise
    except Exception as fault:  # a processor's refusals are of any kind
        for name, value in options.items():
            try:
                _try_out(ask, {key: other for key, other in options.items() if key != name})
            except Exception:  # noqa: S112 - it is not this one alone
                continue
            raise _impossible(name, value, fault) from fault
        name = next(iter(options))
        raise _impossible(name, options[name], fault) from fault


def _try_out(ask: Callable[[Mapping[str, Any]], Asking], options: Mapping[str, Any]) -> None:
    asking = ask(options)
    for size in ((640, 480), (60, 90)):
        if not asking.row(size)[1]:
            raise ValueError("a picture would take no tokens")


def _impossible(name: str, value: Any, error: BaseException) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return UserError(
        f"the processor cannot work with {value!r} ({reason})",
        where=f"{OPTIONS}.{name}",
        fix="Give it a value of the kind that the model's preprocessor_config.json has, or leave it out",
    )


def _lowered(asking: Asking, rules: PictureRules, ask: Callable[..., Asking]) -> tuple[Asking, str]:
    """The processor with which pictures keep to the bound, and what of it was set lower."""
    limit, found, lowest = rules.max_tokens, None, asking
    half = asking.reader.processor.image_processor
    if asking.keeps(limit):
        found = asking, ""
        if asking.keeps(limit, RARE):
            return found
    for name, value in _rungs(half):
        try:
            lower = ask({**rules.options, name: value}, asking.told)
            if lower.keeps(limit):
                said = f"{name} {_plain(getattr(half, name))} -> {_plain(value)}"
                if lower.keeps(limit, RARE):
                    return lower, said
                found = found or (lower, said)
            lowest = min(lowest, lower, key=lambda one: one.least(PROBES[0]))
        except Exception:  # noqa: S112 - not every value between is one that a processor can have
            continue
    if found is not None:
        return found
    least = max(lowest.least(size) for size in PROBES)
    raise UserError(
        f"a picture takes at least {least} tokens with this processor ({type(asking.reader.processor).__name__}), "
        f"not {rules.max_tokens}",
        where=TOKENS,
        fix=f"Set it to {least} or more, or set the processor itself in {OPTIONS} "
        f"({', '.join(dict.fromkeys(['size', *settings_of(asking.reader.processor)[:5]]))} ...)",
    )


def _rungs(half: Any) -> Iterator[tuple[str, Any]]:
    """Settings of a picture half that may lower what pictures take, from little to much of it."""
    from transformers.processing_utils import ImagesKwargs

    values = {name: getattr(half, name, None) for name in half.valid_kwargs.__annotations__ if name not in _NOT_OURS}
    for name, value in values.items():
        if name.startswith("max_") and type(value) is int:
            yield from ((name, lower) for lower in _falling(value))
    size = dict(values.get("size") or {})
    if edge := size.get("longest_edge"):
        yield from (("size", {**size, "longest_edge": lower}) for lower in _falling(edge))
    for name, value in values.items():
        if value is True and name not in ImagesKwargs.__annotations__:
            yield name, False


def _falling(value: int) -> list[int]:
    if value <= _SMALL:
        return list(range(value - 1, 0, -1))
    return [int(value * share) for share in _FALLING]


def _scaled(size: Size, scale: float) -> Size:
    width, height = (max(1, math.floor(side * scale)) for side in size)
    return min(width, size[0]), min(height, size[1])


def _plain(value: Any) -> str:
    """A setting in few words: of a size only the sides that it has."""
    try:
        return str({key: one for key, one in dict(value).items() if one is not None})
    except (TypeError, ValueError):
        return str(value)


def _question(template: ChatTemplate) -> Written:
    sample = Sample("probe", "probe", "?", "", ("-",), (Picture(b"", "png"),))
    written = template.write([sample], locate=False)[0]
    if isinstance(written, str):
        raise UserError(f"the chat template refuses a question about a picture: {written}", fix="Use the model's own")
    return written
