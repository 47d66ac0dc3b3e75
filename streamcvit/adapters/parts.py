"""Which modules of a vision-language model are its language model, projector, vision tower, embeddings and head."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from streamcvit.adapters.targets import language_model

PARTS = ("language model", "embeddings", "output head", "projector", "vision tower", "other")
"""Names of the parts, in the order in which they are said."""
_PROJECTOR = re.compile(
    r"projector|projection|connector|merger|aligner|q_?former|resampler|vision_(adapter|neck|proj)|embed_vision"
    r"|vision_embed_tokens|embeddings_table"
)
_IN_A_TOWER = re.compile(r"merger|connector|projector|aligner|vision_adapter|downsample")
_TOWER = re.compile(r"vision|visual|image|tower|encoder")
_OTHER = re.compile(r"audio|video_tower|generation|vqmodel")
_WRAPPING = re.compile(r"\.(modules_to_save|token_adapter)\.[^.]+|\.(base_layer|original_module)(?=\.|$)")


@dataclass(frozen=True)
class Parts:
    """Names of a model's modules, by what they are there for.

    What stands between tower and language model (multi_modal_projector, connector, merger, aligner, Q-Former ...) is
    the projector, also where it lies inside the tower's module (Qwen-VL's `visual.merger`).

    Attributes:
        language: the language model; it may hold the embeddings.
        projector, tower: outermost modules, which may be several; the tower's may hold the projector's.
        embeddings, head: the token embeddings and the output head; the head's is empty where a model has none.
    """

    language: str
    projector: tuple[str, ...]
    tower: tuple[str, ...]
    embeddings: str
    head: str

    @classmethod
    def of(cls, model: nn.Module) -> Parts:
        """Of any image-text-to-text model, adapted or not, also without weights.

        Raises:
            UserError: its language model cannot be told from the rest.
        """
        language = language_model(model)[0]
        head, embeddings = _embeddings(model, "get_output_embeddings"), _embeddings(model, "get_input_embeddings")
        outer = [name for name in _outside(model, language) if name not in (head, embeddings)]
        names = {name: name.rpartition(".")[2] for name in outer if not _OTHER.search(name.rpartition(".")[2])}
        projector = [name for name, own in names.items() if _PROJECTOR.search(own)]
        tower = [name for name, own in names.items() if name not in projector and _TOWER.search(own)]
        if not projector:
            for name in tower:
                for own, child in _bare(model.get_submodule(name)).named_children():
                    if _IN_A_TOWER.search(own):
                        size = len(child) if isinstance(child, nn.ModuleList) else 0
                        projector += [f"{name}.{own}.{k}" for k in range(size)] or [f"{name}.{own}"]
        return cls(language, tuple(projector), tuple(tower), embeddings, head)

    def part_of(self, name: str) -> str:
        """The part, one of `PARTS`, that a module or parameter belongs to."""
        plain = _WRAPPING.sub("", name)
        for part, modules in (
            ("output head", (self.head,)),
            ("embeddings", (self.embeddings,)),
            ("projector", self.projector),
            ("vision tower", self.tower),
            ("language model", (self.language,)),
        ):
            if any(module and (plain == module or plain.startswith(f"{module}.")) for module in modules):
                return part
        return "other"

    def sizes(self, model: nn.Module, trained: bool = False) -> dict[str, int]:
        """Weights of each part that has some; those that learn alone, where `trained`. Tied ones count once."""
        found = dict.fromkeys(PARTS, 0)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or not trained:
                found[self.part_of(name)] += parameter.numel()
        return {part: size for part, size in found.items() if size}

    def line(self, model: nn.Module) -> str:
        """For people: each part with its weights, and its name in the model where settings may want it."""
        names = {
            "language model": self.language,
            "projector": _short(self.projector),
            "vision tower": _short(self.tower),
        }
        sizes = self.sizes(model)
        said = [f"{part} {f'({names[part]}) ' if names.get(part) else ''}{size:,}" for part, size in sizes.items()]
        return f"weights of {type(model).__name__}: {', '.join(said)}; {sum(sizes.values()):,} in all"


def _short(names: tuple[str, ...]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 2 else ", ".join(names)


def _outside(model: nn.Module, language: str, above: str = "") -> Iterator[str]:
    """Outermost modules that neither are the language model nor hold it."""
    for own, child in model.named_children():
        name = f"{above}{own}"
        if name == language:
            continue
        if language.startswith(f"{name}."):
            yield from _outside(child, language, f"{name}.")
        else:
            yield name


def _embeddings(model: nn.Module, getter: str) -> str:
    try:
        found = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return ""
    return next((name for name, module in model.named_modules() if module is found), "")


def _bare(module: nn.Module) -> nn.Module:
    """A module without the trained copy beside it."""
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
