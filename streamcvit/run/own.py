"""Files of one's own that settings name (`my.py:Mine`): found, digested, kept in the run folder, and loaded from there.

A file is run as code only where a config names it, and only with the SHA-256 that the config notes (`own_code`): a
stream, a shard or an index names none. Before a run has begun it is the file beside the pipeline, then the run's copy.
"""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from streamcvit.config import OWN, OWN_CODE, RunConfig
from streamcvit.errors import UserError
from streamcvit.learning.durable import replacing

MOST = 1 << 20
"""Bytes of a file of one's own at most."""

_sources: dict[str, tuple[Path, bytes]] = {}  # SHA-256 -> what was read in this process
_modules: dict[str, ModuleType] = {}  # SHA-256 -> what it became


def references(config: RunConfig) -> dict[str, str]:
    """Key of a setting -> the `my.py:Mine` that it names, of all settings that may."""
    named = {f"stream.tasks.{t}.{k}": getattr(files, k) for t, files in config.stream.tasks.items() for k in _TASK_KEYS}
    named |= {f"methods.{name}.strategy": method.strategy for name, method in config.methods.items()}
    named |= {f"evaluation.metrics.{number}": name for number, name in enumerate(config.evaluation.metrics)}
    return {key: name for key, name in named.items() if OWN.fullmatch(name)}


_TASK_KEYS = ("format", "test_format", "scorer")


def noted(config: RunConfig, beside: Path, kept: Mapping[str, str]) -> RunConfig:
    """A config with the SHA-256 of every file that its settings name.

    Args:
        config: as it was read.
        beside: the folder that paths are relative to: the pipeline's.
        kept: path -> SHA-256 of files that the run's folder holds; the others are read.

    Raises:
        UserError: there is no such file, or none that is text, or it is not the one that `own_code` names.
    """
    found: dict[str, str] = {}
    for key, name in references(config).items():
        path = _split(name)[0]
        if path in kept:
            found[path] = kept[path]
        elif path not in found:
            found[path] = _read(beside / Path(path).expanduser(), f"{key} ({path})")
            if config.own_code.get(path, found[path]) != found[path]:
                raise UserError(
                    f"has the SHA-256 {found[path][:12]}, `{OWN_CODE}` names {config.own_code[path][:12]}",
                    where=f"{key} ({path})",
                    fix=f"Give the file that was meant, or remove `{OWN_CODE}`: it is filled in by itself",
                )
    return config if found == config.own_code else config.model_copy(update={OWN_CODE: found})


def keep(config: RunConfig) -> None:
    """Copy the files into the run's folder, where every process of the run finds them.

    Raises:
        UserError: the run's copy is damaged, or is not there and the file was not read here.
    """
    for path, digest in config.own_code.items():
        copy = copy_of(config, path)
        source = _source(config, path)
        if not copy.is_file() or hashlib.sha256(copy.read_bytes()).hexdigest() != digest:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as file:
                file.write(source)


def copy_of(config: RunConfig, path: str) -> Path:
    """Where the run's folder holds a file, by the path that a setting has."""
    stem = re.sub(r"\W", "_", Path(path).stem)[:40]
    return config.folder() / OWN_CODE / f"{stem}-{config.own_code[path][:16]}.py"


def load(config: RunConfig, name: str, key: str) -> Any:
    """What a setting's `my.py:Mine` names; the file is run once a process.

    Args:
        config: the run.
        name: as the setting has it.
        key: of the setting, for messages.

    Raises:
        UserError: the file cannot be had or raises an error, or it defines no such name.
    """
    path, what = _split(name)
    where = f"{key} ({path})"
    if path not in config.own_code:
        told = f"names a file that `{OWN_CODE}` does not list"
        raise UserError(told, where=where, fix="Read the config with streamcvit.pipeline.load_config")
    digest = config.own_code[path]
    if digest not in _modules:
        _modules[digest] = _run(config, path, where)
    try:
        return getattr(_modules[digest], what)
    except AttributeError:
        public = [one for one in vars(_modules[digest]) if not one.startswith("_")]
        fix = f"It defines {', '.join(public[:12])}" if public else "It defines nothing"
        raise UserError(f"defines no {what!r}", where=where, fix=fix) from None


def _run(config: RunConfig, path: str, where: str) -> ModuleType:
    digest = config.own_code[path]
    source = _source(config, path)
    file = _sources[digest][0]
    module = ModuleType(f"streamcvit_own_{digest[:16]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses look theirs up
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise fault(error, where, "cannot be loaded: ") from None
    return module


def fault(error: BaseException, where: str, before: str = "") -> UserError:
    """What code of one's own raised, in one line with the place in its file."""
    if isinstance(error, UserError):
        return error
    line = f", line {error.lineno}" if isinstance(error, SyntaxError) else _place(error)
    what = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())[:200]
    return UserError(f"{before}{type(error).__name__}: {what}{line}", where=where, fix="Mend the file")


def blamed(error: BaseException, config: RunConfig) -> UserError | None:
    """The line that says what code of one's own raised; None where an error came from elsewhere."""
    if not config.own_code or isinstance(error, UserError) or not isinstance(error, Exception):
        return None
    return fault(error, "code of your own") if _place(error) else None


def _place(error: BaseException) -> str:
    """The last line of code of one's own that an error came through, to be appended; empty: none."""
    files = {str(file): file.name for file, _ in _sources.values()}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f" ({files[frames[-1].filename]}, line {frames[-1].lineno})" if frames else ""


def lines(config: RunConfig) -> Iterator[str]:
    """For people: which files of their own a run takes part of, and for what."""
    for path, digest in config.own_code.items():
        uses = [f"{key} is {name}" for key, name in references(config).items() if _split(name)[0] == path]
        yield f"own code: {path} (SHA-256 {digest[:12]}): {'; '.join(uses)}"


def _split(name: str) -> tuple[str, str]:
    match = OWN.fullmatch(name)
    assert match is not None
    return match["path"], match["name"]


def _source(config: RunConfig, path: str) -> bytes:
    """The file's content: as it was read in this process, else the run's copy."""
    digest = config.own_code[path]
    if digest not in _sources:
        copy = copy_of(config, path)
        where = str(copy)
        if not copy.is_file():
            told = f"the run's copy of {path} is not there"
            raise UserError(
                told, where=where, fix="Restore it from a copy, or resume with the pipeline beside the file"
            )
        if (found := _read(copy, where)) != digest:
            told = f"the run's copy of {path} has another SHA-256 ({found[:12]}) than the config notes ({digest[:12]})"
            raise UserError(told, where=where, fix="Restore it from a copy")
    return _sources[digest][1]


def _read(file: Path, where: str) -> str:
    """Read a file; returns its SHA-256."""
    try:
        if not file.is_file():
            told = f"there is no file {file}"
            raise UserError(told, where=where, fix="Paths are relative to the pipeline's folder")
        with file.open("rb") as opened:
            data = opened.read(MOST + 1)
        data.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read as text ({reason})", where=where, fix="Check it") from None
    if len(data) > MOST:
        raise UserError(f"{file} has more than {MOST} bytes", where=where, fix="Name a Python file of your own")
    digest = hashlib.sha256(data).hexdigest()
    _sources[digest] = (file, data)
    return digest
