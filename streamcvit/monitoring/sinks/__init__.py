"""Where else a run's numbers go: a dictionary of sinks, one file each."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from streamcvit.errors import UserError
from streamcvit.monitoring.sinks.base import Point, Sink, Target, points_of, tag_of
from streamcvit.monitoring.sinks.mlflow import MLflow
from streamcvit.monitoring.sinks.tensorboard import TensorBoard
from streamcvit.monitoring.sinks.wandb import WeightsAndBiases

__all__ = ["SINKS", "Point", "Sink", "Target", "check_ready", "check_sinks", "points_of", "tag_of"]

SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
"""By name, which is also that of the extra that installs its package."""


def check_sinks(names: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Whether there are such sinks, with such options; imports none of their packages.

    Raises:
        ValueError: says which there is not, and what there is.
    """
    names = list(names)
    for name in names:
        if name not in SINKS:
            raise ValueError(f"sinks: unknown sink {name!r}; allowed: {', '.join(SINKS)}")
        if names.count(name) > 1:
            raise ValueError(f"sinks: {name!r} stands twice")
    for name, given in options.items():
        if name not in names:
            raise ValueError(f"sink_options.{name}: it is none of monitor.sinks")
        known = list(inspect.signature(SINKS[name]).parameters)
        if unknown := sorted(set(given) - set(known)):
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"sink_options.{name}: no option {unknown[0]!r}; {has}")
        try:
            SINKS[name](**given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"sink_options.{name}: {error}") from None


def check_ready(names: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Whether what sinks need is there: their packages, an account.

    Raises:
        UserError: names the extra that is missing, or says what else is.
    """
    for name in names:
        if importlib.util.find_spec(SINKS[name].package) is None:
            fix = f"Run pip install 'streamcvit[{name}]', or leave {name} out"
            raise UserError(f"the package {SINKS[name].package} is not installed", where="monitor.sinks", fix=fix)
        SINKS[name](**options.get(name, {})).check()
