"""Which modules an adapter goes to: those of the language model, unless the person who asks says otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from streamcvit.errors import UserError

ALL_LINEAR = "all-linear"
_WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def language_model(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of a model's language half; of a model that has no other, its decoder.

    Raises:
        UserError: it cannot be told from the rest.
    """
    for name, module in model.named_modules():
        if name.split(".")[-1] in ("language_model", "text_model") and "vision" not in name:
            return name, module
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else None
    name = next((str(name) for name, module in model.named_modules() if module is decoder), "")
    if decoder is None or not name:
        raise UserError("cannot tell its language model from its vision tower", where=type(model).__name__)
    return name, decoder


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers of the language model, without the output head; adapted ones are linear layers too.

    Raises:
        UserError: it has none, or as `language_model`.
    """
    prefix, language = language_model(model)
    names = [f"{prefix}.{name}" for name in _linears(language) if name.split(".")[-1] != "lm_head"]
    if not names:
        raise UserError("found no linear layers in its language model", where=type(model).__name__)
    return names


def target_modules(model: nn.Module) -> str | list[str]:
    """The linear layers of the language model, as PEFT's `target_modules`.

    Never the vision tower, the projector or the output head.

    Raises:
        UserError: the model has no language model with linear layers.
    """
    return pattern_of(model, linear_layers(model))


def settle_targets(
    model: nn.Module, default: str | list[str], options: Mapping[str, Any], *, beyond: bool = True
) -> dict[str, Any]:
    """An adapter's options with one answer to the question which modules it goes to, in `target_modules`.

    A word in a list means the language model's modules of that name, and others only where it has none; a word with a
    dot in it, or a regular expression, means what it matches anywhere. `all-linear` is the language model's linear
    layers. `exclude_modules` and `layers_to_transform` count with all of these, as PEFT has them.

    Args:
        model: the base, before it is adapted.
        default: `target_modules` where the options name none.
        options: the adapter's own settings.
        beyond: whether the adapter may go beyond the language model's layers.

    Raises:
        UserError: a name, a layer or a module to train whole that the model does not have; nothing is left; a module
            that the adapter cannot go to.
    """
    settled = {key: value for key, value in options.items() if key not in _WHERE}
    _check_whole(model, options.get("modules_to_save"))
    if not any(options.get(key) is not None for key in _WHERE):
        return {**settled, "target_modules": default}
    wanted = options.get("target_modules")
    chosen = _named(model, default if wanted is None else wanted)
    if (excluded := options.get("exclude_modules")) is not None:
        out = set(matching(model, excluded))
        chosen = [name for name in chosen if name not in out]
        if not chosen:
            raise UserError("every module is excluded", where="exclude_modules", fix="Exclude fewer")
    if options.get("layers_to_transform") is not None:
        chosen = _of_layers(chosen, options["layers_to_transform"], options.get("layers_pattern"))
    if not beyond and (outer := outside(model, chosen)):
        raise UserError(
            f"{outer[0]} is no layer of the language model, and experts are routed in that alone",
            where="target_modules",
            fix="Name layers of the language model; `lora` goes anywhere, and modules_to_save trains modules whole",
        )
    return {**settled, "target_modules": pattern_of(model, chosen)}


def outside(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of some modules that do not lie in the language model."""
    try:
        prefix = language_model(model)[0] + "."
    except UserError:  # it has no other half
        return []
    return [name for name in names if not name.startswith(prefix)]


def touched(model: nn.Module) -> list[str]:
    """Names of modules that an adapter is on, or of which a copy is trained; not what lies inside those."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside(name, found[-1:]):
            found.append(name)
    return found


def touched_before_language(model: nn.Module) -> list[str]:
    """The same of modules that image features depend on: those before the language model."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    names = [name for name in touched(model) if model.get_submodule(name) is not head]
    return outside(model, names)


def pattern_of(model: nn.Module, names: list[str]) -> str | list[str]:
    """A regular expression where one matches exactly these modules (short in a saved configuration), else their names.

    Two modules that only differ in the number of their layer or expert become one alternative.
    """
    shapes = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names)
    stem = _common_stem(list(shapes))
    tails = "|".join(re.escape(shape[len(stem) :]) for shape in shapes)
    pattern = f"{re.escape(stem)}({tails})".replace(r"\#", "#").replace("#", r"\d+")
    matched = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    return pattern if sorted(matched) == sorted(names) else names


