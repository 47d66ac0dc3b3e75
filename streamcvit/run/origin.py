"""The adapter that a method starts from: found, kept in the run folder, put on the model."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from streamcvit.config import RunConfig
from streamcvit.data import strictjson
from streamcvit.errors import UserError
from streamcvit.learning.durable import fsync_folder, read_sealed, write_sealed
from streamcvit.models.snapshot import adapter_state, load_adapter_state

START = "start"
"""Subfolder of a method's run folder: the adapter that it started from, and what is known of it."""
SETTINGS, WEIGHTS, NOTE, LINEAGE = "adapter_config.json", "adapter_model.safetensors", "origin.json", "lineage.json"
_MAX_SETTINGS = 1 << 22
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")
FOLDERS = "Give a folder that `streamcvit adapters export` or PEFT's save_pretrained wrote"


@dataclass(frozen=True)
class Origin:
    """An adapter folder, looked at.

    Attributes:
        folder: where its two files lie.
        key: the setting that named it, for messages.
        settings: `adapter_config.json`.
        shapes: of its tensors, by name.
        digest: SHA-256 of both files.
        known: what else is known: `base`, `base_digest`, `encoder`.
    """

    folder: Path
    key: str
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    digest: str
    known: dict[str, str]

    @property
    def where(self) -> str:
        """The setting and the folder, as messages name them."""
        return f"{self.key} ({self.folder})"

    def modules(self, adapter: str) -> list[str]:
        """Names of the base's modules that its tensors are of."""
        found = (re.match(rf"base_model\.model\.(.+?)\.{adapter}_", name) for name in self.shapes)
        return list(dict.fromkeys(match[1] for match in found if match))


