"""Scorers, formats, strategies and metrics by name, the package's and one's own, under one contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streamcvit.config import OWN, RunConfig
from streamcvit.data.formats import FORMATS, Record
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.errors import UserError
from streamcvit.evaluation import SCORERS, Scorer
from streamcvit.evaluation.matrix import METRICS, Metric, Plan
from streamcvit.evaluation.needs import needing, needs_of
from streamcvit.learning import STRATEGIES, Sequential
from streamcvit.run import own

Reader = Callable[[Any], Record]


def scorer_of(config: RunConfig, spec: TaskSpec) -> Scorer:
    """A task's strict scorer.

    One's own is what the config names for the task; that a stream names it is not enough.

    Raises:
        UserError: there is no such scorer, or one's own cannot be loaded or is none.
    """
    if spec.scorer in SCORERS:
        return SCORERS[spec.scorer]
    files = config.stream.tasks.get(spec.name)
    if files is None or files.scorer != spec.scorer:
        told = f"the stream names the scorer {spec.scorer!r:.80} of task {spec.name!r}, the config does not"
        raise UserError(told, where="stream.tasks", fix="Write the stream again with a scorer of this release")
    return _scorer(config, spec.scorer, f"stream.tasks.{spec.name}.scorer")


def formats_of(config: RunConfig) -> dict[str, Reader]:
    """Readers of rows, those of one's own that the tasks name among them.

    Raises:
        UserError: one of these cannot be loaded or is none.
    """
    named = {name: key for key, name in own.references(config).items() if key.endswith("format")}
    return {**FORMATS, **{name: _reader(config, name, key) for name, key in named.items()}}


def strategy_of(config: RunConfig, method: str) -> type[Sequential]:
    """A method's strategy.

    Raises:
        UserError: one's own cannot be loaded or is none.
    """
    name, key = config.methods[method].strategy, f"methods.{method}.strategy"
    if name in STRATEGIES:
        return STRATEGIES[name]
    found = own.load(config, name, key)
    if not (isinstance(found, type) and issubclass(found, Sequential)):
        raise _unfit(name, key, "is no strategy", "Derive it from streamcvit.learning.Sequential")
    return found


def metrics_of(config: RunConfig) -> dict[str, Metric]:
    """Metrics of one's own by name: what is behind the colon.

    Raises:
        UserError: one cannot be loaded, is none, or is called as one of the package's.
    """
    found: dict[str, Metric] = {}
    for number, name in enumerate(config.evaluation.metrics):
        key, match = f"evaluation.metrics.{number}", OWN.fullmatch(name)
        assert match is not None
        short = match["name"]
        if short in METRICS or short in found:
            raise _unfit(name, key, f"is the second metric called {short}", "Call it otherwise")
        found[short] = _metric(config, name, key)
    return found


def check(config: RunConfig) -> list[str]:
    """Load everything of one's own and hold it to its contract; a line for people for each file.

    Raises:
        UserError: what is wrong with which setting.
    """
    for key, name in own.references(config).items():
        if key.endswith(".scorer"):
            _scorer(config, name, key)
    formats_of(config)
    for method in config.methods:
        strategy_of(config, method)
    metrics_of(config)
    return list(own.lines(config))


def check_portable(config: RunConfig) -> None:
    """Whether a stream folder can be made of it that others may run.

    Raises:
        UserError: a task is scored by a file of one's own, which a stream folder does not bring; or the stream goes on.
    """
    if config.stream.source == "follow":
        fix = "Run it; when it has ended, its shards can be indexed (streamcvit index)"
        raise UserError("a stream that goes on cannot be written as a whole", where="stream.source: follow", fix=fix)
    for key, name in own.references(config).items():
        if key.endswith(".scorer"):
            fix = "Name a scorer of the package, or run this pipeline itself"
            raise _unfit(name, key, "is a scorer that a stream folder cannot bring", fix)


def _unfit(name: str, key: str, told: str, fix: str) -> UserError:
    return UserError(f"{name} {told}", where=key, fix=fix)


def _called(config: RunConfig, name: str, key: str, takes: Sequence[str]) -> Callable[..., Any]:
    """A function, or an object that is called, of as many arguments; a class is made without any."""
    found = own.load(config, name, key)
    says = f"({', '.join(takes)})"
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise own.fault(error, key, f"{name} cannot be made: ") from None
    if not callable(found):
        raise _unfit(name, key, "cannot be called", f"Define it as a function of {says}")
    try:
        inspect.signature(found).bind(*takes)
    except (TypeError, ValueError) as error:
        raise _unfit(name, key, f"is not called as {says}: {error}", f"Define it as a function of {says}") from None
    return found


def _scorer(config: RunConfig, name: str, key: str) -> Scorer:
    call = _called(config, name, key, ("predictions", "samples"))

    @needing(*needs_of(call))
    def scorer(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
        points = _numbers(lambda: call(list(predictions), list(samples)), name, key)
        if points.shape != (len(samples),) or not np.isfinite(points).all():
            told = f"gave {_shape(points)} for {len(samples)} answers"
            raise _unfit(name, key, told, "Return as many finite points, from 0 to 100 each")
        return points

    return scorer


def _reader(config: RunConfig, name: str, key: str) -> Reader:
    call = _called(config, name, key, ("row",))

    def read(row: Any) -> Record:
        try:
            record = call(row)
        except (BadRow, UserError):
            raise
        except Exception as error:  # of this row; where more than a few do so, the import stops
            raise BadRow("shape", own.fault(error, key).what) from None
        if not isinstance(record, Record):
            raise BadRow("shape", f"{name} gave {type(record).__name__} and no Record")
        return record

    return read


def _metric(config: RunConfig, name: str, key: str) -> Metric:
    call = _called(config, name, key, ("scores", "plan", "counted"))

    def metric(scores: np.ndarray, plan: Plan, counted: np.ndarray) -> np.ndarray:
        values = _numbers(lambda: call(scores, plan, counted), name, key)
        if values.shape != scores.shape[:-2]:
            told = f"gave {_shape(values)} for scores of shape {list(scores.shape)}"
            raise _unfit(name, key, told, f"Return one number a matrix: shape {list(scores.shape[:-2])}")
        return values

    trial = np.random.default_rng(0).uniform(0, 100, (5, 3, 2))
    metric(trial, Plan(np.array([[4, 0], [2, 2], [0, 4]])), np.array([True, True]))
    return metric


def _numbers(call: Callable[[], Any], name: str, key: str) -> np.ndarray:
    try:
        return np.asarray(call(), dtype=np.float64)
    except Exception as error:
        raise own.fault(error, key, f"{name}: ") from None


def _shape(values: np.ndarray) -> str:
    odd = "" if np.isfinite(values).all() else ", some not finite"
    return f"numbers of shape {list(values.shape)}{odd}"