def _linears(model: nn.Module) -> list[str]:
    adapters = touched(model)
    return [
        name
        for name, module in model.named_modules()
        if name in adapters
        and isinstance(module, BaseTunerLayer)
        and isinstance(module.get_base_layer(), nn.Linear)
        or isinstance(module, nn.Linear)
        and not inside(name, adapters)
    ]


def inside(name: str, others: Iterable[str]) -> bool:
    """Whether a name is of something within one of some modules."""
    return any(name.startswith(f"{other}.") for other in others)


def _common_stem(names: list[str]) -> str:
    """The longest common start of dotted names that ends behind a dot."""
    first, last = min(names), max(names)
    length = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind(".", 0, length) + 1]


def matching(model: nn.Module, wanted: str | Iterable[str]) -> list[str]:
    """Modules that PEFT would match: by a regular expression, or by the last parts of their names."""
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(wanted, str):
        try:
            return [name for name in names if re.fullmatch(wanted, name)]
        except re.error as error:
            raise UserError(f"{wanted!r} is no regular expression ({error})", where="target_modules") from None
    words = [str(word) for word in wanted]
    return [name for name in names if any(name == word or name.endswith(f".{word}") for word in words)]


def _named(model: nn.Module, wanted: str | Iterable[str]) -> list[str]:
    if isinstance(wanted, str):
        if wanted.lower() == ALL_LINEAR:
            return linear_layers(model)
        if not (found := matching(model, wanted)):
            raise _unknown(model, wanted)
        return found
    found = []
    for word in dict.fromkeys(wanted):
        matches = matching(model, [word])
        outer = set(outside(model, matches))
        inner = [name for name in matches if name not in outer]
        if not matches:
            raise _unknown(model, word)
        found += matches if "." in word or not inner else inner
    if not found:
        raise UserError("names no module", where="target_modules", fix=f"Leave it out for {ALL_LINEAR}")
    return list(dict.fromkeys(found))


def _unknown(model: nn.Module, word: Any) -> UserError:
    try:
        names = linear_layers(model)
    except UserError:
        names = _linears(model)
    ours = dict.fromkeys(name.split(".")[-1] for name in names)
    return UserError(
        f"the model has no module {str(word)!r:.80}",
        where="target_modules",
        fix=f"Its language model's linear layers are {', '.join(list(ours)[:12])}",
    )


def layer_numbers(model: nn.Module) -> list[int]:
    """Numbers of the language model's layers that have linear layers, ascending."""
    found = (re.match(r"(?:^|.*?\.)[^.]*\.(\d+)\.", name) for name in linear_layers(model))
    return sorted({int(match[1]) for match in found if match})


def _of_layers(names: list[str], layers: int | Iterable[int], pattern: str | Iterable[str] | None) -> list[str]:
    """Those of some modules that lie in layers of these numbers; a number is the first in a module's path."""
    stems = [pattern] if isinstance(pattern, str) else list(pattern or [r"[^.]*"])
    wanted = {layers} if isinstance(layers, int) else set(layers)
    number: dict[str, int] = {}
    for name in names:
        found = (re.match(rf"(?:^|.*?\.){stem}\.(\d+)\.", name) for stem in stems)
        if match := next(filter(None, found), None):
            number[name] = int(match[1])
    if lacking := sorted(wanted - set(number.values()), key=str):
        there = f"0 to {max(number.values())}" if number else "none"
        raise UserError(f"there is no layer {lacking[0]}", where="layers_to_transform", fix=f"Its layers are {there}")
    return [name for name in names if number.get(name) in wanted]


def _check_whole(model: nn.Module, words: Any) -> None:
    if words is not None and not (isinstance(words, list | tuple | set) and all(isinstance(w, str) for w in words)):
        raise UserError(f"{words!r:.80} is no list of names", where="modules_to_save", fix="Write [name, ...]")
    names = [name for name, _ in model.named_modules() if name]
    for word in words or ():
        if not any(name.endswith(word) for name in names):  # as PEFT matches them
            parts = dict.fromkeys(name.split(".")[-1] for name in names if name.count(".") < 2)
            raise UserError(
                f"the model has no module {word!r:.80}", where="modules_to_save", fix=f"It has {', '.join(parts)}"
            )
