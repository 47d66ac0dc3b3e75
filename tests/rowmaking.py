"""Rows of the field's formats, as their data sets write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROMPT = "<image>\nWhat is it?\nOne word."


def llava(number: int, prompt: str = PROMPT, answer: str = "red", **changes: Any) -> dict[str, Any]:
    """A LLaVA row of one turn; its picture is one of three."""
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": f"r{number}", "image": f"{number % 3}.png", "conversations": turns, **changes}


def talk(*texts: str, **changes: Any) -> dict[str, Any]:
    """A LLaVA row whose turns say these texts in turn."""
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": "r0", "conversations": turns, **changes}


def qa(number: int, **changes: Any) -> dict[str, Any]:
    """A test row."""
    return {"question_id": number, "image": "0.png", "text": "What is it?\nOne word.", "answer": "red", **changes}


def swift(number: int, content: Any = "<image>What is it?\nOne word.", **changes: Any) -> dict[str, Any]:
    """An ms-swift row of one turn."""
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    return {"messages": messages, "images": [f"<STRCVIT_IMAGE_ROOT>/{number % 3}.png"], **changes}


def write(folder: Path, name: str, rows: Any) -> Path:
    """A file of rows: JSON, or JSON lines where the name says so."""
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path
