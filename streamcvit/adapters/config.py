"""Options that all routed tuners share, and their names among PEFT's types."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from peft import PeftConfig
from peft.utils import PeftType
from peft.utils.other import get_pattern_key

from streamcvit.errors import UserError


def peft_type(name: str) -> PeftType:
    """The member of PEFT's type enumeration called `name`, added where PEFT has none (it offers no call for that)."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)
    return PeftType[name]


@dataclass
class ExpertConfig(PeftConfig):
    """Options every routed tuner has.

    Args:
        r: rank of ONE expert.
        lora_alpha: scaling times the total rank, r * number of experts; None for a scaling of 2, the published one.
        lora_dropout: share of a layer's input that the experts do not see in training, drawn anew at every forward;
            routers and the base layer see all of it. Micro-batches then draw other numbers than the whole batch.
        rank_pattern: `r` of layers that a name or regular expression matches at its end, as in PEFT's LoRA.
        alpha_pattern: the same for `lora_alpha`.
        target_modules: names or a regular expression, as in PEFT's LoRA; language-model linears only.
        exclude_modules: the same, for modules to leave out.
        layers_to_transform: layer indices to adapt; None for all.
        layers_pattern: name of the layer list, with `layers_to_transform`.
        modules_to_save: other modules to train and save whole.
        init_weights: start B at zero, so that the adapted model starts as the base model; False draws it, for tests.
        seed: of the routers' initial weights, which do not depend on the global generator.
    """

    r: int = field(default=8, metadata={"help": "Rank of one expert"})
    lora_alpha: float | None = field(default=None, metadata={"help": "Scaling times total rank; None for scaling 2"})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the experts' input, in training"})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Rank by layer"})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "lora_alpha by layer"})
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True
    seed: int = 0

    type_name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type(self.type_name)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise UserError(
                "layers_to_transform does not count beside a regular expression",
                where=type(self).__name__,
                fix="Name the modules in a list, or the layers in the expression",
            )
        if not 0 <= self.lora_dropout < 1:
            raise UserError("lora_dropout is at least 0 and below 1", where=type(self).__name__)
        if min([self.r, *self.rank_pattern.values()]) < 1 or self.total_experts < 1:
            raise UserError("an adapter needs at least one expert of rank 1 or more", where=type(self).__name__)

    @property
    def total_experts(self) -> int:
        """Number of experts over all banks."""
        raise UserError("this configuration names no experts", where=type(self).__name__)

    @property
    def scaling(self) -> float:
        """Factor on the experts' output: lora_alpha over the total rank."""
        return 2.0 if self.lora_alpha is None else self.lora_alpha / (self.r * self.total_experts)

    def of_layer(self, key: str) -> Self:
        """The configuration of the layer called `key`, by `rank_pattern` and `alpha_pattern` (PEFT's semantics)."""
        if not self.rank_pattern and not self.alpha_pattern:
            return self
        r = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), key), self.r)
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), key), self.lora_alpha)
        return replace(self, r=r, lora_alpha=alpha)
