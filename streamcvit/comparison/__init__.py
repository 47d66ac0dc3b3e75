"""Runs held against each other, against published numbers and against answers without a look at the picture.

It stands in front, as the commands do: it reads run folders (`monitoring`), judges them (`evaluation`), and hands what
it found to the report and the terminal as a plain `Verdict`.
"""

from streamcvit.comparison.decide import Comparison, compare_runs
from streamcvit.comparison.pages import report, verdict_of

__all__ = ["Comparison", "compare_runs", "report", "verdict_of"]
