"""Configuration of StrLoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from streamcvit.adapters.tuner import ExpertConfig
from streamcvit.errors import UserError


@dataclass
class StrLoraConfig(ExpertConfig):
    """Two-stage mixture of low-rank experts for streams ("StrLoRA", arXiv 2605.16353).

    The instruction picks `top_k` experts for the sample, each token weighs those among itself; the routers are kept
    from drifting by distillation from their own running average.

    Args:
        num_experts: number of experts E.
        top_k: experts a sample may use; 0 for all.
        sub_top_k: experts a token uses among them; 0 to weigh all by the sample's router alone.
        attention_dim: size D of the token router's query and key; 0 for a linear token router.
        instruction_dim: size of RoutingInputs.instruction.
        distill_lambda: weight of the distillation loss (see `auxiliary_loss`); 0 for none.
        distill_beta: decay of the running average per optimizer step.
        distill_tau: temperature.
        freeze_query_key: hold the token router's query and key projections (published: from chunk 4 or 5 on).
        freeze_prototypes: hold its expert prototypes.
    """

    num_experts: int = field(default=8, metadata={"help": "Number of experts"})
    top_k: int = field(default=2, metadata={"help": "Experts per sample; 0 for all"})
    sub_top_k: int = field(default=1, metadata={"help": "Experts per token; 0 for the sample's weights"})
    attention_dim: int = field(default=64, metadata={"help": "Query size of the token router; 0 for a linear one"})
    instruction_dim: int = field(default=384, metadata={"help": "Size of the instruction embedding"})
    distill_lambda: float = 0.1
    distill_beta: float = 0.999
    distill_tau: float = 1.0
    freeze_query_key: bool = False
    freeze_prototypes: bool = False

    type_name: ClassVar[str] = "STRLORA"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.top_k <= self.num_experts or not 0 <= self.sub_top_k <= self.num_experts:
            raise UserError("top_k and sub_top_k must be between 0 and num_experts", where="StrLoraConfig")
        if (
            self.attention_dim < 0
            or self.distill_lambda < 0
            or not 0 <= self.distill_beta <= 1
            or self.distill_tau <= 0
        ):
            raise UserError(
                "attention_dim and distill_lambda must not be negative, distill_beta lies in 0..1, distill_tau above 0",
                where="StrLoraConfig",
            )

    @property
    def total_experts(self) -> int:
        """Number of experts."""
        return self.num_experts

    @property
    def routers(self) -> tuple[str, ...]:
        """Weights of the token router, without their prefix."""
        if not self.sub_top_k:
            return ()
        return ("query", "key", "prototypes") if self.attention_dim else ("token_router",)

    @property
    def averaged(self) -> tuple[str, ...]:
        """Those of them that train and so have a running average to be distilled from."""
        if not self.distill_lambda:
            return ()
        held = ("query", "key") * self.freeze_query_key + ("prototypes",) * self.freeze_prototypes
        return tuple(name for name in self.routers if name not in held)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Weights that never get a gradient: those held, and the sample's router where it only picks the set."""
        held = ("query", "key") * self.freeze_query_key + ("prototypes",) * self.freeze_prototypes
        return held + (("sample_router",) if self.sub_top_k else ())
