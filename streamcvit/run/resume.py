"""What must be the same when a run goes on, and how a difference is said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.run.folder import MISSING, code_version, read_run, versions
from streamcvit.run.origin import changed as changed_start

MAY_CHANGE = ("out", "name", "cluster", "monitor", "published", "seeds", "sweep")
"""What a resumed run may change: it does not touch what is learned or scored."""
PROBE_SETTINGS = ("probe_samples", "probe_share")
"""The same of `evaluation`."""
BESIDE = {"code": "streamcvit", "versions": "packages", "model": "model files", "index": "stream"}
"""What may differ although the settings are the same, in words."""
DEPENDS = ("torch", "transformers", "peft", "numpy", "tokenizers", "pillow")
"""Packages whose versions results depend on."""
ABSENT = "absent"

Changes = dict[str, tuple[str, str]]
"""key -> (what it was, what it is)."""


def check_folder(folder: Path, resume: bool) -> None:
    """A new run wants a new folder, a resumed one a run in it.

    Raises:
        UserError: otherwise.
    """
    saved = (folder / "config.yaml").exists()
    if saved and not resume:
        raise UserError("this run exists", where=str(folder), fix="Continue it with --resume, or choose another --name")
    if resume and not saved:
        fix = "Start it without --resume; one that was moved goes on with: streamcvit run FOLDER/config.yaml --resume"
        raise UserError("there is no run to resume", where=str(folder), fix=fix)


def check_names(config: RunConfig, allowed: Iterable[str]) -> None:
    """Let no misspelled key pass for a change that is allowed.

    Raises:
        UserError: there is no such setting, section or other thing that may change.
    """
    known = config.model_dump(mode="json") | dict.fromkeys(("code", "index", "versions"))
    for name in allowed:
        if not _holds(known, name.split(".")):
            raise UserError(
                f"--allow-change {name}: there is no such setting",
                fix="Name a setting (learner.lr), a section of them, code, model, index or versions",
            )


def _holds(tree: Any, parts: list[str]) -> bool:
    """Whether a path leads somewhere; below what names things freely (methods, options, packages) everything may."""
    for part in parts:
        if not isinstance(tree, dict) or part not in tree:
            return False
        if part in ("methods", "own_code", "options", "processor_options", "template_options", "versions"):
            return True
        tree = tree[part]
    return True


def setting_changes(config: RunConfig) -> Changes:
    """The settings that differ between a run and the one that its folder holds.

    Raises:
        UserError: the folder's config.yaml cannot be read.
    """
    before, after = _saved(config.folder() / "config.yaml"), config.model_dump(mode="json")
    rounding = [_rounding(tree.get("cluster") or {}) for tree in (before, after)]
    for section in MAY_CHANGE:
        before.pop(section, None), after.pop(section)
    before["cluster"], after["cluster"] = rounding
    for key in PROBE_SETTINGS:
        before["evaluation"].pop(key), after["evaluation"].pop(key)
    return _differences(before, after)


def _rounding(cluster: dict[str, Any]) -> dict[str, Any]:
    """What of a cluster decides how gradients are rounded: nothing, unless several learners sum them fast."""
    fast = cluster["learners"] > 1 and cluster["learner_mode"] == "fast"
    return {key: cluster[key] for key in ("learners", "learner_mode")} if fast else {}


def changes(config: RunConfig, base_digest: str, index_digest: str) -> Changes:
    """Everything that differs between a run and the one that its folder holds, key by key.

    Raises:
        UserError: the folder's config.yaml cannot be read.
    """
    found = setting_changes(config)
    now = versions()
    for method in config.methods:
        if not (config.folder(method) / "run.json").exists():
            continue
        record = read_run(config.folder(method))
        if record["finished"]:
            continue
        if start := changed_start(config, method, record.get("start")):
            found.setdefault(f"methods.{method}.from", start)
        was: dict[str, str] = record["versions"]
        pairs: Changes = {"code": (record.get("code", was["streamcvit"]), code_version())}
        pairs |= {f"versions.{name}": (was.get(name, MISSING), now[name]) for name in DEPENDS}
        pairs |= {"model": (record["base_digest"][:12], base_digest[:12])}
        pairs |= {"index": (record["index_digest"][:12], index_digest[:12])}
        found |= {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return found


def refuse(found: Changes, allowed: Iterable[str], where: Path) -> None:
    """Let nothing pass that was not allowed by name, or by the name of a section above it.

    Raises:
        UserError: names every change that is left, with both values.
    """
    names = tuple(allowed)
    left = {key: pair for key, pair in found.items() if not any(f"{key}.".startswith(f"{name}.") for name in names)}
    if left:
        said = "; ".join(f"{key}: {before} -> {after}" for key, (before, after) in left.items())
        beside = [_beside(key) for key in left]
        if all(beside):
            own = f"Go on with the {' and '.join(dict.fromkeys(beside))} that it was started with"
        else:
            own = "Resume with the run's own config.yaml"
        raise UserError(
            f"differs from the run that is to go on: {said}",
            where=str(where),
            fix=f"{own}, or allow it: " + " ".join(f"--allow-change {key}" for key in left),
        )


def _beside(key: str) -> str:
    """The word for what differs beside the settings; empty for a setting."""
    if key.startswith("methods.") and key.endswith(".from"):
        return "adapter folder"
    return BESIDE.get("versions" if key.startswith("versions.") else key, "")


def _saved(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        # Through the model, so that a setting that is new since then counts with its default.
        return RunConfig.model_validate(tree).model_dump(mode="json")
    except (OSError, ValueError, yaml.YAMLError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot be read ({reason})", where=str(path), fix="Restore it from a copy") from None


def _differences(before: dict[str, Any], after: dict[str, Any], above: str = "") -> Changes:
    found: Changes = {}
    for key in before | after:
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differences(old, new, f"{above}{key}.")
        elif old != new:
            found[f"{above}{key}"] = (_short(old), _short(new))
    return found


def _short(value: Any) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
