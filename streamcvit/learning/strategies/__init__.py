"""What a way of learning adds to the plain step; a new one is one file here and one line in `STRATEGIES`."""

from streamcvit.learning.strategies.base import Sequential
from streamcvit.learning.strategies.ewc import EWC
from streamcvit.learning.strategies.lwf import LwF
from streamcvit.learning.strategies.mas import MAS
from streamcvit.learning.strategies.replay import Replay

STRATEGIES: dict[str, type[Sequential]] = {
    "sequential": Sequential,
    "replay": Replay,
    "ewc": EWC,
    "mas": MAS,
    "lwf": LwF,
}

__all__ = ["EWC", "MAS", "STRATEGIES", "LwF", "Replay", "Sequential"]
