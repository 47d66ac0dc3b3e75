"""Published benchmarks, and files in any format that is read, made streams from the command line."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamcvit.config import RunConfig
from streamcvit.data.files import tables
from streamcvit.data.layouts import LAYOUTS
from streamcvit.data.shards.index import INDEX_NAME, StreamIndex
from streamcvit.data.shards.write import kept_part
from streamcvit.errors import UserError
from streamcvit.pipeline import load_config
from streamcvit.run.stream import Watch, prepare_stream
from streamcvit.start import begin
from streamcvit.start.survey import Source, Survey, survey
from streamcvit.start.words import found_lines

KINDS = {
    "files": "files of rows (JSON, JSON lines, CSV, Parquet, Arrow), tars, pictures by class",
    "csv": "CSV or TSV files",
    "hf": "Parquet or Arrow files, or folders that `datasets` saved",
}
"""What a source may be beside a published benchmark, and what is read of it."""


def import_stream(
    kind: str,
    source: Path,
    to: Path,
    *,
    settings: list[str] | None = None,
    seed: int = 0,
    test_share: float = 0.1,
    say: Callable[[str], None] = lambda _: None,
    watch: Watch = lambda *_: None,
) -> StreamIndex:
    """Make a stream of a benchmark's folder, or of files; ended early, the same call goes on where it was.

    Args:
        kind: a name in `LAYOUTS`, or in `KINDS`.
        source: the benchmark's data folder; a file, or a folder of files.
        to: the stream folder.
        settings: of the pipeline (`stream.scenario.preset=...`).
        seed: of what is drawn.
        test_share: of a task's rows that become its test set, where there is none.
        say: told what was found.
        watch: told how far it is.

    Raises:
        UserError: an unknown kind, missing files, nothing of that kind, another stream in the folder, or as
            `prepare_stream`.
    """
    if kind not in LAYOUTS and kind not in KINDS:
        near = difflib.get_close_matches(kind, [*LAYOUTS, *KINDS], 1)
        fix = f"Did you mean {near[0]}? " if near else ""
        known = f"Benchmarks: {', '.join(LAYOUTS)}; other sources: {', '.join(KINDS)}"
        raise UserError(f"there is no benchmark or kind of source {kind!r:.60}", fix=f"{fix}{known}")
    if not source.exists():
        home = f"; {LAYOUTS[kind].home}" if kind in LAYOUTS else ""
        raise UserError("there is no such file or folder", where=str(source), fix=f"Check the path{home}")
    if to.exists() and not (to / INDEX_NAME).is_file() and (not to.is_dir() or any(to.iterdir())):
        raise UserError("is there already, and holds no stream", where=str(to), fix="Name another folder with --to")
    if not os.access(next(parent for parent in to.absolute().parents if parent.exists()), os.W_OK):
        raise UserError("cannot be written to", where=str(to.absolute().parent), fix="Name another folder with --to")
    made = to.absolute().with_name(f".{to.name}.rows")
    given = [f"seed={seed}", *(settings or [])]
    if kind in LAYOUTS:
        own = {"source": "benchmark", "benchmark": kind, "data": str(source.absolute())}
        config = load_config(None, [*(f"stream.{key}={json.dumps(value)}" for key, value in own.items()), *given])
    try:
        if kind not in LAYOUTS:
            config = _of_files(kind, source, made, given, seed, test_share, say)
        return prepare_stream(config, to, watch=watch, resume=True)
    finally:
        if not begun(to):
            shutil.rmtree(made, ignore_errors=True)


def begun(to: Path) -> bool:
    """Whether an import into this folder was ended early, and can go on."""
    return kept_part(to).exists()


def _of_files(
    kind: str, source: Path, made: Path, settings: list[str], seed: int, test_share: float, say: Callable[[str], None]
) -> RunConfig:
    """The pipeline of a person's files, as `streamcvit init` writes it; new files of rows go into `made`."""
    root = source if source.is_dir() else source.parent
    pipeline, notes = made / "pipeline.yaml", made / "from.json"
    seen: list[Source] = []

    def only(found: Survey) -> Survey:
        wanted = list(_wanted(kind, source, found))
        if not wanted and (kind != "files" or source.is_file()):
            raise UserError(f"holds none of: {KINDS[kind]}", where=str(source), fix="Name another source, or its kind")
        seen.extend(wanted)
        return replace(found, sources=wanted, pictures=found.pictures if kind == "files" and root == source else {})

    try:
        before: Any = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    asked = [kind, str(source.absolute()), seed, test_share]
    if pipeline.is_file() and before == [*asked, _times(_wanted(kind, source, survey(root)))]:
        say("going on with the rows that were looked at before")
        return load_config(pipeline, settings)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    start = begin(root, pipeline, test_share=test_share, seed=seed, only=only)
    notes.write_text(json.dumps([*asked, _times(seen)]), encoding="utf-8")
    for line in found_lines(start):
        say(line)
    return load_config(pipeline, settings)


def _wanted(kind: str, source: Path, found: Survey) -> Iterator[Source]:
    for one in found.sources:
        if source.is_file():
            if source.absolute() not in one.files:
                continue
            one = replace(one, path=source.name, files=(source.absolute(),)) if len(one.files) > 1 else one
        table = any(file.is_dir() or file.suffix in (".parquet", ".arrow") for file in one.files)
        csv = all(file.suffix.lower() in (".csv", ".tsv") for file in one.files)
        if kind == "files" or (kind == "csv" and csv) or (kind == "hf" and table):
            yield one


def _times(sources: Iterable[Source]) -> dict[str, list[int]]:
    """Size and time of each file of these sources, of a folder of its tables."""
    found: dict[str, list[int]] = {}
    for name in dict.fromkeys(str(file) for one in sources for file in one.files):
        path = Path(name)
        there = [one.stat() for one in (tables.files_in(path) if path.is_dir() else [path]) if one.exists()]
        found[name] = [number for one in there for number in (one.st_size, one.st_mtime_ns)]
    return found
