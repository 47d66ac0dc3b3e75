"""The first pipeline for a folder of one's own data: what lies there, what is odd, a YAML file that runs at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from streamcvit.data.files.origins import ENDING
from streamcvit.data.shards.index import INDEX_NAME
from streamcvit.errors import UserError
from streamcvit.pipeline import load_config
from streamcvit.run.plans import files_plan
from streamcvit.start.gather import Gathered, Gathering
from streamcvit.start.recipe import Recipe, recipe, stream_recipe
from streamcvit.start.survey import MADE, Survey, survey


@dataclass
class Start:
    """What `begin` found and wrote.

    Attributes:
        table: a line a task, the first of names.
        odd, unused: what a person should look at; names of what was passed over, and why.
        written: the files.
        pipeline: the YAML file.
    """

    table: list[tuple[str, ...]]
    odd: list[str]
    unused: list[tuple[str, str]]
    pipeline: Path
    written: list[Path] = field(default_factory=list)


def begin(
    folder: Path,
    to: Path | None = None,
    *,
    test_share: float = 0.1,
    seed: int = 0,
    force: bool = False,
    only: Callable[[Survey], Survey] = lambda found: found,
) -> Start:
    """Look at a folder of data and write a pipeline for it, whole or not at all; the same folder and seed, the same.

    Args:
        folder: of the data; nothing in it is changed.
        to: the YAML file [default: pipeline.yaml in the folder]; new files of rows go into a folder beside it.
        test_share: of a task's rows that become its test set, where there is none.
        seed: of that draw, and of the run.
        force: write over what an earlier call wrote.
        only: takes of what lies there what is wanted.

    Raises:
        UserError: nothing usable lies there, the file is there already, or nothing can be written there.
    """
    root = folder.absolute()
    to = (root / "pipeline.yaml" if to is None else to).absolute()
    made = to.with_name(to.stem + MADE)
    part = to.with_name(f".{made.name}.part")
    found = only(survey(root))
    for there in (to, made):
        if there.exists() and not (force and _is_ours(there, to)):
            fix = "Name another file with --to" + ("" if force else ", or add --force")
            raise UserError("is there already", where=str(there), fix=fix)
    if not to.parent.is_dir():
        raise UserError("there is no such folder", where=str(to.parent), fix="Make it, or name another with --to")
    if not os.access(to.parent, os.W_OK):
        raise UserError("cannot be written to", where=str(to.parent), fix="Name a file elsewhere with --to")
    shutil.rmtree(part, ignore_errors=True)  # of a call that was killed
    try:
        if (root / INDEX_NAME).is_file():
            return _place(stream_recipe(root, seed), Gathered(), to, part, made)
        gathered = Gathering(root, found, part, test_share, seed).gather()
        _rename(gathered, part, made)
        written = recipe(root, gathered, seed)
        return _place(written, gathered, to, part, made)
    except OSError as fault:
        where = str(fault.filename or to)
        fix = "Make room, or name a file elsewhere with --to; nothing was written"
        raise UserError(f"cannot be read or written ({fault.strerror or fault})", where=where, fix=fix) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_ours(there: Path, to: Path) -> bool:
    """Whether it may be written over: a file, or a folder of nothing but what is made."""
    return there.is_file() if there == to else all(one.suffix in (".jsonl", ENDING) for one in there.iterdir())


def _rename(gathered: Gathered, part: Path, made: Path) -> None:
    """New files of rows are named as where they will lie."""
    for task in gathered.tasks:
        for one in filter(None, (task.train, task.test)):
            if one.made:
                one.path = str(made / Path(one.path).relative_to(part))


def _place(written: Recipe, gathered: Gathered, to: Path, part: Path, made: Path) -> Start:
    draft = to.with_name(f".{to.stem}.part.yaml")
    try:
        draft.write_text(written.text, encoding="utf-8")
        config = load_config(draft)
        if trained := {one.name: len(one.train.seen) for one in gathered.tasks if one.train}:
            files_plan(config.stream.scenario, trained, seed=0)
        wanted = {Path(one.path).name for task in gathered.tasks for one in (task.train, task.test) if one and one.made}
        for file in part.iterdir() if part.exists() else ():
            if file.name.removesuffix(ENDING) not in wanted:  # of a task that was passed over
                file.unlink()
        if made.exists():
            shutil.rmtree(made)
        if wanted:
            part.rename(made)
        os.replace(draft, to)
    finally:
        draft.unlink(missing_ok=True)
    files = [to, *sorted(one for one in made.iterdir() if one.suffix != ENDING)] if wanted else [to]
    return Start(written.table, gathered.odd, gathered.unused, to, files)
