"""What a way of learning adds to the plain step; a new one is one file here and one line in `STRATEGIES`."""

from streamcvit.learning.strategies.base import Sequential
from streamcvit.learning.strategies.ewc import EWC
from streamcvit.learning.strategies.lwf import LwF
from streamcvit.learning.strategies.mas import MAS
from streamcvit.learning.strategies.olora import OLoRA
from streamcvit.learning.strategies.replay import Replay
from streamcvit.learning.strategies.tir import TIR

STRATEGIES: dict[str, type[Sequential]] = {
    "sequential": Sequential,
    "replay": Replay,
    "ewc": EWC,
    "mas": MAS,
    "lwf": LwF,
    "tir": TIR,
    "olora": OLoRA,
}

__all__ = ["EWC", "MAS", "STRATEGIES", "TIR", "LwF", "OLoRA", "Replay", "Sequential"]
