"""Published tables: those that a run's own recipe carries, and those of a recipe that is named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from streamcvit.errors import UserError
from streamcvit.explain import explain
from streamcvit.monitoring.record import RunRecord
from streamcvit.pipeline import found_pipeline, read_tree
from streamcvit.published import PublishedTable


def published_tables(records: Iterable[RunRecord], recipes: Sequence[Path] = ()) -> list[PublishedTable]:
    """All published tables that belong beside these runs, each once.

    Args:
        records: runs, whose configs may carry tables.
        recipes: pipelines, whose tables are wanted too.

    Raises:
        UserError: a recipe cannot be read or carries none, or a table is not as it should be.
    """
    found: dict[str, PublishedTable] = {}
    for record in records:
        for table in _tables(record.config.get("published"), str(record.folder / "config.yaml")):
            found.setdefault(repr(table), table)
    for recipe in recipes:
        path = found_pipeline(recipe)
        tables = _tables(read_tree(path).get("published"), str(path))
        if not tables:
            raise UserError("carries no published table", where=str(path), fix="Name a recipe with `published:`")
        for table in tables:
            found.setdefault(repr(table), table)
    return list(found.values())


def _tables(given: Any, where: str) -> list[PublishedTable]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise UserError("published: must be a list of tables", where=where, fix="See docs/comparing.md")
    try:
        return [PublishedTable.model_validate(table) for table in given]
    except ValidationError as error:
        raise UserError(f"published: {explain(error)}", where=where, fix="See docs/comparing.md") from None
