"""Tables of papers in a config: what is accepted, and what is said of one that cannot be compared with."""

from __future__ import annotations

from typing import Any

import pytest

from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.pipeline import load_config


def tree(**table: Any) -> dict[str, Any]:
    """A config of two tasks with one published table, changed as asked."""
    whole = {
        "name": "a", "source": "a paper, table 1", "model": "a base",
        "rows": {"LoRA": {"tasks": {"one": 1.0, "two": 3.0}, "metrics": {"ap": 2.0, "bwt_max": -1.5}}},
    }  # fmt: skip
    tasks = {name: {"train": "a.json", "test": "b.json"} for name in ("one", "two")}
    return {"stream": {"source": "files", "tasks": tasks}, "published": [whole | table]}


def test_a_published_table_is_kept_with_its_source() -> None:
    config = RunConfig.model_validate(tree())
    assert config.published[0].rows["LoRA"].metrics == {"ap": 2.0, "bwt_max": -1.5}
    assert "a paper, table 1" in config.dump()


def test_metrics_may_have_the_fields_names() -> None:
    rows = {"LoRA-FT": {"metrics": {"MFT": 64.98, "Last": 53.0, "MAA": 61.13, "BWT": -14.97}}}
    found = RunConfig.model_validate(tree(rows=rows)).published[0].rows["LoRA-FT"].metrics
    assert found == {"mft": 64.98, "mfn": 53.0, "map": 61.13, "bwt_first": -14.97}


def test_a_column_that_is_not_scored_is_named_as_such() -> None:
    rows = {"LoRA": {"tasks": {"one": 1.0, "three": 3.0}}}
    assert RunConfig.model_validate(tree(rows=rows, unscored=["three"])).published[0].unscored == ["three"]
    with pytest.raises(ValueError, match="'three' is no task of this run"):
        RunConfig.model_validate(tree(rows=rows))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"source": " "}, "source"),
        ({"source": None}, "source"),
        ({"rows": {}}, "rows"),
        ({"rows": {"LoRA": {}}}, "holds no number"),
        ({"rows": {"LoRA": {"metrics": {"maf": 1.0}}}}, "unknown metric 'maf'; allowed: ap, map"),
        ({"rows": {"LoRA": {"metrics": {"MAF": 1.91}}}}, "unknown metric 'MAF'"),
        (
            {"rows": {"LoRA": {"metrics": {"Avg": 1.0, "map": 1.0}}}},
            "'map' stands there twice",
        ),
        ({"rows": {"LoRA": {"tasks": {"one": float("nan")}}}}, "finite"),
        ({"rows": {"LoRA": {"metrics": {"ap": float("inf")}}}}, "finite"),
        ({"page": 3}, "page"),
    ],
)
def test_a_table_that_cannot_be_compared_with_is_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig.model_validate(tree(**table))


def test_two_tables_of_one_name_are_refused_in_one_line() -> None:
    table = "{name: a, source: s, model: m, rows: {x: {metrics: {ap: 1}}}}"
    with pytest.raises(UserError, match="two tables are called 'a'") as caught:
        load_config(None, [f"published=[{table}, {table}]"])
    assert "\n" not in str(caught.value)
