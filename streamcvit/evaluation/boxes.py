"""Boxes written as text: reading them, and how far two overlap."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from streamcvit.errors import UserError

Box = tuple[float, float, float, float]

# A number that is not the tail of a word ("x1", "bbox_2d").
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(\s?%)?(?![A-Za-z_])")
_LOCATION = re.compile(r"<loc([0-9]{4})>")
_EDGE = re.compile(rf"\b([xy](?:min|max))\b[\"'\s]*[:=]\s*{_NUMBER.pattern}")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_UPRIGHT = re.compile(r"\bbox_2d\b")  # Gemini's key: rows before columns
LOCATIONS = 1024  # bins of PaliGemma's location tokens
HAIR = 1.05
"""Shares of the picture may pass 1 by so much: a box drawn to the edge and a little over it."""
_GROUP = re.compile(r"[\[(]([^\[\]()]*)[\])]")
UNITS = ("unit", "percent", "thousandths", "pixels")
ORDERS = ("xy", "yx")


def _numbers(text: str) -> list[tuple[float, bool]]:
    return [(float(value), bool(percent)) for value, percent in _NUMBER.findall(text)]


def _four(text: str) -> list[tuple[float, bool]] | None:
    """The one box that a text holds: its only bracket of four numbers, two brackets of two, or four numbers in all."""
    groups = [found for found in (_numbers(group) for group in _GROUP.findall(text)) if found]
    boxes = [group for group in groups if len(group) == 4]
    if len(boxes) == 1:
        return boxes[0]
    if not boxes and len(groups) == 2 and all(len(group) == 2 for group in groups):
        return groups[0] + groups[1]
    everything = _numbers(text)
    return everything if len(everything) == 4 else None


def _edges(text: str) -> list[tuple[float, bool]] | None:
    """Four edges that a text names (`ymin: 0.1`), each once, as left, top, right and bottom."""
    found = _EDGE.findall(text)
    named = {name: (float(value), bool(percent)) for name, value, percent in found}
    return [named[edge] for edge in _EDGES] if len(found) == len(named) == len(_EDGES) else None


def read_boxes(
    text: str, size: Sequence[float] | None = None, unit: str | None = None, order: str | None = None
) -> Iterator[Box]:
    """The boxes that a text can mean, as (left, top, right, bottom) in 0..1.

    A text must hold exactly one box: brackets or parentheses of four numbers, two corner pairs, four edges by name,
    four location tokens (`<loc0123>`, PaliGemma's), or four numbers in all. Corners in another order are put right.
    Numbers up to 1 (and a hair more, which is cut off) are shares of the picture, numbers with a percent sign percent;
    larger ones are ambiguous and yield both pixels (where `size` is known) and thousandths.

    Args:
        text: an answer.
        size: width and height of the picture in pixels, for answers in pixels.
        unit: one of `UNITS`, where the task says what its numbers are.
        order: one of `ORDERS`, where the task says which number of a corner comes first; else x does, but y in location
            tokens and behind the key `box_2d`.
    """
    if bins := _LOCATION.findall(text):
        if len(bins) == 4:
            top, left, bottom, right = (int(value) / LOCATIONS for value in bins)
            yield _upright(left, top, right, bottom)
        return
    four = edges = _edges(text)
    if four is None and (four := _four(text)) is None:
        return
    values = [value for value, _ in four]
    signs = [percent for _, percent in four]
    if all(signs):
        readings = ["percent"]
    elif any(signs):
        return
    elif unit is not None:
        readings = [unit]
    elif max(values) <= HAIR:
        readings = ["unit"]
    else:
        readings = ["pixels", "thousandths"]
    if edges is None and (order or ("yx" if _UPRIGHT.search(text) else "xy")) == "yx":
        values = [values[1], values[0], values[3], values[2]]
    for reading in readings:
        if reading == "pixels":
            if size is None:
                continue
            scale = (float(size[0]), float(size[1]))
        else:
            scale = ({"unit": 1.0, "percent": 100.0, "thousandths": 1000.0}[reading],) * 2
        yield _upright(*(value / scale[k % 2] for k, value in enumerate(values)))


def _upright(x1: float, y1: float, x2: float, y2: float) -> Box:
    """Corners in their order; what passes the picture's far edges by a hair is cut off."""
    (left, right), (top, bottom) = sorted((x1, x2)), sorted((y1, y2))
    if max(right, bottom) <= HAIR:
        right, bottom = min(1.0, right), min(1.0, bottom)
    return left, top, right, bottom


def reference_box(
    box: Any, size: Sequence[float] | None, unit: str | None, where: str, order: str | None = None
) -> Box:
    """The box of a reference: a list of four numbers or text, in `unit`, else in 0..1 or, above 1, in pixels.

    Raises:
        UserError: it holds no box, pixels without a size, or an unknown unit.
    """
    if unit is not None and unit not in UNITS:
        raise UserError(f"unknown box_unit {unit!r}", where=where, fix=f"Use one of {', '.join(UNITS)}")
    text = box if isinstance(box, str) else str(list(box) if isinstance(box, Sequence) else box)
    four = _four(text)
    if four and unit is None:
        unit = "unit" if max(value for value, _ in four) <= HAIR else "pixels"
    found = list(read_boxes(text, size, unit, order))
    if not found:
        raise UserError(
            f"the reference box {text!r} cannot be read",
            where=where,
            fix='Give "answer_bbox" as [x1, y1, x2, y2] in 0..1, or in pixels together with "size" [width, height]',
        )
    return found[0]


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); 0 where both have no area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inner = max(0.0, width) * max(0.0, height)
    outer = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - inner
    return inner / outer if outer > 0 else 0.0
