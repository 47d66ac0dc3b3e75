"""From a YAML file and what the command line sets to a config, or to one line that says what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from streamcvit import strictyaml
from streamcvit.config import RunConfig
from streamcvit.data.sources import SOURCES
from streamcvit.errors import UserError
from streamcvit.explain import allowed, explain
from streamcvit.run.own import noted

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def load_config(path: str | Path | None, settings: list[str] | None = None, **top: Any) -> RunConfig:
    """Read a YAML file, apply `key.path=value` settings, validate.

    Args:
        path: YAML file, or the name of one that comes with the package; None starts from the defaults. The
            `config.yaml` of a run means the run in its own folder, wherever that was moved or copied to.
        settings: overrides such as `learner.lr=1e-3`; the value is YAML. Setting `learner.lr` also clears the
            methods' own rates, so that the rate named on the command line is the rate that is used.
        top: top-level keys that win over the file (None values are left out).

    Raises:
        UserError: unreadable file, bad YAML, unknown key or value (the message names the key and what is allowed), or
            no file where a setting names one of one's own; those are relative to the pipeline's folder (to the working
            directory, where the pipeline is one that comes with the package).
    """
    tree: dict[str, Any] = {}
    run = None
    if path is not None:
        path = found_pipeline(Path(path))
        tree = read_tree(path)
        if run := run_of(path):
            # It was written here, or the whole folder was moved, copied or renamed: the run is where it lies.
            tree |= {"out": str(run.parent), "name": run.name}
    for setting in settings or []:
        _apply(tree, setting)
    tree.update({key: value for key, value in top.items() if value is not None})
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        fix = allowed(error, RunConfig)
        if run and error.errors()[0]["loc"] == ("name",) and tree["name"] == run.name:
            fix = "Rename the folder"
        raise UserError(explain(error), where=str(path or "settings"), fix=fix) from None
    if run:  # it holds the files of one's own that it was started with
        return noted(config, Path(), config.own_code)
    beside = Path() if path is None or path.parent in _PIPELINES else path.parent
    return noted(config, beside, {})


def check_paths(config: RunConfig, pipeline: Path, *, model: bool = True) -> None:
    """The paths that a recipe leaves to the person who runs it.

    Args:
        config: as the command line has it.
        pipeline: what it was read from.
        model: whether the base model is needed too.

    Raises:
        UserError: one of them is not set, or there is nothing to follow.
    """
    if config.stream.source == "follow":
        SOURCES[config.stream.follow.source](config.stream.data)
    absent = {}
    if config.stream.source == "benchmark" and not config.stream.data:
        absent["stream.data"] = "--data FOLDER"
    if model and not config.model.name_or_path:
        absent["model.name_or_path"] = "--model FOLDER"
    if absent:
        more = f", or try it without: streamcvit run {pipeline} --dry-run" if config.stream.benchmark else ""
        raise UserError(
            f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} not set",
            where=str(pipeline),
            fix=f"Set {'both' if len(absent) > 1 else 'it'} in the file, or with {' '.join(absent.values())}{more}",
        )


def parse_setting(setting: str) -> tuple[list[str], Any]:
    """Key path and value of `key.path=value`; the value is YAML.

    Raises:
        UserError: it is not of that form.
    """
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {setting!r} is not of the form key.path=value", fix="For example --set learner.lr=1e-3")
    try:
        value = strictyaml.load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {key}: bad value ({_one_line(error)})", fix="Quote the value as in YAML") from None
    if isinstance(value, str) and _EXPONENT.fullmatch(value):  # YAML 1.1 reads 1e-3 as text
        value = float(value)
    return parts, value


def _apply(tree: dict[str, Any], setting: str) -> None:
    parts, value = parse_setting(setting)
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {'.'.join(parts)}: {part} is a value, not a section", fix="Shorten the key")
    node[parts[-1]] = value
    if parts == ["learner", "lr"]:
        methods = tree.get("methods")
        for method in methods.values() if isinstance(methods, dict) else ():
            if isinstance(method, dict):
                method.pop("lr", None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def builtin(name: str) -> Path:
    """A pipeline that comes with the project, by name: in the installed package, or in the checkout."""
    return next((path for path in _builtins() if path.stem == name), _PIPELINES[-1] / f"{name}.yaml")


_PIPELINES = [root / "pipelines" for root in (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1])]


def _builtins() -> list[Path]:
    return [path for folder in _PIPELINES for path in sorted(folder.glob("*.yaml"))]


def found_pipeline(path: Path) -> Path:
    """The file a person means: the one there, else the pipeline of that name."""
    if not path.is_file() and path.name == str(path) and not path.suffix and builtin(path.name).is_file():
        return builtin(path.name)
    return path


def run_of(path: Path) -> Path | None:
    """The folder of the run (not of one of its methods) that a `config.yaml` belongs to; None: it is a pipeline's."""
    if path.name != "config.yaml":
        return None
    folder = path.absolute().parent
    if (folder / "run.json").is_file() and (folder.parent / path.name).is_file():
        folder = folder.parent  # a method's
    begun = (folder / "lock.json").is_file() or any(folder.glob("*/run.json"))
    return folder if begun else None


def read_tree(path: Path) -> dict[str, Any]:
    """The tree of a YAML file.

    Raises:
        UserError: unreadable, no YAML, no mapping, empty, or a key that stands twice.
    """
    where = str(path)
    try:
        loaded = strictyaml.load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        names = ", ".join(found.stem for found in _builtins())
        fix = f"Give the path of a YAML file, or the name of one that comes with streamcvit: {names}"
        raise UserError("no such file", where=where, fix=fix) from None
    except IsADirectoryError:
        fix = "Give the path of a YAML file, for a run's folder its config.yaml"
        raise UserError("is a folder", where=where, fix=fix) from None
    except strictyaml.Doubled as error:
        raise UserError(str(error), where=where, fix="Keep one of them") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=where, fix="Check the path and its rights") from None
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UserError(f"is not valid YAML ({_one_line(error)})", where=where, fix="Mend the line it names") from None
    if loaded is not None and not isinstance(loaded, dict):
        raise UserError("must be a mapping of keys to values", where=where, fix="See pipelines/ for examples")
    if not loaded:
        raise UserError("is empty", where=where, fix="See pipelines/ for examples")
    return loaded
