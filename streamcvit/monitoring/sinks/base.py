"""What a sink is: it keeps points of the metrics of `definitions`, and says which it has."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import Metric

from streamcvit.monitoring.definitions import METRICS, PREFIX, Source

WHEN = frozenset(
    ("snapshot_version", "snapshot_age_seconds", "last_commit_timestamp_seconds", "evaluation_lag_versions")
    + ("chunks_scored", "probe_version", "run_finished", "build_info", "series_dropped")
)
"""Metrics that say when something was, which the axis of a point says by itself."""


@dataclass(frozen=True)
class Point:
    """A value of a metric at a place of the stream.

    Attributes:
        tag: the metric's name without prefix, and the values of its labels: `task_score_points/ocr/strict`.
        step: optimizer steps.
        value: finite.
        time: Unix time.
    """

    tag: str
    step: int
    value: float
    time: float


@dataclass(frozen=True)
class Target:
    """The method of a run that a sink keeps points of.

    Attributes:
        source: the run's name and the method.
        folder: of the method's run.
        began: what tells this run from others of its name.
        config: its settings, as JSON values.
    """

    source: Source
    folder: Path
    began: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people read: run/method."""
        return "/".join(self.source)

    @property
    def key(self) -> str:
        """The same for every life of this run, and another one for every other run."""
        digest = hashlib.sha256("\0".join((*self.source, self.began)).encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9_-]', '-', '-'.join(self.source))[:48]}-{digest[:12]}"


class Sink(ABC):
    """Keeps the points of one method of a run. Its constructor takes its options and does nothing; an error of
    another method ends this sink, and nothing else.

    Attributes:
        package: that it needs, imported when it is used.
    """

    package: ClassVar[str]

    def check(self) -> None:  # noqa: B027 (most need nothing)
        """Whether all that it needs beside its package is here; nothing is opened.

        Raises:
            UserError: what is missing.
        """

    @abstractmethod
    def held(self, target: Target) -> dict[str, int]:
        """tag -> the last step that is kept of it from former lives of the run; changes nothing."""

    @abstractmethod
    def open(self, target: Target) -> None:
        """Begin, or go on; called after `held`, when there is something to write."""

    @abstractmethod
    def write(self, points: Sequence[Point]) -> None:
        """Keep points. What a kill of this process takes away again is what `held` of the next life does not name."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Let go; `finished`: all is learned and scored."""


def tag_of(name: str, labels: Mapping[str, str]) -> str:
    """The tag of a series, its labels in the order of the definition."""
    order = METRICS[name].labels if name in METRICS else tuple(labels)
    parts = (re.sub(r"[^\w.: -]", "_", labels[label]) for label in order)
    return "/".join((name, *parts))


def points_of(
    families: Iterable[Metric], source: Source, step: int, time: float, only: Collection[str] | None = None
) -> list[Point]:
    """What a store holds of a method, as points of one step; of a histogram its mean and its count.

    Args:
        families: as `MetricStore.collect` gives them.
        source: whose values.
        step, time: of the points.
        only: names of metrics; None: all but those of `WHEN`.
    """
    found: list[Point] = []
    for family in families:
        name = family.name.removeprefix(PREFIX)
        name = name if name in METRICS else f"{name}_total"
        if name not in METRICS or (name in WHEN if only is None else name not in only):
            continue
        sums: dict[str, dict[str, float]] = {}
        for sample in family.samples:
            labels = dict(sample.labels)
            if (labels.pop("run"), labels.pop("method")) != tuple(source) or sample.value != sample.value:
                continue
            if METRICS[name].kind == "counter" and not sample.value:
                continue  # what never happens has no curve
            if METRICS[name].kind != "histogram":
                found.append(Point(tag_of(name, labels), step, float(sample.value), time))
            elif not sample.name.endswith("_bucket"):
                sums.setdefault(tag_of(name, labels), {})[sample.name.rpartition("_")[2]] = sample.value
        for tag, of in sums.items():
            if of["count"]:
                found.append(Point(f"{tag}/mean", step, of["sum"] / of["count"], time))
                found.append(Point(f"{tag}/count", step, float(of["count"]), time))
    return found


def described(tag: str) -> str:
    """What the metric of a tag is, in the words of its definition."""
    return METRICS[tag.partition("/")[0]].help
