"""Atomic commits: a folder that is there is whole.

A commit is written into a hidden sibling, every file and folder is fsynced, and one rename puts it in place. Its name
is its step and the epoch of its writer (see `streamcvit.learning.epochs`). `state.json` holds the SHA-256 of every
other file, of the ledger's last part (see `streamcvit.learning.ledger`) and of itself. Tensors are safetensors and the
rest is JSON; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamcvit.errors import UserError
from streamcvit.learning.durable import fsync_folder, read_sealed, write_sealed
from streamcvit.learning.epochs import Epoch, Turn, epochs_in, history, name_of, parse_name
from streamcvit.learning.ledger import ASIDE, check_parts

RESUME = "resume"  # subfolder with what only a restart needs: pruned from old commits, so that the adapter stays
DRAFT, DOOMED = ".tmp-", f".{RESUME}"
_RESTORE = "Restore it from a copy"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_commit(
    commits: Path, step: int, fill: Callable[[Path], None], state: dict[str, Any], epoch: Epoch | None = None
) -> Path:
    """Create commit `step`, or leave the one that this writer made before alone.

    Args:
        commits: folder of all commits; created if absent.
        step: optimizer steps.
        fill: writes the commit's files into the folder it is given.
        state: JSON values of `state.json`, looked at after `fill`; the files' checksums are added under `files`.
        epoch: the writer's; None for a writer that no other can follow (a notebook).

    Returns:
        The commit's folder.

    Raises:
        Fenced: a newer learner took over; what was written does not count.
    """
    epoch = epoch or Epoch(commits.parent, 0)
    final = commits / name_of(step, epoch.number)
    commits.mkdir(parents=True, exist_ok=True)
    if final.exists():
        return final
    draft = commits / f"{DRAFT}{final.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        fill(draft)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        names = {str(path.relative_to(draft)): _sha256(path) for path in files}
        write_sealed(draft / "state.json", {**state, "step": step, "epoch": epoch.number, "files": names})
        for folder in sorted({path.parent for path in files}, reverse=True):
            fsync_folder(folder)
        epoch.check()
        os.rename(draft, final)  # fails on a commit that is there
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        epoch.check()  # a newer learner sweeps our drafts away under us: then that is what went wrong
        raise
    fsync_folder(commits)
    epoch.check()
    return final


def read_state(commit: Path) -> dict[str, Any]:
    """`state.json` of a commit whose files all have their checksums (pruned resume files excepted).

    Raises:
        UserError: a file is missing or damaged.
    """
    state = read_note(commit)
    pruned = not (commit / RESUME).is_dir()
    for name, expected in state["files"].items():
        if pruned and name.startswith(f"{RESUME}/"):
            continue
        path = commit / name
        if not path.is_file() or _sha256(path) != expected:
            raise UserError("checksum differs or file missing", where=str(path), fix=_RESTORE)
    return state


def read_note(commit: Path) -> dict[str, Any]:
    """`state.json` alone: the commit's other files are not looked at.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return read_sealed(commit / "state.json")
    except (OSError, ValueError) as error:
        raise UserError(f"damaged commit ({error})", where=str(commit), fix=_RESTORE) from None


def list_commits(commits: Path) -> list[Path]:
    """All commits that count, oldest first."""
    if not commits.is_dir():
        return []
    found = [(place, path) for path in commits.iterdir() if (place := parse_name(path.name)) and path.is_dir()]
    counts = history(commits.parent, {epoch for (_, epoch), _ in found})
    return [path for place, path in sorted(found) if counts.holds(*place)]


