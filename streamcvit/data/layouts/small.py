"""Small synthetic rows and pictures in the layouts' own forms: the same bytes each time, nothing licensed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

COLOURS = {"red": (208, 48, 40), "green": (40, 150, 64), "blue": (48, 72, 200), "yellow": (232, 200, 48)}
SHAPES = ("square", "circle")
SIDE = 32

NAMES = tuple(COLOURS)


def colour(number: int) -> str:
    """The colour that the picture of this number shows."""
    return NAMES[number % len(NAMES)]


def shape(number: int) -> str:
    """Its shape."""
    return SHAPES[number // len(NAMES) % len(SHAPES)]


def box(number: int) -> list[float]:
    """Where the shape lies, [x1, y1, x2, y2] in 0..1."""
    left, top = number * 5 % 13 + 2, number * 3 % 13 + 2
    return [round(one / SIDE, 2) for one in (left, top, left + 14, top + 14)]


def caption(number: int) -> str:
    """A sentence of it."""
    return f"A {colour(number)} {shape(number)} lies on a grey ground."


def captions(number: int) -> list[str]:
    """Five sentences of it."""
    what = f"{colour(number)} {shape(number)}"
    forms = ("A {} lies on a grey ground.", "There is a {} in the picture.", "One {} before a plain wall.",
             "The picture shows a {}.", "A single {} and nothing else.")  # fmt: skip
    return [form.format(what) for form in forms]


def picture(folder: Path, path: str, number: int) -> str:
    """Draw the picture of a number into a file (a JPEG or PNG, by its name); returns the path."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), (96 + number % 64,) * 3)
    left, top, right, bottom = (round(one * SIDE) for one in box(number))
    pen = ImageDraw.Draw(image)
    draw = pen.rectangle if shape(number) == "square" else pen.ellipse
    draw((left, top, right, bottom), fill=COLOURS[colour(number)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if path.endswith(".png") else "JPEG")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(buffer.getvalue())
    return path


def llava(name: str, image: str | None, prompt: str, answer: str) -> dict[str, Any]:
    """A LLaVA row of one turn."""
    asked = f"<image>\n{prompt}" if image else prompt
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": name, **({"image": image} if image else {}), "conversations": turns}


def question(name: str | int, image: str | None, prompt: str, answer: Any = None, **more: Any) -> dict[str, Any]:
    """A row of a question file, with its answer where one is given."""
    row = {"question_id": name, **({"image": image} if image else {}), "text": prompt}
    return {**row, **({} if answer is None else {"answer": answer}), **more}


def write(folder: Path, path: str, value: Any) -> None:
    """A JSON file."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
