"""Judging answers: scorers, instruction following, and the matrix of scores with every summary of it."""

from streamcvit.evaluation.bootstrap import Estimate, bootstrap_mean
from streamcvit.evaluation.follow import FOLLOW_RULES, FollowRule
from streamcvit.evaluation.matrix import Summary, compare, summarise
from streamcvit.evaluation.scorers import SCORERS, Scorer
from streamcvit.evaluation.strcvit import STRCVIT_SCORERS

__all__ = [
    "FOLLOW_RULES",
    "SCORERS",
    "STRCVIT_SCORERS",
    "Estimate",
    "FollowRule",
    "Scorer",
    "Summary",
    "bootstrap_mean",
    "compare",
    "summarise",
]
