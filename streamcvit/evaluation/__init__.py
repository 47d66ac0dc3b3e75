"""Judging answers: the matrix of scores with every summary of it, scorers, instruction following, and answering itself.

`Evaluator` and its kin load torch on first use; scorers and matrix do without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamcvit.evaluation.bootstrap import Estimate, bootstrap_mean
from streamcvit.evaluation.check import check_test_set
from streamcvit.evaluation.families import FAMILIES
from streamcvit.evaluation.follow import FOLLOW_RULES, FollowRule
from streamcvit.evaluation.matrix import Summary, summarise
from streamcvit.evaluation.scorers import SCORERS, Scorer
from streamcvit.evaluation.strcvit import STRCVIT_SCORERS

if TYPE_CHECKING:
    from streamcvit.evaluation.evaluator import Disagreement, Evaluator, Predictions
    from streamcvit.evaluation.generate import Generator

_HOME = {
    "Disagreement": "evaluator",
    "Evaluator": "evaluator",
    "Generator": "generate",
    "Predictions": "evaluator",
}

__all__ = [
    "FAMILIES",
    "FOLLOW_RULES",
    "SCORERS",
    "STRCVIT_SCORERS",
    "Disagreement",
    "Estimate",
    "Evaluator",
    "FollowRule",
    "Generator",
    "Predictions",
    "Scorer",
    "Summary",
    "bootstrap_mean",
    "check_test_set",
    "summarise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
