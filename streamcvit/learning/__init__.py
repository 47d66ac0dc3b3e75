"""The online learner and the strategies that extend its step."""

from streamcvit.learning.ledger import Ledger, read_ledger
from streamcvit.learning.online import OnlineLearner, StepReport
from streamcvit.learning.source import BatchSource, Schedule
from streamcvit.learning.strategies import EWC, MAS, STRATEGIES, BalancedReplay, LossReplay, LwF, Replay, Sequential

__all__ = [
    "EWC",
    "MAS",
    "STRATEGIES",
    "BalancedReplay",
    "BatchSource",
    "Ledger",
    "LossReplay",
    "LwF",
    "OnlineLearner",
    "Replay",
    "Schedule",
    "Sequential",
    "StepReport",
    "read_ledger",
]
