"""What a way of learning adds to the plain step; a new one is one file here and one line in `STRATEGIES`."""

from streamcvit.learning.strategies.base import Sequential
from streamcvit.learning.strategies.replay import Replay

STRATEGIES: dict[str, type[Sequential]] = {
    "sequential": Sequential,
    "replay": Replay,
}

__all__ = ["STRATEGIES", "Replay", "Sequential"]
