"""Folders of tables and plots: written whole, and never over files that are not their own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from streamcvit.comparison import writers
from streamcvit.comparison.sheets import heading
from streamcvit.comparison.whole import Whole
from streamcvit.errors import UserError
from streamcvit.monitoring.runs import METRICS
from streamcvit.monitoring.verdict import task_key

OWN = "files.json"
"""The list of what a command wrote into a folder; it may write over that again."""


def check_target(to: Path, command: str, force: bool = False) -> None:
    """Raises a UserError where a folder holds what the command did not write, unless that is forced."""
    if to.exists() and not to.is_dir():
        raise UserError("is no folder", where=str(to), fix="Choose another one")
    if force or not to.exists():
        return
    own = _own(to, command)
    others = sorted(str(p.relative_to(to)) for p in to.rglob("*") if p.is_file() and str(p.relative_to(to)) not in own)
    if others:
        fix = "Choose another folder, or give --force"
        raise UserError(f"holds files that `{command}` did not write, such as {others[0]}", where=str(to), fix=fix)


def write_folder(to: Path, command: str, fill: Callable[[Path], None], force: bool = False) -> list[str]:
    """Fill a folder; nothing of it shows before all of it is there.

    Args:
        to: the folder; made, or with its own older files replaced.
        command: who writes.
        fill: writes the files into a folder that it is given.
        force: write over files of others too.

    Returns:
        the files, relative to the folder.

    Raises:
        UserError: the folder holds what is not the command's, or cannot be written.
    """
    check_target(to, command, force)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as name:
            draft = Path(name)
            fill(draft)
            files = sorted(str(path.relative_to(draft)) for path in draft.rglob("*") if path.is_file())
            for old in _own(to, command) - set(files):
                (to / old).unlink(missing_ok=True)
            for file in files:
                (to / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(draft / file, to / file)
            (to / OWN).write_text(json.dumps({"written_by": f"streamcvit {command}", "files": files}, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(to), fix="Choose another folder") from None
    return files


def _own(to: Path, command: str) -> set[str]:
    """What the command wrote there, relative; paths that lead out of the folder are none of it."""
    try:
        said = json.loads((to / OWN).read_text(encoding="utf-8"))
        if said["written_by"] == f"streamcvit {command}":
            names = {str(name) for name in said["files"]}
            return {OWN} | {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return set()


def write_comparison(whole: Whole, to: Path, force: bool = False) -> list[str]:
    """Write a comparison: its tables in four forms, and its plots; the files, relative to the folder."""

    def fill(folder: Path) -> None:
        sheets = whole.sheets
        texts = {
            "comparison.json": json.dumps(whole.to_json(), ensure_ascii=False, indent=1) + "\n",
            "comparison.csv": writers.table_csv(sheets),
            "comparison.md": writers.markdown(sheets) + "\n" + "".join(f"- {note}\n" for note in whole.found.notes),
            **{f"{sheet.name}.tex": writers.tex(sheet) for sheet in sheets},
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "figures").mkdir()
        _plots(whole, folder / "figures")

    return write_folder(to, "compare", fill, force)


def _plots(whole: Whole, folder: Path) -> None:
    from streamcvit.comparison import plots

    found = whole.found
    if found.curves:
        plots.save(lambda: plots.curve_figure(found), folder, "ap")
    tasks = [(task, task_key(task)) for task in found.tasks if any(key[0] == task_key(task) for key in found.values)]
    if tasks:
        shown = [*tasks, ("AP", "ap")]
        plots.save(lambda: plots.task_figure(found, shown, dict(whole.baselines)), folder, "tasks")
    names = [(heading(name), name) for name in METRICS if any(key[0] == name for key in found.gaps)]
    pairs = found.pairs()
    if names and pairs:
        plots.save(lambda: plots.gap_figure(found, names, pairs), folder, "differences")
