"""What a way of learning adds to the plain step; a new one is one file here and one line in `STRATEGIES`."""

from streamcvit.learning.strategies.base import Sequential
from streamcvit.learning.strategies.ewc import EWC
from streamcvit.learning.strategies.lwf import LwF
from streamcvit.learning.strategies.mas import MAS
from streamcvit.learning.strategies.olora import OLoRA
from streamcvit.learning.strategies.replay import Replay
from streamcvit.learning.strategies.replay_balanced import BalancedReplay
from streamcvit.learning.strategies.replay_loss import LossReplay
from streamcvit.learning.strategies.tir import TIR

STRATEGIES: dict[str, type[Sequential]] = {
    "sequential": Sequential,
    "replay": Replay,
    "replay-balanced": BalancedReplay,
    "replay-loss": LossReplay,
    "ewc": EWC,
    "mas": MAS,
    "lwf": LwF,
    "tir": TIR,
    "olora": OLoRA,
}


def rehearses(name: str) -> bool:
    """Whether a strategy of the package keeps samples to rehearse; one of one's own may do otherwise than its base."""
    return name in STRATEGIES and issubclass(STRATEGIES[name], Replay)


__all__ = [
    "EWC",
    "MAS",
    "STRATEGIES",
    "TIR",
    "BalancedReplay",
    "LossReplay",
    "LwF",
    "OLoRA",
    "Replay",
    "Sequential",
    "rehearses",
]
