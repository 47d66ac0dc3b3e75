"""Numbers that a paper printed, as a recipe carries them: each table with its source, so that tables are not mixed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from streamcvit.explain import NAME

_RULES = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)
Points = Annotated[float, Field(allow_inf_nan=False)]


class PublishedRow(BaseModel):
    """One method's row of a published table, in points."""

    model_config = _RULES

    tasks: dict[str, Points] = Field(
        default_factory=dict, description="task -> its score after the last chunk, as printed"
    )
    metrics: dict[str, Points] = Field(
        default_factory=dict, description="metric, by our name or the field's (docs/scoring.md) -> as printed"
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _metrics_have_our_names(cls, metrics: Any) -> Any:
        from streamcvit.evaluation.names import ours

        if not isinstance(metrics, dict):
            return metrics
        found: dict[Any, Any] = {}
        for name, value in metrics.items():
            # MAF alone does not say which variant a paper means.
            own = ours(name) if isinstance(name, str) and name != "MAF" else name
            if own in found:
                raise ValueError(f"{own!r} stands there twice, by our name and by the field's")
            found[own] = value
        return found


class PublishedTable(BaseModel):
    """One table of one paper, to stand beside a run's own numbers."""

    model_config = _RULES

    name: str = Field(pattern=NAME, description="of the table, to choose it by")
    source: str = Field(
        min_length=1, description="where the numbers stand (paper, version, table), and whether they are second-hand"
    )
    model: str = Field(min_length=1, description="the base that they were measured on")
    note: str = Field("", description="what a reader must know before comparing with them")
    unscored: list[str] = Field(
        default_factory=list, description="columns of the table that are no task of this recipe"
    )
    rows: dict[str, PublishedRow] = Field(min_length=1, description="the rows, by the method's name in the paper")

    @field_validator("rows")
    @classmethod
    def _metrics_are_known(cls, rows: dict[str, PublishedRow]) -> dict[str, PublishedRow]:
        from streamcvit.evaluation.matrix import METRICS

        for method, row in rows.items():
            if unknown := sorted(set(row.metrics) - set(METRICS)):
                raise ValueError(f"{method}.metrics: unknown metric {unknown[0]!r}; allowed: {', '.join(METRICS)}")
            if not row.tasks and not row.metrics:
                raise ValueError(f"{method}: holds no number")
        return rows

    def check_tasks(self, tasks: Collection[str]) -> None:
        """Raises a ValueError where a row has a column that is neither one of `tasks` nor named in `unscored`."""
        for method, row in self.rows.items():
            if unknown := sorted(set(row.tasks) - {*tasks, *self.unscored}):
                raise ValueError(
                    f"published.{self.name}.rows.{method}.tasks: {unknown[0]!r} is no task of this run, and is not "
                    f"named in `unscored`; there are {', '.join(tasks)}"
                )


def check_published(tables: Collection[PublishedTable], tasks: Collection[str]) -> None:
    """Raises a ValueError where tables share a name, or one has columns that the run does not score.

    Args:
        tables: a config's.
        tasks: names of the tasks that the run scores; empty where they are not known before its data is read.
    """
    names = [table.name for table in tables]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"published: two tables are called {twice[0]!r}")
    for table in tables if tasks else ():
        table.check_tasks(tasks)
