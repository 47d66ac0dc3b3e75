"""What lies in a folder of a person's data: files of rows, tars and pictures, each with the task and part it is named
after (`vqa/train.json`, `train/vqa.json`, `vqa_train.json`: the task `vqa`, its training part)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from streamcvit.data.files import tables
from streamcvit.data.images import EXTENSIONS
from streamcvit.errors import UserError
from streamcvit.pipeline import run_of

ROWS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
TARS = (".tar", ".tgz", ".gz")  # packed ones are not read; whoever reads them says how to unpack them
PICTURES = tuple(f".{ending}" for endings in EXTENSIONS.values() for ending in endings)
MADE = "-rows"
"""Behind a pipeline's name: the folder of the rows that were written for it."""
MAX_DEPTH = 6

_ABOUT = {"state.json", "dataset_info.json", "dataset_dict.json"}  # what `datasets` notes beside its tables
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}
_HINTS = {"question", "questions", "answer", "answers"}  # of a test set, where there is a training set beside
_WORDS = re.compile(r"([\W_]+)")
_NUMBERED = re.compile(r"(?P<front>.*?)(?P<mark>(?:^|[-_.])(?:part-)?)\d{3,}(?:-of-\d{3,})?")


@dataclass(frozen=True)
class Source:
    """One file of rows or tar, several that are numbered parts of one, or a folder that `datasets` saved.

    Attributes:
        path: relative to the folder, as a pipeline names it (perhaps a pattern).
        task: the task it is named after.
        part: `train`, `test`, `val`; `hint`: called questions or answers; empty: its name does not say.
        files: what it stands for; of a folder, the folder.
        tar: whether they are tars.
    """

    path: str
    task: str
    part: str
    files: tuple[Path, ...]
    tar: bool = False


@dataclass
class Survey:
    """What was found.

    Attributes:
        sources: in the order of their paths.
        pictures: folder -> names of the pictures in it, in order.
        folders: all that were looked into.
        odd_names: of files and folders that cannot be written into a pipeline (control signs, other encodings).
    """

    sources: list[Source] = field(default_factory=list)
    pictures: dict[Path, list[str]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    odd_names: list[str] = field(default_factory=list)


def survey(root: Path) -> Survey:
    """Look through a folder; hidden folders, runs, and what was written for a pipeline are passed over.

    Raises:
        UserError: it is not there, is no folder, or cannot be read.
    """
    fix = "Name the folder that holds your data"
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise UserError(what, where=str(root), fix=fix)
    if not str(root).isprintable():
        raise UserError("its path holds signs that cannot be written", where=ascii(str(root)), fix="Rename it")
    found, known = Survey(), set[str]()
    for where, inner, names in os.walk(root, onerror=_unreadable, followlinks=True):
        folder = Path(where)
        if (real := os.path.realpath(folder)) in known:  # a link to a folder above, or to one seen already
            inner.clear()
            continue
        known.add(real)
        found.odd_names += [ascii(one) for one in (*inner, *names) if not one.isprintable()]
        depth = len(folder.relative_to(root).parts)
        inner[:] = sorted(one for one in inner if depth < MAX_DEPTH and not _passed_over(folder, one, names))
        found.folders.append(folder)
        names = sorted(one for one in names if one.isprintable() and not one.startswith(".") and one not in _ABOUT)
        if (folder / "state.json").is_file() and tables.files_in(folder):
            task, part = named(root, folder.relative_to(root).parts)
            found.sources.append(Source(folder.relative_to(root).as_posix(), task, part, (folder,)))
            continue
        if pictures := [one for one in names if one.lower().endswith(PICTURES)]:
            found.pictures[folder] = pictures
        found.sources += _sources(
            root, folder, [one for one in names if one.lower().endswith((*ROWS, ".tar", ".tgz", ".tar.gz"))]
        )
    return found


def named(root: Path, parts: tuple[str, ...]) -> tuple[str, str]:
    """The task and the part that a path (without the ending) speaks of."""
    part, kept = "", list[str]()
    for place, one in enumerate(parts):
        words = _WORDS.split(one)  # every second is what stands between two
        low = [word.lower() for word in words]
        told = [_PARTS[word] for word in low if word in _PARTS]
        hint = place == len(parts) - 1 and not (part or told) and not _HINTS.isdisjoint(low)
        part = told[0] if told else part or ("hint" if hint else "")
        cut = {*_PARTS, *(_HINTS if told or hint else ())}
        pairs = zip(["", *words[1::2]], words[::2], strict=True)
        kept.append("".join(mark + word for mark, word in pairs if word.lower() not in cut).strip(" ._-"))
    task = re.sub(r"[^\w.-]+", "_", "_".join(filter(None, kept)) or root.resolve().name).lstrip("._-")
    return task.encode()[:100].decode(errors="ignore") or "task", part


def _passed_over(folder: Path, name: str, beside: list[str]) -> bool:
    if (
        name.startswith((".", "__"))
        or not name.isprintable()
        or (name.endswith(MADE) and f"{name.removesuffix(MADE)}.yaml" in beside)
    ):
        return True
    inner = folder / name
    runs = [inner / "config.yaml", *(inner.glob("*/config.yaml") if name == "runs" else ())]
    return any(run_of(one) is not None for one in runs)


def _sources(root: Path, folder: Path, names: list[str]) -> list[Source]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        numbered = _NUMBERED.fullmatch(stem)
        front, pattern = (numbered["front"], f"{numbered['front']}{numbered['mark']}*") if numbered else (stem, stem)
        groups.setdefault((front, pattern, suffix), []).append(name)
    above = folder.relative_to(root).parts
    sources = []
    for (front, pattern, suffix), group in groups.items():
        whole = len(group) > 1 and group == [one for one in names if fnmatchcase(one, pattern + suffix)]
        alone = whole or len(group) == 1
        for paths in [group] if alone else [[one] for one in group]:
            path = (folder / (pattern + suffix if whole else paths[0])).relative_to(root).as_posix()
            stem = front if alone else os.path.splitext(paths[0])[0]
            task, part = named(root, (*above, *filter(None, [stem])))
            sources.append(Source(path, task, part, tuple(folder / one for one in paths), suffix.lower() in TARS))
    return sources


def _unreadable(fault: OSError) -> None:
    raise UserError(f"cannot be read: {fault.strerror}", where=str(fault.filename), fix="Check its rights")
