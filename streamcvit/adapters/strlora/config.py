"""Configuration of StrLoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from streamcvit.adapters.config import ExpertConfig
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
        distill_after_chunk: chunks, of those announced with `begin_chunk`, before distillation begins; the running
            averages then start at the weights (published: 1).
        freeze_query_key: hold the token router's query and key projections.
        freeze_prototypes: hold its expert prototypes; with both, hold every router.
        freeze_after_chunk: chunks, announced as above, after which every router is held (published: 4 for InternVL, 3
            for Gemma); None for never.
    """

    num_experts: int = field(default=8, metadata={"help": "Number of experts"})
    top_k: int = field(default=2, metadata={"help": "Experts per sample; 0 for all"})
    sub_top_k: int = field(default=1, metadata={"help": "Experts per token; 0 for the sample's weights"})
    attention_dim: int = field(default=64, metadata={"help": "Query size of the token router; 0 for a linear one"})
    instruction_dim: int = field(default=384, metadata={"help": "Size of the instruction embedding"})
    distill_lambda: float = 0.1
    distill_beta: float = 0.999
    distill_tau: float = 1.0
    distill_after_chunk: int = 0
    freeze_query_key: bool = False
    freeze_prototypes: bool = False
    freeze_after_chunk: int | None = None

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

        if self.distill_after_chunk < 0 or (self.freeze_after_chunk or 0) < 0:
            raise UserError("distill_after_chunk and freeze_after_chunk count chunks", where="StrLoraConfig")

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
    def held(self) -> tuple[str, ...]:
        """Weights of the routers that are not to train any more."""
        held = ("query", "key") * self.freeze_query_key + ("prototypes",) * self.freeze_prototypes
        return held + ("token_router", "sample_router") * (self.freeze_query_key and self.freeze_prototypes)

    @property
    def averaged(self) -> tuple[str, ...]:
        """Those of the token router that train and so have a running average to be distilled from."""
        return tuple(name for name in self.routers if name not in self.held) if self.distill_lambda else ()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Weights that never get a gradient: those held, and the sample's router where it only picks the set."""
        return self.held + (("sample_router",) if self.sub_top_k else ())
