"""Configuration of EProj."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from streamcvit.adapters.config import peft_type
from streamcvit.errors import UserError

_FIX = "See docs/settings.md for its options"


@dataclass
class EProjConfig(PeftConfig):
    """Expansion of the projector (He et al., "Continual Instruction Tuning for Large Multimodal Models").

    Each cluster of samples has a projector, all else is frozen. A sample takes the one whose two keys are nearest to
    its picture and its instruction. The authors give every task a projector; here clusters are found in the stream,
    without labels.

    Args:
        num_projectors: projectors at most; when all are taken, samples go to the nearest.
        spawn_below: a training sample whose largest similarity, the sum of two cosines, is below it takes a free
            projector; above -2, 2 at most.
        key_loss: weight of the keys' loss, mean over a batch of (1 - cos to the image key) + (1 - cos to the
            instruction key).
        instruction_dim: size of RoutingInputs.instruction.
        visual_dim: size of the projected features.
        target_modules: the projector, where it cannot be told from the model's names; None: it is found.
    """

    num_projectors: int = field(default=8, metadata={"help": "Projectors at most"})
    spawn_below: float = field(default=1.5, metadata={"help": "Similarity below which a projector is added"})
    key_loss: float = field(default=0.1, metadata={"help": "Weight of the keys' loss"})
    instruction_dim: int = field(default=384, metadata={"help": "Size of the instruction embedding"})
    visual_dim: int | None = field(default=None, metadata={"help": "Size of the projected features"})
    target_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("EPROJ")
        if self.num_projectors < 1:
            raise UserError(f"num_projectors is at least 1 (got {self.num_projectors})", where="EProjConfig", fix=_FIX)
        if not -2 < self.spawn_below <= 2:
            told = f"spawn_below is a sum of two cosines, above -2 and 2 at most (got {self.spawn_below:g})"
            raise UserError(told, where="EProjConfig", fix=_FIX)
        if not 0 <= self.key_loss < float("inf"):
            raise UserError(
                f"key_loss is a number of at least 0 (got {self.key_loss:g})", where="EProjConfig", fix=_FIX
            )
        if self.visual_dim is None:
            raise UserError("visual_dim is needed", where="EProjConfig", fix="Give the language model's hidden size")
