"""Watching a run: metrics for Prometheus, the view in the terminal, and the report.

Nothing here imports torch, ray, learning or evaluation: it reads run folders and plain values.
"""

from streamcvit.monitoring.definitions import BucketCounts, Source
from streamcvit.monitoring.exporter import Server, serve
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.page import render_report, write_report
from streamcvit.monitoring.runs import find_runs
from streamcvit.monitoring.terminal import LiveView, results_table, results_tables
from streamcvit.monitoring.verdict import Verdict

__all__ = [
    "BucketCounts",
    "LiveView",
    "MetricStore",
    "Source",
    "RunRecord",
    "Server",
    "Verdict",
    "find_runs",
    "render_report",
    "results_table",
    "results_tables",
    "serve",
    "write_report",
]
