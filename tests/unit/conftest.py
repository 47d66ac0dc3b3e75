"""Fixtures of the unit tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamcvit.data.sample import Sample


@pytest.fixture(scope="session")
def oracle(shared_dir: Path) -> Callable[[str], dict[str, Any]]:
    """Reads a file of predictions with the scores that other people's code gave them."""
    return lambda name: json.loads((shared_dir / "oracle" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def oracle_sample() -> Callable[[dict[str, Any]], Sample]:
    """Makes a row of such a file the sample that a scorer reads."""

    def build(row: dict[str, Any]) -> Sample:
        answers = row.get("answers") or [row.get("answer", row.get("answer_bbox"))]
        meta: dict[str, Any] = {key: row[key] for key in ("answer_bbox", "size") if key in row}
        return Sample(row["id"], "task", "", "", tuple(answers), meta=meta)

    return build
