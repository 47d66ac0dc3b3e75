"""The pictures of the embedded benchmark: six procedural kinds of 32 x 32 RGB image and what each of them shows.

Every picture belongs to exactly one split (`base`, `train` or `test`). The split is decided by the SHA-256 of the
picture's own pixels, so two splits cannot share an image, whatever the seeds; handwritten digits are split by writer's
sample as well.

The handwritten digits (`digits.npz`, 8 x 8 pixels, values 0-16) are scikit-learn's copy of the test part of "Optical
Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998), distributed with
scikit-learn under the BSD-3-Clause licence.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
from PIL import Image

Split = Literal["base", "train", "test"]

SIZE = 32
CELL = 8
"""A scene is a grid of 4 x 4 cells of this many pixels, one object a cell: one cell, one patch of the vision tower."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 90, 240),
    "yellow": (240, 220, 40),
    "purple": (170, 60, 200),
    "orange": (250, 140, 20),
}
SHAPES = ("square", "triangle", "cross", "ring")
BACKGROUNDS = ("plain", "striped", "barred", "checkered", "dotted", "gradient")
LANDS = ("water", "forest", "urban", "farm", "desert")
REGIONS = ("upper left", "upper right", "lower left", "lower right")
BARS = ("red", "green", "blue")
MAX_BAR = 4
MAX_OBJECTS = 5
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_SPLIT_CODE: dict[str, int] = {"base": 0, "train": 1, "test": 2}
# Quarters of the hash space: the base needs the most pictures.
_SPLIT_OF_QUARTER: tuple[Split, ...] = ("base", "base", "train", "test")
_DIGITS_OF_SPLIT: dict[str, slice] = {"base": slice(0, 1000), "train": slice(1000, 1500), "test": slice(1500, None)}

_GLYPHS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
_GLYPH_MASKS = tuple(
    np.kron([[int(bit) for bit in row] for row in glyph.split()], np.ones((2, 2))) > 0 for glyph in _GLYPHS
)
_Y, _X = np.mgrid[0:SIZE, 0:SIZE]


