"""The online learner and the strategies that extend its step."""

from streamcvit.learning.ledger import Ledger, read_ledger
from streamcvit.learning.online import OnlineLearner, StepReport
from streamcvit.learning.source import BatchSource, Schedule
from streamcvit.learning.strategies import EWC, MAS, STRATEGIES, TIR, LwF, OLoRA, Replay, Sequential

__all__ = [
    "EWC",
    "MAS",
    "STRATEGIES",
    "TIR",
    "BatchSource",
    "Ledger",
    "LwF",
    "OLoRA",
    "OnlineLearner",
    "Replay",
    "Schedule",
    "Sequential",
    "StepReport",
    "read_ledger",
]
