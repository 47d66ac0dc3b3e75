"""The online learner and the strategies that extend its step."""

from streamcvit.learning.ledger import Ledger, read_ledger
from streamcvit.learning.online import OnlineLearner, StepReport
from streamcvit.learning.source import BatchSource, Schedule
from streamcvit.learning.strategies import (
    EWC,
    MAS,
    STRATEGIES,
    TIR,
    BalancedReplay,
    LossReplay,
    LwF,
    OLoRA,
    Replay,
    Sequential,
)

__all__ = [
    "EWC",
    "MAS",
    "STRATEGIES",
    "TIR",
    "BalancedReplay",
    "BatchSource",
    "Ledger",
    "LossReplay",
    "LwF",
    "OLoRA",
    "OnlineLearner",
    "Replay",
    "Schedule",
    "Sequential",
    "StepReport",
    "read_ledger",
]