def content_digest(folder: Path) -> str:
    """SHA-256 of an adapter's settings and weights; OSError where one is not there."""
    digest = hashlib.sha256()
    for name in (SETTINGS, WEIGHTS):
        with open(folder / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _folder_of(given: str) -> Path:
    """The folder with the two files: as given, or `adapter` below it, as a commit has it."""
    folder = Path(given).expanduser()
    inner = folder / "adapter"
    return inner if not (folder / SETTINGS).is_file() and (inner / SETTINGS).is_file() else folder


def read(given: str | Path, key: str) -> Origin:
    """Look at an adapter folder: its settings, the names and shapes of its tensors, its digest.

    Args:
        given: a folder that PEFT or `streamcvit adapters export` wrote, or a commit.
        key: the setting that names it.

    Raises:
        UserError: it is not there, or not whole, or its weights would have to be unpickled.
    """
    folder = _folder_of(str(given))
    where = f"{key} ({folder})"
    if not folder.is_dir():
        raise UserError("is a file" if folder.exists() else "no such folder", where=where, fix=FOLDERS)
    if not (folder / SETTINGS).is_file():
        raise UserError(f"holds no {SETTINGS}", where=where, fix=FOLDERS)
    if not (folder / WEIGHTS).is_file():
        if pickled := next((name for name in _PICKLES if (folder / name).exists()), ""):
            told = f"holds {pickled}, a pickle, and nothing is unpickled here"
            raise UserError(told, where=where, fix="Save it as safetensors (safe_serialization=True)")
        raise UserError(f"holds no {WEIGHTS}", where=where, fix=FOLDERS)
    try:
        if (folder / SETTINGS).stat().st_size > _MAX_SETTINGS:
            raise ValueError(f"larger than {_MAX_SETTINGS} bytes")
        settings = strictjson.loads((folder / SETTINGS).read_bytes())
        if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
            raise ValueError("it names no peft_type")
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        known = {"base": str(settings.get("base_model_name_or_path") or ""), **_known(folder)}
        return Origin(folder, key, settings, shapes, content_digest(folder), known)
    except (OSError, ValueError, SafetensorError) as error:
        told = f"cannot be read ({' '.join(str(error).split())[:200]})"
        raise UserError(told, where=where, fix="Restore it from a copy") from None


def _known(folder: Path) -> dict[str, str]:
    """What the exporter, or the run that a commit lies in, says of the adapter beside its files."""
    if (folder / NOTE).is_file():
        found = read_sealed(folder / NOTE)["known"]
    elif (folder / LINEAGE).is_file():
        found = strictjson.loads((folder / LINEAGE).read_bytes())
    elif folder.name == "adapter" and (folder.parent / "state.json").is_file():
        note = read_sealed(folder.parent / "state.json")
        for name in (SETTINGS, WEIGHTS):
            with open(folder / name, "rb") as file:
                if note["files"].get(f"adapter/{name}") != hashlib.file_digest(file, "sha256").hexdigest():
                    raise ValueError(f"{name} has another checksum than the commit was sealed with")
        found = {"encoder": note.get("encoder")}
        run = folder.parent.parent.parent / "run.json"
        if run.is_file():
            found["base_digest"] = strictjson.loads(run.read_bytes()).get("base_digest")
    else:
        found = {}
    if not isinstance(found, dict):
        raise ValueError(f"{LINEAGE} is no object")
    return {k: found[k] for k in ("base", "base_digest", "encoder") if isinstance(found.get(k), str)}


def find(config: RunConfig, method: str) -> Origin:
    """The adapter that a method starts from: the run's own copy where the run has begun, else the folder named.

    Raises:
        UserError: as `read`.
    """
    copy = config.folder(method) / START
    begun = (config.folder(method) / "run.json").is_file() and (copy / NOTE).is_file()
    return read(copy if begun else config.methods[method].start, f"methods.{method}.from")


def weights_of(origin: Origin) -> dict[str, torch.Tensor]:
    """Its tensors, of the content that was looked at.

    Raises:
        UserError: it changed meanwhile, or a weight is not finite.
    """
    try:
        raw = (origin.folder / WEIGHTS).read_bytes()
        digest = hashlib.sha256(hashlib.sha256((origin.folder / SETTINGS).read_bytes()).digest())
        digest.update(hashlib.sha256(raw).digest())
        if digest.hexdigest() != origin.digest:
            raise UserError("changed while it was read", where=origin.where, fix="Try again")
        tensors = load(raw)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read ({error})", where=origin.where, fix="Restore it from a copy") from None
    for name in sorted(tensors):
        if tensors[name].is_floating_point() and not tensors[name].float().isfinite().all():
            raise UserError(f"{name} is not finite", where=origin.where, fix="Give a folder with sound weights")
    return tensors


def keep(config: RunConfig, method: str) -> dict[str, str]:
    """Copy the adapter that a method starts from into its run folder, whole or not at all.

    Returns:
        Where it came from and its digest, as `run.json` has them; empty for a method that starts fresh.

    Raises:
        UserError: as `read`; it changed meanwhile.
    """
    settings = config.methods.get(method)
    if settings is None or not settings.start:
        return {}
    given = settings.start
    source, copy = read(given, f"methods.{method}.from"), config.folder(method) / START
    lineage = {"from": given, "digest": source.digest, "known": source.known}
    draft = copy.with_name(f".{START}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for name in (SETTINGS, WEIGHTS):
            shutil.copyfile(source.folder / name, draft / name)
            with open(draft / name, "rb") as file:
                os.fsync(file.fileno())
        if content_digest(draft) != source.digest:
            raise UserError("changed while it was copied", where=source.where, fix="Try again")
        write_sealed(draft / NOTE, lineage)
        shutil.rmtree(copy, ignore_errors=True)  # of a run that was never begun
        os.rename(draft, copy)
        fsync_folder(copy.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"from": given, "digest": source.digest, **source.known}


def put_on(model: PeftModel, folder: Path) -> str:
    """Give a model the weights of a run's copy.

    Args:
        model: with a fresh adapter of that method.
        folder: `start` of the method's run folder.

    Returns:
        The digest of the copy's files: the model was found to hold these weights, in the types it has for them.

    Raises:
        UserError: the copy is damaged or does not fit.
    """
    try:
        lineage = read_sealed(folder / NOTE)
    except (OSError, ValueError) as error:
        raise UserError(f"damaged ({error})", where=str(folder / NOTE), fix="Restore it from a copy") from None
    origin = read(folder, "start")
    if origin.digest != lineage["digest"]:
        raise UserError("is not what the run started from", where=str(folder), fix="Restore it from a copy")
    tensors = weights_of(origin)
    try:
        load_adapter_state(model, tensors)
    except ValueError as error:
        raise UserError(str(error), where=str(folder), fix="Resume with the run's own config") from None
    held = adapter_state(model)
    for name, tensor in held.items():
        if not tensor.equal(tensors[name].to(tensor.dtype)) or not tensor.float().isfinite().all():
            told = f"{name} cannot be held as {str(tensor.dtype).removeprefix('torch.')}"
            raise UserError(told, where=str(folder), fix="Choose a wider model.dtype")
    return origin.digest


def changed(config: RunConfig, method: str, kept: Any) -> tuple[str, str] | None:
    """The digests of what a run started from and of what the folder named holds, where these differ.

    The original need not be there any more: a run that has begun reads its copy.
    """
    if not isinstance(kept, dict) or not config.methods[method].start:
        return None
    try:
        found = content_digest(_folder_of(config.methods[method].start))
    except OSError:
        return None
    return None if found == kept.get("digest") else (str(kept.get("digest"))[:12], found[:12])


def lines(config: RunConfig) -> Iterator[str]:
    """What each method starts from, for people, and whether that was learned on a base of another name."""
    for name, method in config.methods.items():
        if method.start:
            origin = find(config, name)
            base, here = origin.known.get("base", ""), config.model.name_or_path
            other = base and Path(base).name != Path(here).name and "base_digest" not in origin.known
            yield f"{name} starts from {method.start} (digest {origin.digest[:12]})" + (
                f"; it names another base, {base}" if other else ""
            )


def other_bases(config: RunConfig, base_digest: str) -> Iterator[str]:
    """A line for each method that starts from an adapter of a base with another digest than this run's."""
    for name, method in config.methods.items():
        if method.start:
            digest = find(config, name).known.get("base_digest", base_digest)
            if digest != base_digest:
                yield (
                    f"{name} starts from an adapter that was learned on another base "
                    f"(digest {digest[:12]}, here {base_digest[:12]})"
                )
