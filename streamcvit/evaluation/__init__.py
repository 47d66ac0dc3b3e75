"""Judging answers: scorers, instruction following, and the matrix of scores with every summary of it."""

from streamcvit.evaluation.follow import FOLLOW_RULES, FollowRule
from streamcvit.evaluation.scorers import SCORERS, Scorer
from streamcvit.evaluation.strcvit import STRCVIT_SCORERS

__all__ = [
    "FOLLOW_RULES",
    "SCORERS",
    "STRCVIT_SCORERS",
    "FollowRule",
    "Scorer",
]
