"""Sections of the settings that say how work is done: scoring, actors, the endpoint; `config` has the tree."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

OWN = re.compile(r"(?P<path>[^:]+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")
"""How a setting names what a file of one's own defines: `my.py:Mine`."""


def seed_list(given: Any) -> list[int]:
    """Seeds as a list, of `0-9`, `0,3,5-7`, a number or a list of numbers.

    Raises:
        ValueError: it names none, or one twice.
    """
    found: list[int] = []
    for part in given if isinstance(given, list) else str(given).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(part))
        if match is None or (last := int(match[2] or match[1])) < int(match[1]) or last - int(match[1]) > 10_000:
            raise ValueError(f"{str(part)!r:.40} names no seeds; write a number, or the first and the last: 0-9")
        found += range(int(match[1]), last + 1)
    if len(set(found)) < len(found):
        raise ValueError("a seed is there twice")
    return found


def _sweep_texts(sweep: Any) -> Any:
    if not isinstance(sweep, dict):
        return sweep
    if lone := [key for key, values in sweep.items() if not isinstance(values, list) or not values]:
        raise ValueError(f"{lone[0]} wants a list of values")
    return {key: [v if isinstance(v, str) else json.dumps(v) for v in values] for key, values in sweep.items()}


Seeds = Annotated[list[int], BeforeValidator(lambda given: seed_list(given) if given not in (None, "", []) else [])]
Sweep = Annotated[dict[str, list[str]], BeforeValidator(_sweep_texts)]


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EvaluationConfig(Section):
    """The scoring of every seen task after every chunk."""

    batch_size: int = Field(64, ge=1, description="prompts decoded together; halved where memory runs out")
    draws: int = Field(1000, ge=10, description="bootstrap draws of the intervals")
    metrics: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="metrics of your own beside those that a run always has, each `my.py:Mine` (docs/extending.md)",
    )
    thoughts: Literal["drop", "keep"] = Field(
        "drop", description="whether answers, and references, are what follows their thoughts (`<think>...</think>`)"
    )
    zero_shot: bool = Field(False, description="also score the untrained base on every task")
    unseen: Literal["every", "ends", "never"] | None = Field(
        None,
        description="when tasks are scored that the stream has not brought yet, or never brings. `every`: before the "
        "first chunk and after every one; `ends`: before the first chunk, and after the last one before the task comes "
        "(all that forward transfer needs) or, where it never comes, after the last; null: `ends` for tasks that are "
        "only tested (the built-in ones excepted), `never` for others",
    )
    mif_tasks: list[str] = Field(default_factory=list, description="the tasks that MIF holds; empty: all")
    audit: int = Field(
        16,
        ge=0,
        description="answers of the last boundary that are given again one by one and compared; 0: none",
    )
    probe_samples: int = Field(
        32,
        ge=0,
        description="test samples a task that are scored between chunk ends, with the newest weights "
        "(docs/monitoring.md); 0: none",
    )
    probe_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="of the evaluators' time that such probes take at most; chunk ends that wait for scores come first",
    )
    cache_bytes: int = Field(
        4 << 30, ge=0, description="picture features that each evaluator keeps in memory (on a GPU: its own), in bytes"
    )
    disk_bytes: int = Field(
        32 << 30,
        ge=0,
        description="what does not fit there goes to a file in the run's folder, up to so many bytes and half of the "
        "free disk; it is gone with the run",
    )

    @field_validator("metrics")
    @classmethod
    def _metrics_are_ones_own(cls, metrics: list[str]) -> list[str]:
        for name in metrics:
            if not OWN.fullmatch(name):
                raise ValueError(f"{name!r} is not of the form my.py:Mine, a file of your own and what it defines")
        return metrics


class ClusterConfig(Section):
    """How many actors share the work."""

    address: str = Field("local", description="`local` starts a private Ray on this machine; or a cluster's address")
    ingest_actors: int = Field(2, ge=1, le=256, description="actors that read and preprocess")
    evaluators: int = Field(1, ge=1, le=256, description="actors that score")
    learners: int = Field(
        1, ge=1, le=256, description="ranks that share each batch, one actor each (docs/learners.md); 1: no group"
    )
    learner_mode: Literal["exact", "fast"] = Field(
        "exact",
        description="of several learners. `exact`: gradients of micro-batches are summed in stream order, so that any "
        "number of learners gives the same bits; `fast`: by all-reduces while the backward pass runs, to rounding",
    )
    compare_every: int = Field(
        100,
        ge=1,
        description="steps between comparisons of the ranks' weights, routers, optimizers and strategies; a difference "
        "stops the run",
    )
    side_by_side: int = Field(
        0,
        ge=0,
        description="of several seeds, or values of a sweep, so many run at a time; 0: as many as there is room for",
    )
    look_ahead: int = Field(8, ge=1, description="batches asked for ahead of the learner")
    heartbeat_seconds: float = Field(1.0, gt=0, description="how often every actor is asked whether it lives")
    silent_seconds: float = Field(30, gt=0, description="an actor that does not answer for so long is replaced")
    start_seconds: float = Field(
        120, gt=0, description="the same while its process starts, waiting for a place included"
    )
    stuck_seconds: float = Field(
        600, gt=0, description="an actor that answers but does not move on is replaced; longer than loading the model"
    )
    restarts: int = Field(5, ge=0, description="of one actor, in the window or in a row; at one more the run stops")
    restart_window_seconds: float = Field(600, gt=0, description="in which `restarts` are counted")
    backoff_seconds: float = Field(
        1.0, ge=0, description="before the second restart in a row, then doubled, 30 at most"
    )

    def micro_batch(self, batch_size: int, micro_batch: int) -> int:
        """Samples of a micro-batch by what `learner` says; a rank's part where a fast group shares whole batches."""
        whole = self.learners > 1 and self.learner_mode == "fast" and not micro_batch
        return -(-batch_size // self.learners) if whole else micro_batch


class MonitorConfig(Section):
    """Who sees a run's numbers, and where."""

    host: str = Field("127.0.0.1", description="another than loopback wants a token of every reader")
    token_file: str = Field("", description="file with that token; empty: a private file is made, its path printed")
    port: int = Field(0, ge=0, le=65535, description="0: any free port, printed")
    notify: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="webhook that alerts are posted to (Slack's JSON); empty: none. For want of a Prometheus",
    )
    sinks: list[str] = Field(
        default_factory=list,
        description="where the numbers go besides, names in streamcvit.monitoring.sinks.SINKS: tensorboard, wandb, "
        "mlflow; each needs the extra of its name",
    )
    sink_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of these, by name (see below)"
    )
    traces: str = Field(
        "",
        description="where OpenTelemetry traces of batches and evaluations go: `file` (traces/ in the run's folder), "
        "`console` (with --local), or the address of an OTLP collector (HTTP); empty: none. Needs `streamcvit[otel]`",
    )
    trace_share: float = Field(1.0, gt=0, le=1, description="of the traces, drawn by their numbers, that is kept")

    @field_validator("traces")
    @classmethod
    def _traces_go_somewhere(cls, where: str) -> str:
        if not re.fullmatch(r"(console|file|https?://\S+)?", where):
            raise ValueError(f"{where!r} is neither file, console nor a collector's address (http://...)")
        return where

    @model_validator(mode="after")
    def _sinks_are_known(self) -> MonitorConfig:
        if self.sinks or self.sink_options:
            from streamcvit.monitoring.sinks import check_sinks

            check_sinks(self.sinks, self.sink_options)
        return self
