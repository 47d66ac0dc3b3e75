"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with golden numbers, oracles and the small real benchmark; absent on most machines."""
    folder = Path(os.environ.get("STREAMCVIT_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no shared test data at {folder}; set STREAMCVIT_SHARED to its folder")
    return folder
