"""One pipeline as several runs: a seed each (`seeds`), every value of settings (`sweep`), or each pair of both."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from streamcvit import strictyaml
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.sections import seed_list

MOST = 1000
"""Runs that one command may ask for."""


@dataclass(frozen=True)
class Variant:
    """One run of several.

    Attributes:
        name: of its folder, in the folder of all.
        values: swept key -> its value here, as it was written.
        config: of the run.
    """

    name: str
    values: dict[str, str]
    config: RunConfig


def parse_seeds(text: str) -> list[int]:
    """The seeds that `0-9` or `0,3,5-7` names, in order.

    Raises:
        UserError: it names none.
    """
    try:
        return seed_list(text)
    except ValueError as error:
        raise UserError(f"--seeds {text}: {error}", fix="For example --seeds 0-9, or --seeds 0,3,5-7") from None


def parse_sweep(texts: Sequence[str]) -> dict[str, list[str]]:
    """Key -> values, of `learner.lr=1e-4,3e-4`; a comma within brackets belongs to a value.

    Raises:
        UserError: it is not of that form, or a key comes twice.
    """
    sweep: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", values)]
        if not equals or not key.strip() or not all(found):
            fix = "For example --sweep learner.lr=1e-4,3e-4,1e-3"
            raise UserError(f"--sweep {text!r} is not of the form key.path=value,value", fix=fix)
        if key.strip() in sweep:
            raise UserError(f"--sweep {key.strip()} is there twice", fix="Name all its values in one")
        sweep[key.strip()] = found
    return sweep


def variants(config: RunConfig, read: Callable[[list[str]], RunConfig]) -> list[Variant]:
    """The runs that a config with `seeds` or `sweep` asks for, in the order of values, then of seeds.

    Args:
        config: of all.
        read: reads the pipeline again with more settings (`key.path=value`).

    Raises:
        UserError: a value that its setting cannot have, a setting that has no other value in any run, two runs of
            one name, or too many.
    """
    for key in config.sweep:
        if key.partition(".")[0] in ("seed", "seeds", "sweep", "name", "out"):
            raise UserError(f"sweep: {key} cannot be swept", fix="Name seeds with --seeds, or another setting")
    points = list(itertools.product(*config.sweep.values()))
    seeds = config.seeds or [config.seed]
    if len(points) * len(seeds) > MOST:
        raise UserError(
            f"{len(points) * len(seeds)} runs are asked for, {MOST} at most are possible", fix="Ask for fewer"
        )
    found = []
    for values in points:
        swept = dict(zip(config.sweep, values, strict=True))
        settings = [f"{key}={value}" for key, value in swept.items()]
        parts = [_slug(f"{key.rpartition('.')[2]}-{_plain(value)}") for key, value in swept.items()]
        for seed in seeds:
            name = "_".join([*parts, f"seed-{seed}"] if config.seeds else parts)[:64]
            own = read([*settings, f"seed={seed}"])
            more: dict[str, Any] = {"name": name, "out": str(config.folder()), "seeds": [], "sweep": {}}
            found.append(Variant(name, swept, own.model_copy(update=more | {"methods": _chosen(own, config)})))
    _check(found, config)
    return found


def _chosen(own: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The methods of one run: those of all, with this run's settings."""
    return {name: method for name, method in own.methods.items() if name in config.methods}


def _check(found: Sequence[Variant], config: RunConfig) -> None:
    if any(variant.config.guard.action == "pause" for variant in found):
        fix = "Choose another guard.action, or run them one by one"
        raise UserError("several runs side by side cannot stand still for a person", where="guard.action", fix=fix)
    name, count = Counter(variant.name.lower() for variant in found).most_common(1)[0]
    if count > 1:
        raise UserError(f"sweep: {count} runs would have the folder {name!r}", fix="Name each value once")
    for key, values in config.sweep.items():
        apart = {tuple(v.values[k] for k in config.sweep if k != key): set[str]() for v in found}
        for variant in found:
            rest = tuple(variant.values[k] for k in config.sweep if k != key)
            apart[rest].add(variant.config.model_copy(update={"name": "", "seed": 0}).dump())
        if any(len(dumps) < len(values) for dumps in apart.values()):
            fix = "Name values that differ, and a setting that they reach"
            raise UserError(f"sweep: the values of {key} do not make {len(values)} runs that differ", fix=fix)


def _plain(value: str) -> str:
    """A value without the quotes that YAML wants."""
    try:
        read = strictyaml.load(value)
    except (yaml.YAMLError, ValueError):
        return value
    return read if isinstance(read, str) else value


def _slug(text: str) -> str:
    """Text as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-_.") or "value"