@dataclass(frozen=True)
class Picture:
    """One image and what it shows.

    Attributes:
        kind: a key of `KINDS`.
        pixels: uint8 [32, 32, 3].
        facts: what is in it; the keys depend on the kind (see the `_draw_*` functions).
    """

    kind: str
    pixels: np.ndarray
    facts: Mapping[str, Any]

    def png(self) -> bytes:
        """The picture as the bytes of a PNG file."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, format="png")
        return buffer.getvalue()


def split_of(pixels: np.ndarray) -> Split:
    """The one split that an image (uint8 [32, 32, 3]) belongs to: a pure function of its pixels."""
    return _SPLIT_OF_QUARTER[hashlib.sha256(pixels.tobytes()).digest()[0] % 4]


def rng_for(split: Split, *key: int) -> np.random.Generator:
    """A generator of its own for a split and a key (seed, task number ...)."""
    return np.random.default_rng([_SPLIT_CODE[split], *key])


def draw(kind: str, split: Split, rng: np.random.Generator, look: str = "plain") -> Picture:
    """Draws pictures of a kind until one falls into the split.

    Args:
        kind: a key of `KINDS`.
        split: the split that the picture has to belong to.
        rng: where all chance comes from.
        look: a key of `LOOKS`.
    """
    while True:
        canvas, facts = KINDS[kind](rng, split)
        noisy = canvas + rng.normal(0, 6, canvas.shape)
        pixels = LOOKS[look](np.clip(noisy, 0, 255).astype(np.uint8))
        if split_of(pixels) == split:
            return Picture(kind, pixels, facts)


@functools.cache
def _shape_mask(shape: str, size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size]
    centre, radius = (size - 1) / 2, size / 2
    if shape == "square":
        return np.ones((size, size), bool)
    if shape == "triangle":
        return np.abs(x - centre) <= (y + 1) / 2
    if shape == "cross":
        arm = max(1.0, size * 0.17)
        return (np.abs(x - centre) <= arm) | (np.abs(y - centre) <= arm)
    distance = np.hypot(x - centre, y - centre)
    return (distance <= radius) & (distance >= radius * 0.5)


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    base, contrast = int(rng.integers(20, 60)), int(rng.integers(40, 60))
    phase, period = int(rng.integers(0, 8)), int(rng.integers(4, 7))
    if name == "plain":
        pattern = np.zeros((SIZE, SIZE))
    elif name == "striped":
        pattern = (_Y + phase) // (period // 2) % 2
    elif name == "barred":
        pattern = (_X + phase) // (period // 2) % 2
    elif name == "checkered":
        pattern = ((_X + phase) // period + (_Y + phase) // period) % 2
    elif name == "dotted":
        pattern = ((_X + phase) % period < 2) & ((_Y + phase) % period < 2)
    else:
        pattern = (_Y + _X) / SIZE * 0.8
    return np.repeat((base + contrast * pattern)[:, :, None], 3, axis=2).astype(np.float64)


def _pick(rng: np.random.Generator, options: tuple | list) -> Any:
    return options[int(rng.integers(len(options)))]


def _draw_scene(rng: np.random.Generator, split: Split) -> tuple[np.ndarray, dict[str, Any]]:
    """`background`; `objects`: [(colour, shape, row, column)] in reading order, colours all different."""
    background = _pick(rng, BACKGROUNDS)
    canvas = _background(background, rng)
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    cells = sorted(int(cell) for cell in rng.choice(16, count, replace=False))
    colours = [list(COLOURS)[int(i)] for i in rng.permutation(len(COLOURS))[:count]]
    objects = []
    for cell, colour in zip(cells, colours, strict=True):
        shape, size = _pick(rng, SHAPES), int(rng.integers(7, CELL + 1))
        row, column = divmod(cell, 4)
        top = row * CELL + int(rng.integers(0, CELL + 1 - size))
        left = column * CELL + int(rng.integers(0, CELL + 1 - size))
        canvas[top : top + size, left : left + size][_shape_mask(shape, size)] = COLOURS[colour]
        objects.append((colour, shape, row, column))
    return canvas, {"background": background, "objects": objects}


def _draw_big(rng: np.random.Generator, split: Split) -> tuple[np.ndarray, dict[str, Any]]:
    """`background`, `colour` and `shape` of the one large object."""
    background, shape, colour = _pick(rng, BACKGROUNDS), _pick(rng, SHAPES), _pick(rng, list(COLOURS))
    canvas = _background(background, rng)
    size = int(rng.integers(14, 21))
    top, left = (int(v) for v in rng.integers(0, SIZE + 1 - size, 2))
    canvas[top : top + size, left : left + size][_shape_mask(shape, size)] = COLOURS[colour]
    return canvas, {"background": background, "shape": shape, "colour": colour}


def _draw_text(rng: np.random.Generator, split: Split) -> tuple[np.ndarray, dict[str, Any]]:
    """`text`: the three digits shown."""
    canvas = np.full((SIZE, SIZE, 3), float(rng.integers(190, 250)))
    digits, ink = rng.integers(0, 10, 3), rng.integers(0, 90, 3)
    top, left = int(rng.integers(4, 14)), int(rng.integers(0, 3))
    for place, digit in enumerate(digits):
        mask = _GLYPH_MASKS[digit]
        window = canvas[top : top + 14, left + place * 10 : left + place * 10 + 10]
        window[mask[:, : window.shape[1]]] = ink
    return canvas, {"text": "".join(str(digit) for digit in digits)}


def _draw_chart(rng: np.random.Generator, split: Split) -> tuple[np.ndarray, dict[str, Any]]:
    """`heights`: of the bars in the order of `BARS`, 1 to 4, 7 pixels each."""
    canvas = np.full((SIZE, SIZE, 3), float(rng.integers(215, 250)))
    heights = [int(height) for height in rng.integers(1, MAX_BAR + 1, len(BARS))]
    for place, (colour, height) in enumerate(zip(BARS, heights, strict=True)):
        left, width = 2 + place * 10 + int(rng.integers(0, 2)), int(rng.integers(6, 9))
        canvas[SIZE - 1 - height * 7 - int(rng.integers(0, 2)) : SIZE - 1, left : left + width] = COLOURS[colour]
    canvas[SIZE - 1] = 0
    return canvas, {"heights": heights}


def _texture(land: str, rng: np.random.Generator) -> np.ndarray:
    grain = rng.normal(0, 1, (16, 16, 1))
    if land == "water":
        return np.array([30, 70, 150]) + grain * 8
    if land == "forest":
        return np.array([30, 100, 40]) + grain * 30
    if land == "desert":
        return np.array([215, 185, 130]) + grain * 8
    if land == "farm":
        furrow = (np.arange(16) // int(rng.integers(2, 4)) % 2)[None, :, None] > 0
        return np.where(furrow, np.array([190, 180, 70]), np.array([110, 150, 60])) + grain * 6
    blocks = np.full((16, 16, 3), 90.0)
    offset = int(rng.integers(0, 3))
    for row in range(offset, 16, 5):
        for column in range(offset, 16, 5):
            blocks[row : row + 3, column : column + 3] = 200
    return blocks + grain * 6


def _draw_land(rng: np.random.Generator, split: Split) -> tuple[np.ndarray, dict[str, Any]]:
    """`lands`: what covers each of `REGIONS`."""
    lands = [_pick(rng, LANDS) for _ in REGIONS]
    canvas = np.zeros((SIZE, SIZE, 3))
    for place, land in enumerate(lands):
        row, column = divmod(place, 2)
        canvas[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = _texture(land, rng)
    return canvas, {"lands": lands}


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    with resources.files("streamcvit.embedded").joinpath("digits.npz").open("rb") as file:
        archive = np.load(io.BytesIO(file.read()), allow_pickle=False)
    return archive["images"], archive["labels"]


def _draw_digit(rng: np.random.Generator, split: Split) -> tuple[np.ndarray, dict[str, Any]]:
    """`digit`: the class; the handwriting itself comes from the split's own part of the data set."""
    images, labels = (part[_DIGITS_OF_SPLIT[split]] for part in _digits())
    index = int(rng.integers(len(images)))
    ink = np.kron(images[index] / 16.0, np.ones((4, 4)))
    # A box blur hides the 4-pixel steps; the shift keeps the tower from learning single pixels.
    ink = np.mean([np.roll(ink, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)
    ink = np.roll(ink, tuple(int(v) for v in rng.integers(-2, 3, 2)), (0, 1))[:, :, None]
    paper, pen = rng.integers(0, 50, 3), rng.integers(170, 255, 3)
    return paper + ink * (pen - paper), {"digit": int(labels[index])}


KINDS = {
    "scene": _draw_scene,
    "big": _draw_big,
    "text": _draw_text,
    "chart": _draw_chart,
    "land": _draw_land,
    "digit": _draw_digit,
}
"""Kind of picture -> the function that draws one without noise, with its facts."""


def _framed(pixels: np.ndarray) -> np.ndarray:
    """A white line all around, which no noisy picture has by chance."""
    pixels[[0, -1]] = 255
    pixels[:, [0, -1]] = 255
    return pixels


LOOKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"plain": lambda pixels: pixels, "framed": _framed}
"""Look -> what is done to the pixels (uint8 [32, 32, 3]) of a picture of any kind; what it shows stays."""
