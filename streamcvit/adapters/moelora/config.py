"""Configuration of MoELoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from streamcvit.adapters.config import ExpertConfig
from streamcvit.errors import UserError


@dataclass
class MoELoraConfig(ExpertConfig):
    """Mixture of low-rank experts weighed per token (Chen et al., "CoIN", NeurIPS 2024).

    Args:
        num_experts: number of experts E.
        top_k: keep only the k largest weights of a token, not renormalised; 0 keeps all.
    """

    num_experts: int = field(default=8, metadata={"help": "Number of experts"})
    top_k: int = field(default=0, metadata={"help": "Experts per token; 0 for all"})

    type_name: ClassVar[str] = "MOELORA"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.top_k <= self.num_experts:
            raise UserError("top_k must be between 0 and num_experts", where="MoELoraConfig")

    @property
    def total_experts(self) -> int:
        """Number of experts."""
        return self.num_experts
