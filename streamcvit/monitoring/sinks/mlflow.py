"""MLflow: one of its runs a method, on a tracking server or in files beside the run folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from streamcvit.monitoring.sinks.base import Point, Sink, Target, described

KEY = "streamcvit.key"
"""The tag that a run is found again by."""
MOST_METRICS, MOST_PARAMS = 1000, 100
"""In one call, as servers have it."""


class MLflow(Sink):
    """Runs named run/method in an experiment.

    Args:
        tracking_uri: of the server, or of files; empty: MLFLOW_TRACKING_URI, or the folder `mlruns` beside the runs.
        experiment: that the runs go to.
    """

    package = "mlflow"

    def __init__(self, tracking_uri: str = "", experiment: str = "streamcvit") -> None:
        if not isinstance(tracking_uri, str) or not isinstance(experiment, str) or not experiment:
            raise ValueError("tracking_uri and experiment are texts")
        if "@" in urlsplit(tracking_uri).netloc:
            raise ValueError("no password belongs here: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD hold it")
        self.uri, self.experiment = tracking_uri, experiment

    def held(self, target: Target) -> dict[str, int]:
        files = (target.folder.parent.parent / "mlruns").absolute().as_uri()
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or files
        if "://" not in uri or uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow asks to be told that files are meant
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(self.experiment)
        runs = self.client.search_runs([found.experiment_id], f"tags.`{KEY}` = '{target.key}'") if found else []
        self.run = runs[0].info.run_id if runs else ""
        self.told: set[str] = set(runs[0].data.metrics) if runs else set()
        return {tag: max(m.step for m in self.client.get_metric_history(self.run, tag)) for tag in self.told}

    def open(self, target: Target) -> None:
        from mlflow.entities import Param

        if self.run:
            self.client.update_run(self.run, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self.client.create_experiment(self.experiment)
        tags = {KEY: target.key, "mlflow.source.name": "streamcvit"}
        self.run = self.client.create_run(experiment, tags=tags, run_name=target.name).info.run_id
        params = [Param(key, value[:6000]) for key, value in _flat(target.config)]
        for first in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.run, params=params[first : first + MOST_PARAMS])

    def write(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        for first in range(0, len(points), MOST_METRICS):
            some = points[first : first + MOST_METRICS]
            metrics = [Metric(p.tag, p.value, int(1000 * p.time), p.step) for p in some]
            self.client.log_batch(self.run, metrics=metrics)
        if new := {point.tag for point in points} - self.told:
            self.told |= new
            said = {tag.partition("/")[0]: described(tag) for tag in sorted(self.told)}
            note = "\n".join(f"- `{name}`: {text}" for name, text in said.items())
            self.client.set_tag(self.run, "mlflow.note.content", f"Steps are optimizer steps.\n\n{note}")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


def _flat(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """The leaves of a tree of settings, by their whole key."""
    found: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{above}{name}.")
        elif value not in ("", None, [], {}):
            found.append((f"{above}{name}", str(value)))
    return found
