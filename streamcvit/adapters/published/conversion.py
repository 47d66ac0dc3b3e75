"""From a published folder to one that stock PEFT loads."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from streamcvit.adapters.published.files import (
    ADAPTER,
    AVERAGES,
    CONFIG,
    PREFIX,
    PROJECTOR,
    Problems,
    find,
    patterns,
    read_config,
    read_tensors,
)
from streamcvit.adapters.published.layout import (
    NAMES,
    Dims,
    Module,
    add_averages,
    by_module,
    check_tensors,
    number,
    whole,
)
from streamcvit.adapters.published.methods import CONFIGURATION, GIVEN, METHODS, TENSORS, Method, Settings
from streamcvit.adapters.published.places import place, projector
from streamcvit.errors import UserError

# What changes the maths and has no place here; it would be lost in silence.
_UNSUPPORTED = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Conversion:
    """A published adapter in our form.

    Attributes:
        kind: SMOLORA, STRLORA or MOELORA.
        config: its PEFT configuration.
        state: its tensors, float32, by the names under which PEFT saves them.
        modules: published path of each adapted module -> (its path in the model, features in, features out).
        settings: setting -> (value, where it is from).
        left: what of the folder is not in the result, and what was assumed, a line each.
    """

    kind: str
    config: PeftConfig
    state: dict[str, torch.Tensor]
    modules: dict[str, tuple[str, int, int]]
    settings: dict[str, tuple[Any, str]]
    left: list[str] = field(default_factory=list)


def convert(
    folder: str | Path,
    model: nn.Module | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    skip: str | None = None,
    carry_projector: bool = False,
) -> Conversion:
    """Read a published adapter; needs no model, since every shape is in the checkpoint.

    Reads `adapter_config.json`, `adapter_model.safetensors` or `.bin` (tensors only: nothing in it is run) and
    StrLoRA's `router_distill_ema`. The published configuration gives the number of experts of both banks together
    (`expert_num`) and the rank of all of them together (`r`); both are compared with the tensors.

    Args:
        folder: the published folder.
        model: a model whose modules may be nested otherwise than in the one that was trained: adapted modules are
            placed by name, or by the longest common end of their paths outside the vision tower. Only its names and
            shapes are read, so it may lie on the meta device. None keeps the published paths.
        options: settings that complete or override the published configuration, such as `top_k` or `pool`. SMoLoRA
            comes with its frozen router pooling all positions, as it was trained; `pool="image"` does without padding.
        skip: regular expression; modules whose published path it matches are left out.
        carry_projector: also take what `non_lora_trainables` holds, as `modules_to_save`; needs `model`.

    Raises:
        UserError: files or tensors are missing, unknown, damaged, of the wrong shape, at odds with the configuration,
            or fit no module of the model. The message names all of them.
    """
    folder = Path(folder)
    left: list[str] = []
    published = read_config(folder)
    kind = str(published.get("peft_type", "")).upper()[:40]
    if kind not in METHODS:
        raise UserError(f"adapters of type {kind!r} are not known", where=str(folder), fix=f"Known: {list(METHODS)}")
    problems = Problems(folder)
    modules, skipped = _modules(folder, skip, problems)
    if skipped:
        left.append(f"{skipped} adapted modules were skipped")
    dims = Dims.of(modules)
    method = METHODS[kind]
    settings = _settings(published, method, dims, options or {}, folder)
    sizes = {path: module.sizes for path, module in modules.items()}
    places = {path: path for path in sizes} if model is None else place(sizes, model, problems)
    settings.note(TENSORS, target_modules=sorted(places.values()))
    config = _config(method, settings, published, folder)
    unused: list[str] = []
    for path, module in modules.items():
        wanted = method.shapes(module, dims, config)
        check_tensors(module, wanted, method.spare, dims, problems)
        unused += [f"{NAMES[name]} of {path}" for name in sorted(module.named.keys() - wanted.keys())]
    problems.check()
    config.modules_to_save, extra = _projector(folder, model, places, carry_projector, left, problems)
    state = {f"{PREFIX}{name}": tensor for name, tensor in extra.items()}
    for path, module in modules.items():
        for name, tensor in method.weights(module, config).items():
            # A copy, since a file of tensors may hold no two that share their memory.
            state[f"{PREFIX}{places[path]}.{name}"] = tensor.clone(memory_format=torch.contiguous_format)
    left += [f"not used by these settings: {name} (x{count})" for name, count in patterns(unused).items()]
    left += _remarks(kind, config, dims)
    left += [f"file not part of the adapter: {name}" for name in _other_files(folder)]
    placed = {path: (places[path], *size) for path, size in sizes.items()}
    return Conversion(kind, config, state, placed, settings.values, left)


def load_published(folder: str | Path, model: nn.Module, **options: Any) -> PeftModel:
    """Put a published adapter on `model`, in eval mode.

    Args:
        folder: the published folder.
        model: the base model.
        options: settings that complete or override the published configuration, as in `convert`, which also says what
            is refused.
    """
    found = convert(folder, model, options=options)
    adapted = get_peft_model(model, found.config)
    assert isinstance(adapted, PeftModel)
    set_peft_model_state_dict(adapted, found.state)
    for line in found.left:
        if line.startswith(PROJECTOR):
            warnings.warn(line, stacklevel=2)
    return adapted.eval()


def import_adapter(
    folder: str | Path, to: str | Path, model: nn.Module | None = None, *, base: str | None = None, **how: Any
) -> Conversion:
    """Write a published adapter as a folder that `PeftModel.from_pretrained` loads once this package is imported.

    Args:
        folder: the published folder.
        to: the folder to make; it shows whole or not at all.
        model: as in `convert`.
        base: name or path of the base model, for the configuration; None keeps the published one.
        how: `options`, `skip` and `carry_projector`, as in `convert`.

    Raises:
        UserError: `to` exists or cannot be written, or what `convert` refuses.
    """
    to = Path(to)
    if to.exists() or to.is_symlink():
        raise UserError("exists already", where=str(to), fix="Choose another folder")
    found = convert(folder, model, **how)
    if base is not None:
        found.config.base_model_name_or_path = base
    draft = to.parent / f".{to.name}.{os.getpid()}"
    try:
        draft.mkdir(parents=True)
        found.config.save_pretrained(str(draft))
        save_file(found.state, draft / f"{ADAPTER}.safetensors", metadata={"format": "pt"})
        draft.rename(to)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(to), fix="Choose another folder") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return found


def _modules(folder: Path, skip: str | None, problems: Problems) -> tuple[dict[str, Module], int]:
    path = find(folder, ADAPTER)
    if path is None:
        raise UserError(
            f"no {ADAPTER}.safetensors or {ADAPTER}.bin",
            where=str(folder),
            fix="Give the folder of a published adapter",
        )
    tensors, averages = read_tensors(path, problems), {}
    if kept := find(folder, AVERAGES):
        averages = read_tensors(kept, problems)
    problems.check()
    modules = by_module(tensors, problems)
    add_averages(modules, averages, problems)
    try:
        wanted = {p: m for p, m in modules.items() if skip is None or not re.search(skip, p)}
    except re.error as error:
        raise UserError(f"{skip!r} is not a regular expression ({error})", fix="Mend the pattern to skip") from None
    if not any(m.experts["A"] for m in wanted.values()):
        problems.add("no adapter weights in the file")
        problems.check()
    return wanted, len(modules) - len(wanted)


def _settings(
    published: Mapping[str, Any], method: Method, dims: Dims, options: Mapping[str, Any], folder: Path
) -> Settings:
    """Every setting with where it is from; raises where the configuration contradicts the tensors."""
    problems = Problems(folder)
    experts, total = whole(published, "expert_num", problems), whole(published, "r", problems)
    if experts is not None and experts != dims.experts:
        problems.add(f"expert_num is {experts} in the configuration, the tensors hold {dims.experts} experts")
    if total is not None and total != dims.experts * dims.r:
        problems.add(
            f"r is {total} in the configuration, the tensors hold {dims.experts} experts of rank {dims.r}, "
            f"{dims.experts * dims.r} together"
        )
    for key in _UNSUPPORTED:
        if published.get(key):
            problems.add(f"{key} is set in the configuration and not supported")
    settings = method.settings(published, dims, problems)
    settings.note(TENSORS, r=dims.r)
    alpha = number(published, "lora_alpha", problems)
    settings.note(CONFIGURATION if alpha is not None else "assumed: scaling 2", lora_alpha=alpha)
    known = {f.name for f in dataclasses.fields(method.config)} - {"peft_type", "target_modules", "modules_to_save"}
    for name in options:
        if name not in known:
            problems.add(f"{method.config.__name__} has no setting of this name", name)
        elif name in settings.fixed():
            problems.add("settings that follow from the tensors and cannot be given", name)
    number(options, "lora_alpha", problems)
    settings.note(GIVEN, **options)
    problems.check()
    unsaid = [name for name, (value, _) in settings.values.items() if value is None and name != "lora_alpha"]
    if unsaid:
        raise UserError(
            f"the published configuration does not say {', '.join(unsaid)}",
            where=str(folder),
            fix=f"Give it, as in --set {unsaid[0]}=2 or load_published(..., {unsaid[0]}=2)",
        )
    return settings


def _config(method: Method, settings: Settings, published: Mapping[str, Any], folder: Path) -> Any:
    values = {name: value for name, (value, _) in settings.values.items()}
    if values.get("router") == "prototype" or values.get("banks", "both") != "both":
        raise UserError(
            "published experts come with gates for both banks",
            where=str(folder),
            fix="Set router to frozen or straight_through, and leave banks",
        )
    try:
        config = method.config(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"bad setting: {error}", where=str(folder), fix="See docs/adapters.md") from None
    base = published.get("base_model_name_or_path")
    config.base_model_name_or_path = base if isinstance(base, str) else None
    return config


def _projector(
    folder: Path,
    model: nn.Module | None,
    places: Mapping[str, str],
    carry: bool,
    left: list[str],
    problems: Problems,
) -> tuple[list[str] | None, dict[str, torch.Tensor]]:
    """Modules of the projector and their tensors; where it is left, a line says so and names its keys."""
    path = find(folder, PROJECTOR)
    if path is None:
        if carry:
            raise UserError(f"there is no {PROJECTOR} to carry over", where=str(folder), fix="Do without the projector")
        return None, {}
    tensors = read_tensors(path, problems)
    problems.check()
    if not carry:
        names = ", ".join(f"{n} (x{c})" if c > 1 else n for n, c in patterns(list(tensors)).items())
        how = "carry it over with --projector and --model"
        left.append(f"{path.name}, the projector, was left ({how}): {len(tensors)} tensors, {names}")
        return None, {}
    if model is None:
        raise UserError("the projector can be carried over only to a model", where=str(folder), fix="Name it: --model")
    saved, state = projector(tensors, model, set(places.values()), problems)
    problems.check("Leave the projector out, or name the model that was trained")
    return saved, state


def _remarks(kind: str, config: Any, dims: Dims) -> list[str]:
    if kind == "STRLORA" and config.averaged and not any(name.startswith("average") for name in dims.held):
        return ["no running averages in the folder: they start at the routers' weights"]
    return []


def _other_files(folder: Path) -> list[str]:
    known = {CONFIG, *(f"{stem}{end}" for stem in (ADAPTER, AVERAGES, PROJECTOR) for end in (".bin", ".safetensors"))}
    return sorted(path.name for path in folder.iterdir() if path.name not in known)
