"""Weights of an earlier commit put back into a learner that goes on from where it is in the stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from streamcvit.errors import UserError
from streamcvit.learning import commit as commits
from streamcvit.learning.epochs import parse_name
from streamcvit.models.snapshot import load_adapter_state

if TYPE_CHECKING:
    from streamcvit.learning.online import OnlineLearner


def put_back(learner: OnlineLearner, folder: Path, version: int, digest: str) -> None:
    """Give a learner, between two chunks, the weights and routers of an earlier boundary.

    The cursor stays, and so do random numbers and what the strategy keeps: a strategy that holds weights where they
    were at the last boundary (EWC, MAS, LwF) takes those put back for them, as the chunk after begins. AdamW's moments
    are those of steps that are undone, so they begin anew. The weights put back are a version of their own: versions
    only grow, and no two weights share one.

    Args:
        learner: between two chunks.
        folder: `commits/` of its run folder.
        version, digest: of the boundary.

    Raises:
        UserError: its commit is lost or damaged, or holds other weights.
    """
    fix = "Restore it from a copy, or go on without: --set guard.action=none --allow-change guard.action"
    there = [path for path in commits.list_commits(folder) if (place := parse_name(path.name)) and place[0] == version]
    if not there:
        raise UserError(
            f"the commit of version {version}, to which the guard goes back, is lost", where=str(folder), fix=fix
        )
    try:
        commits.read_state(there[-1])
        found = load_adapter_state(learner.model, load_file(there[-1] / "adapter" / "adapter_model.safetensors"))
    except UserError as error:
        raise UserError(f"{error.what}; the guard goes back to it", where=str(error.where), fix=fix) from None
    if found != digest:
        raise UserError(
            f"the commit of version {version} holds other weights than were scored", where=str(there[-1]), fix=fix
        )
    learner.optimizer.state.clear()
    learner.optimizer.load_copies({})  # of halves, as they are now
    learner.step += 1
