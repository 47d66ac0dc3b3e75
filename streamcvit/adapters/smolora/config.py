"""Configuration of SMoLoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from streamcvit.adapters.config import ExpertConfig
from streamcvit.adapters.routing import POOLS
from streamcvit.errors import UserError

ROUTERS = ("frozen", "straight_through", "prototype")
FUSIONS = ("even", "learned")
SCOPES = ("instruction", "stream")
BANKS = {"both": ("visual", "instruction"), "visual": ("visual",), "instruction": ("instruction",)}


@dataclass
class SMoLoraConfig(ExpertConfig):
    """Separable mixture of low-rank experts (Wang et al., "SMoLoRA", ICCV 2025).

    Two banks of experts, one routed by what the picture shows, one by what the instruction demands; per sample one
    expert of each acts, and per position a learned softmax weighs the two. The published code splits `num_experts`
    evenly between the banks and gives the total rank; here both are per bank and per expert.

    Args:
        num_experts_visual: experts of the visual bank.
        num_experts_instruction: experts of the instruction bank.
        router: "frozen" (arg-max of a random gate, as published: it never learns), "straight_through" (the same gate,
            learning through the softmax) or "prototype" (online clustering of RoutingInputs.visual and .instruction,
            one route for all layers).
        pool: what the visual gate averages: "image" tokens (prompt text for samples without), "prompt" text, or "all"
            positions (as published; padding and the answer then change the route).
        banks: "both", or one bank alone at weight 1, as an ablation.
        fusion: how a sample's two experts are weighed: "even" (half each) or "learned" (a softmax per position over
            scores from rows that all experts and tasks share, as published: they drift with the stream).
        instruction_dim: size Di of RoutingInputs.instruction.
        visual_dim: size Dv of RoutingInputs.visual; needed by the prototype router.
        visual_scope: whose pictures share visual prototypes: those of one instruction expert ("instruction"), so that
            tasks that differ in their pictures alone get visual experts of their own, or all ("stream").
        spawn_below_visual: cosine below which a sample takes a free visual expert.
        spawn_below_instruction: the same for the instruction bank.
        spawn_below_text: the same for samples without a picture, which their prompts' text routes in the visual bank.
        visual_warmup: samples that only fill the visual statistics before the first visual prototype.
    """

    num_experts_visual: int = field(default=4, metadata={"help": "Experts of the visual bank"})
    num_experts_instruction: int = field(default=4, metadata={"help": "Experts of the instruction bank"})
    router: str = field(default="prototype", metadata={"help": "frozen, straight_through or prototype"})
    pool: str = field(default="image", metadata={"help": "image, prompt or all"})
    banks: str = field(default="both", metadata={"help": "both, visual or instruction"})
    fusion: str = field(default="even", metadata={"help": "even or learned"})
    visual_scope: str = field(default="instruction", metadata={"help": "instruction or stream"})
    instruction_dim: int = field(default=384, metadata={"help": "Size of the instruction embedding"})
    visual_dim: int | None = field(default=None, metadata={"help": "Size of the pooled visual feature"})
    spawn_below_visual: float = 0.0
    spawn_below_instruction: float = 0.8
    spawn_below_text: float = 0.8
    visual_warmup: int = 32

    type_name: ClassVar[str] = "SMOLORA"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, allowed in (
            ("router", self.router, ROUTERS),
            ("pool", self.pool, POOLS),
            ("banks", self.banks, tuple(BANKS)),
            ("fusion", self.fusion, FUSIONS),
            ("visual_scope", self.visual_scope, SCOPES),
        ):
            if value not in allowed:
                raise UserError(f"{name}={value!r} is not known", where="SMoLoraConfig", fix=f"Use one of {allowed}")
        if min(self.bank_sizes.values()) < 1:
            raise UserError(
                "every bank needs an expert", where="SMoLoraConfig", fix="Raise num_experts_*, or set banks"
            )
        if self.router == "prototype" and "visual" in self.bank_sizes and self.visual_dim is None:
            raise UserError(
                'router="prototype" needs the size of the visual feature',
                where="SMoLoraConfig",
                fix='Set visual_dim, or banks="instruction"',
            )

    @property
    def bank_sizes(self) -> dict[str, int]:
        """Experts per bank in use, in the order in which the weights hold them."""
        sizes = {"visual": self.num_experts_visual, "instruction": self.num_experts_instruction}
        return {bank: sizes[bank] for bank in BANKS[self.banks]}

    @property
    def fused(self) -> bool:
        """Whether two experts are weighed by a learned softmax."""
        return self.fusion == "learned" and len(self.bank_sizes) == 2

    @property
    def total_experts(self) -> int:
        """Experts of both banks, also where only one is in use, so that an ablation keeps the scaling."""
        return self.num_experts_visual + self.num_experts_instruction
