"""The example in docs/adapters.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from adapter_models import tiny_llama
from peft import PeftModel


class WordTokenizer:
    """Just enough of a tokenizer: one id a word."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [2 + sum(map(ord, word)) % 90 for word in text.split()]}


def test_example_of_the_guide_runs(tmp_path):
    guide = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    names: dict[str, Any] = {
        "model": tiny_llama(),
        "tokenizer": WordTokenizer(),
        "input_ids": torch.randint(2, 90, (2, 6), generator=torch.Generator().manual_seed(0)),
        "folder": tmp_path,
    }
    exec(example, names)
    assert names["answers"].shape == (2, 9)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    again = loaded.generate(input_ids=names["input_ids"], routing=names["routing"], max_new_tokens=3)
    assert torch.equal(again, names["answers"])


def test_guide_names_every_adapter():
    from streamcvit.adapters import ADAPTERS

    guide = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text()
    assert all(f"| `{name}` |" in guide for name in ADAPTERS)
