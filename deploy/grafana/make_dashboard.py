"""Make the Grafana dashboard: `python deploy/grafana/make_dashboard.py` writes dashboards/streamcvit.json beside it.

It stands on the metrics of `streamcvit.monitoring.definitions`, has the run and its methods as variables, and finds its
Prometheus by the data source that deploy/grafana/provisioning names. A panel is one line in `ROWS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import common, timeseries
from grafana_foundation_sdk.builders.bargauge import Panel as BarGauge
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

DATASOURCE = DataSourceRef(type_val="prometheus", uid="streamcvit-prometheus")
TARGET = Path(__file__).parent / "dashboards" / "streamcvit.json"
CHOSEN = 'run=~"$run",method=~"$method"'


@dataclass(frozen=True)
class Query:
    """What a panel asks.

    Attributes:
        expr: PromQL; `CHOSEN` stands where a metric's labels are to be those of the variables.
        legend: Grafana's template of a series' name.
    """

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title, description: for whoever looks.
        queries: what it shows.
        kind: `lines`, `stat` or `bars`.
        unit: Grafana's name of it.
        width: of 24.
        low, high: of the axis, where they are known.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "lines"
    unit: str = "none"
    width: int = 12
    low: float | None = None
    high: float | None = None


def metric(name: str, *labels: str) -> str:
    """A metric of the chosen runs and methods."""
    return f"streamcvit_{name}{{{','.join((CHOSEN, *labels))}}}"


def quantile(share: float, name: str, *by: str) -> str:
    """A quantile of a histogram over the last minutes."""
    kept = ", ".join(("run", "method", *by, "le"))
    return f"histogram_quantile({share}, sum by ({kept}) (rate({metric(f'{name}_bucket')}[5m])))"


ONE, TASK = "{{run}}/{{method}}", "{{method}} {{task}}"
POINTS = "points"

ROWS: dict[str, tuple[Panel, ...]] = {
    "How it stands": (
        Panel("AP", "Mean score of the seen tasks after the newest chunk.",
              (Query(metric("average_performance_points"), ONE),), "stat", POINTS, 6, 0, 100),
        Panel("Learned", "Chunks learned to their end.",
              (Query(metric("chunks_completed_total"), ONE),), "stat", width=6),
        Panel("Forgotten most", "Best score of an earlier chunk end less the score now.",
              (Query(f"topk(5, {metric('task_forgetting_points')} > 0) or topk(1, {metric('task_forgetting_points')})",
                     TASK),), "bars", POINTS, 12, 0, 100),
    ),
    "Scores and forgetting": (
        Panel("Scores of tasks", "Strict scores at chunk ends.",
              (Query(metric("task_score_points", 'scorer="strict"'), TASK),), unit=POINTS, low=0, high=100),
        Panel("Forgetting of tasks", "Best less now. Above 10, for sure, the rules tell.",
              (Query(metric("task_forgetting_points"), TASK),), unit=POINTS),
        Panel("Probes between chunk ends", "The newest weights on a few samples of each seen task; low and high: 95 %.",
              (Query(metric("task_probe_points"), TASK),
               Query(metric("task_probe_low_points"), f"{TASK} low"),
               Query(metric("task_probe_high_points"), f"{TASK} high")), unit=POINTS, low=0, high=100),
        Panel("Weights that are scored", "Optimizer steps in the newest chunk end, and in what was probed last.",
              (Query(metric("snapshot_version"), f"chunk end {ONE}"),
               Query(metric("probe_version"), f"probe {ONE}"))),
        Panel("AP, MAP and MIF", "MAP is the mean of AP over the chunks so far, MIF that of instructions followed.",
              (Query(metric("average_performance_points"), f"AP {ONE}"),
               Query(metric("mean_average_performance_points"), f"MAP {ONE}"),
               Query(metric("mean_instruction_following_points"), f"MIF {ONE}")), unit=POINTS, low=0, high=100),
        Panel("Backward transfer and mean forgetting", "By variant: docs/scoring.md.",
              (Query(metric("backward_transfer_points"), f"BWT {{{{variant}}}} {ONE}"),
               Query(metric("mean_average_forgetting_points"), f"MAF {{{{variant}}}} {ONE}")), unit=POINTS),
        Panel("Instructions followed", "Share of answers in the form that the instruction asks for.",
              (Query(metric("task_following_ratio"), TASK),), unit="percentunit", low=0, high=1),
        Panel("Strict and published scorers disagree", "Answers of the newest chunk end, by task.",
              (Query(metric("task_disagreements"), TASK),)),
    ),
    "Learning": (
        Panel("Prequential loss", "On the newest samples, before learning from them; nats.",
              (Query(metric("prequential_loss"), ONE),)),
        Panel("Prequential accuracy", "All answer tokens right before learning, in the newest chunk.",
              (Query(metric("prequential_accuracy_ratio"), TASK),), unit="percentunit", low=0, high=1),
        Panel("Place in the stream", "Position of the next sample, and what is left.",
              (Query(metric("stream_position"), f"position {ONE}"),
               Query(metric("stream_lag_samples"), f"left {ONE}"))),
        Panel("Time of a step", "Median and 95th percentile of the last minutes.",
              (Query(quantile(0.5, "learner_step_seconds"), f"median {ONE}"),
               Query(quantile(0.95, "learner_step_seconds"), f"95 % {ONE}")), unit="s", low=0),
        Panel("Waiting", "Share of its time that the learner stands still.",
              (Query(f"rate({metric('learner_wait_seconds_total')}[5m])", f"for {{{{reason}}}} {ONE}"),),
              unit="percentunit", low=0),
        Panel("Steps skipped", "Loss or gradient was not finite.",
              (Query(metric("steps_skipped_total"), f"{{{{reason}}}} {ONE}"),)),
    ),
    "Arriving": (
        Panel("Arrivals", "Of a stream that goes on: shards taken, and what was set aside, by reason.",
              (Query(metric("arrivals_taken_total"), f"taken {ONE}"),
               Query(metric("arrivals_set_aside_total"), f"aside: {{{{reason}}}} {ONE}"))),
        Panel("Waiting at the source", "Shards that are not taken; held back: the learner is behind.",
              (Query(metric("arrivals_waiting"), f"shards {ONE}"),
               Query(metric("arrivals_held_back"), f"held back {ONE}")), low=0),
        Panel("Behind the arrivals", "Age of the oldest sample that is not learned.",
              (Query(f"time() - ({metric('oldest_arrival_timestamp_seconds')} > 0)", ONE),), unit="s", low=0),
    ),
    "Reading and scoring": (
        Panel("Batches ready", "0 for long: reading is what is slow.",
              (Query(metric("ingest_queue_batches"), ONE),), low=0),
        Panel("Samples that cannot be used", "By class of fault.",
              (Query(metric("samples_quarantined_total"), f"{{{{reason}}}} {ONE}"),)),
        Panel("Scores behind", "Chunks learned whose ends are not scored, and optimizer steps since the newest score.",
              (Query(f"{metric('chunks_completed_total')} - {metric('chunks_scored')}", f"chunks {ONE}"),
               Query(metric("evaluation_lag_versions"), f"steps {ONE}")), low=0),
        Panel("Time to score a task", "Median of the last minutes.",
              (Query(quantile(0.5, "evaluation_seconds", "task"), TASK),), unit="s", low=0),
    ),
    "Routing": (
        Panel("Use of experts", "Share of the routes of each expert in the newest chunk.",
              (Query(metric("router_expert_share_ratio"), "{{method}} {{bank}} {{expert}}"),), unit="percentunit",
              low=0, high=1),
        Panel("Entropy of the banks", "0 where one expert takes all, ln(experts) where all share alike.",
              (Query(metric("router_entropy_nats"), "{{method}} {{bank}}"),), low=0),
        Panel("Drift of routes", "Share of earlier tasks' routes that moved since each was last learned.",
              (Query(metric("router_drift_ratio"), "{{method}} {{bank}}"),), unit="percentunit", low=0, high=1),
        Panel("Drift of experts", "Relative change of what the experts that were picked then give for the same input.",
              (Query(metric("expert_drift_ratio"), "{{method}} {{bank}}"),), unit="percentunit", low=0),
    ),
    "Health": (
        Panel("Restarts", "Of each actor.", (Query(metric("actor_restarts_total"), "{{actor}}"),), width=8),
        Panel("Time of a commit", "95th percentile of the last minutes.",
              (Query(quantile(0.95, "commit_seconds"), ONE),), unit="s", width=8, low=0),
        Panel("Since the last commit", "What a stop would cost.",
              (Query(f"time() - {metric('last_commit_timestamp_seconds')}", ONE),), unit="s", width=8, low=0),
        Panel("Size of a commit", "Of the newest.", (Query(metric("commit_bytes"), ONE),), unit="bytes", width=8),
        Panel("Age of the newest snapshot", "Published at chunk ends.",
              (Query(metric("snapshot_age_seconds"), f"age {ONE}"),), unit="s", width=8, low=0),
        Panel("Version of the newest snapshot", "Optimizer steps.",
              (Query(metric("snapshot_version"), ONE),), width=8),
    ),
}  # fmt: skip
HEIGHT = 8


def drawn(panel: Panel, number: int, x: int, y: int) -> timeseries.Panel | Stat | BarGauge:
    """A panel of Grafana's with a number of its own, at a place of the grid."""
    builder: timeseries.Panel | Stat | BarGauge = {"lines": timeseries.Panel, "stat": Stat, "bars": BarGauge}[
        panel.kind
    ]()
    builder.id(number).title(panel.title).description(panel.description).datasource(DATASOURCE)
    builder.unit("none" if panel.unit == POINTS else panel.unit).grid_pos(GridPos(h=HEIGHT, w=panel.width, x=x, y=y))
    if panel.low is not None:
        builder.min(panel.low)
    if panel.high is not None:
        builder.max(panel.high)
    if panel.unit == POINTS:
        builder.decimals(1)
    if isinstance(builder, timeseries.Panel):
        builder.line_width(2).fill_opacity(0).legend(
            common.VizLegendOptions().show_legend(True).display_mode("table").placement("right").calcs(["lastNotNull"])
        )
    if panel.kind == "bars":
        steps = [
            Threshold(value=None, color="green"),
            Threshold(value=5, color="yellow"),
            Threshold(value=10, color="red"),
        ]
        builder.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    for letter, query in zip("ABCDEF", panel.queries, strict=False):
        target = Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(DATASOURCE)
        builder.with_target(target.range() if panel.kind == "lines" else target.instant())
    return builder


def variable(name: str, label: str, of: str) -> QueryVariable:
    """A variable whose choices are the values of a label."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values({of}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def dashboard() -> Dashboard:
    """All of it."""
    builder = (
        Dashboard("streamcvit")
        .uid("streamcvit")
        .description("What a run learns, and what it forgets")
        .tags(["streamcvit"])
        .refresh("5s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(variable("run", "Run", "streamcvit_stream_position"))
        .with_variable(variable("method", "Method", 'streamcvit_stream_position{run=~"$run"}'))
    )
    y, numbers = 0, count(1)
    for title, panels in ROWS.items():
        builder.with_row(Row(title).id(next(numbers)).grid_pos(GridPos(h=1, w=24, x=0, y=y)))
        y, x = y + 1, 0
        for panel in panels:
            if x + panel.width > 24:
                x, y = 0, y + HEIGHT
            builder.with_panel(drawn(panel, next(numbers), x, y))
            x += panel.width
        y += HEIGHT
    return builder


def text() -> str:
    """The dashboard as JSON."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard().build()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
