"""The report: one HTML file a person reads, made of words and tables, figures, and the drawing of both."""

from streamcvit.monitoring.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
