"""docs/benchmarks.md says of every benchmark what the importer does."""

from __future__ import annotations

from pathlib import Path

from streamcvit.data.layouts import LAYOUTS
from streamcvit.data.layouts.page import filled

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def test_the_tables_of_tasks_are_those_of_the_layouts() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "run `python -m streamcvit.data.layouts.page`"


def test_every_benchmark_and_every_recipe_has_its_place() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in LAYOUTS:
        assert name in page
    recipes = {path.stem for path in (PAGE.parents[1] / "pipelines").glob("*.yaml")} - {
        "embedded",
        "embedded-hard",
        "real-small",
    }
    assert {name for name in recipes if f"`{name}`" not in page} == set()
