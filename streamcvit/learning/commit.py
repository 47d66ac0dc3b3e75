"""Atomic commits: a folder that is there is whole.

A commit is written into a hidden sibling, every file and the folder are fsynced, and one rename puts it in place.
`state.json` holds the SHA-256 of every other file. Tensors are safetensors and the rest is JSON; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamcvit.errors import UserError

RESUME = "resume"  # subfolder with what only a restart needs: pruned from old commits, so that the adapter stays


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically and durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_commit(commits: Path, step: int, fill: Callable[[Path], None], state: dict[str, Any]) -> Path:
    """Create commit `step`, or leave the one that is there alone.

    Args:
        commits: folder of all commits; created if absent.
        step: optimizer steps, the commit's name.
        fill: writes the commit's files into the folder it is given.
        state: JSON values of `state.json`; the files' checksums are added under `files`.

    Returns:
        The commit's folder.
    """
    final = commits / f"{step:08d}"
    commits.mkdir(parents=True, exist_ok=True)
    if final.exists():  # a replayed step: its commit is already the truth
        return final
    draft = commits / f".tmp-{step:08d}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    fill(draft)
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    names = {str(path.relative_to(draft)): _sha256(path) for path in files}
    write_json(draft / "state.json", {**state, "step": step, "files": names})
    for folder in sorted({path.parent for path in files}, reverse=True):
        fsync_folder(folder)
    try:
        os.rename(draft, final)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if not final.exists():
            raise
    fsync_folder(commits)
    return final


def read_state(commit: Path) -> dict[str, Any]:
    """`state.json` of a commit whose files all have their checksums (pruned resume files excepted).

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        state = json.loads((commit / "state.json").read_text(encoding="utf-8"))
        names = state["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"damaged commit ({error})", where=str(commit), fix="Remove it; an older one is used") from None
    pruned = not (commit / RESUME).is_dir()
    for name, expected in names.items():
        if pruned and name.startswith(f"{RESUME}/"):
            continue
        path = commit / name
        if not path.is_file() or _sha256(path) != expected:
            raise UserError(
                "checksum differs or file missing", where=str(path), fix="Remove this commit; an older one is used"
            )
    return state


def list_commits(commits: Path) -> list[Path]:
    """All commits, oldest first."""
    if not commits.is_dir():
        return []
    return sorted(path for path in commits.iterdir() if path.is_dir() and path.name.isdigit())


def newest_resumable(commits: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest whole commit that still has its resume files.

    Returns:
        (folder, state, one line for each newer commit that was passed over because it is damaged), or None.
    """
    damaged: list[str] = []
    for commit in reversed(list_commits(commits)):
        if not (commit / RESUME).is_dir():
            continue
        try:
            return commit, read_state(commit), damaged
        except UserError as error:
            damaged.append(str(error))
    return None


def prune(commits: Path, keep: int) -> None:
    """Drop the resume files of all but the newest `keep` commits, and drafts of dead processes."""
    for draft in commits.glob(".tmp-*"):
        if not Path(f"/proc/{draft.name.rsplit('-', 1)[-1]}").exists():
            shutil.rmtree(draft, ignore_errors=True)
    whole = [commit for commit in list_commits(commits) if (commit / RESUME).is_dir()]
    for commit in whole[:-keep]:
        # Renaming first keeps a commit from ever showing half of its resume files.
        doomed = commit / f".{RESUME}"
        os.rename(commit / RESUME, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