def newest_resumable(commits: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest whole commit that still has its resume files, with the ledger up to it.

    Returns:
        (folder, state, one line for each newer commit that was passed over because it is damaged), or None where
        nothing was committed yet.

    Raises:
        UserError: there are commits, and not one that a run can go on from.
    """
    damaged: list[str] = []
    there = list_commits(commits)
    for commit in reversed(there):
        if not (commit / RESUME).is_dir():
            continue
        try:
            state = read_state(commit)
            if "ledger" in state:
                check_parts(commits.parent / "ledger", state["step"], state["ledger"])
            return commit, state, [f"{what}; an older commit is used" for what in damaged]
        except UserError as error:
            damaged.append(f"{error.where}: {error.what}")
    if there:  # never start again from nothing over what was learned
        raise UserError(
            f"none of {len(there)} commits can be resumed ({damaged[0] if damaged else 'no resume files'})",
            where=str(commits),
            fix="Restore what is damaged from a copy, or start another run",
        )
    return None


def take_over(commits: Path, turn: Turn | None = None) -> tuple[Epoch, tuple[Path, dict[str, Any], list[str]] | None]:
    """Become the one writer of a run: take the next epoch, find what to go on from, set aside what does not count.

    Args:
        commits: folder of all commits.
        turn: the learner's, where somebody starts learners in turn.

    Returns:
        (the epoch, what `newest_resumable` gives).

    Raises:
        UserError: as `newest_resumable`; an epoch's record is lost. Nothing is touched.
        Fenced: someone else took over meanwhile, or this learner's turn is over.
    """
    history(commits.parent, epochs_in(commits) | epochs_in(commits.parent / "ledger"))
    epoch = Epoch.take(commits.parent, turn)
    found = newest_resumable(commits)
    epoch.begin(parse_name(found[0].name) if found else None)
    sweep(commits, epoch)
    return epoch, found


def sweep(commits: Path, epoch: Epoch) -> None:
    """Remove the drafts of older epochs and hide commits of theirs that do not count.

    Names belong to one epoch, so this can never touch a newer learner's work, however late it comes.
    """
    if not commits.is_dir():
        return
    there = list(commits.iterdir())
    counts = history(commits.parent, epochs_in(commits))
    for path in there:
        place = parse_name(path.name.removeprefix(DRAFT))
        if place is None or place[1] > epoch.number:
            continue
        if path.name.startswith(DRAFT):
            shutil.rmtree(path, ignore_errors=True)
        elif not counts.holds(*place):
            epoch.check()
            with contextlib.suppress(FileNotFoundError):  # another learner that begins did the same
                os.rename(path, path.with_name(f"{ASIDE}{path.name}"))


def withdraw(commits: Path, epoch: Epoch) -> None:
    """Hide the newest commits that were made while step after step was skipped: what led there is in their weights."""
    for commit in reversed(list_commits(commits)):
        if not _amid_skips(commit):
            return
        epoch.check()
        os.rename(commit, commit.with_name(f"{ASIDE}{commit.name}"))


def prune(commits: Path, keep: int, epoch: Epoch | None = None) -> None:
    """Drop what only a restart needs of all but the newest `keep` commits, and what does not count.

    A chunk boundary keeps its adapter for ever; a commit inside a chunk goes whole, so that the number of commits grows
    with the chunks alone. The newest that was not made amid skipped steps (see `withdraw`) stays whole too.

    Args:
        commits: folder of all commits.
        keep: at least 2, so that there is one to fall back to.
        epoch: the writer's.
    """
    epoch = epoch or Epoch(commits.parent, 0)
    sweep(commits, epoch)
    there = list_commits(commits)
    for commit in there:
        shutil.rmtree(commit / DOOMED, ignore_errors=True)  # left by a process killed right here
    whole = [commit for commit in there if (commit / RESUME).is_dir()]
    good = next((i for i in reversed(range(len(whole))) if not _amid_skips(whole[i])), 0)
    for commit in whole[: min(good, max(0, len(whole) - max(keep, 2)))]:
        epoch.check()
        # Renaming first keeps a commit from ever showing half of its files.
        if _inside_a_chunk(commit):
            doomed = commit.with_name(f"{DRAFT}{commit.name}")  # as a draft it is swept if this process is killed here
            os.rename(commit, doomed)
        else:
            doomed = commit / DOOMED
            os.rename(commit / RESUME, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _amid_skips(commit: Path) -> bool:
    try:
        return bool(read_note(commit).get("skips", {}).get("in_a_row"))
    except UserError:
        return False


def _inside_a_chunk(commit: Path) -> bool:
    try:
        return read_note(commit).get("boundary") is False
    except UserError:
        return False
