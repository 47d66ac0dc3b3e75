"""From a config to finished run folders: build the stream, start the pool, drive it, report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from streamcvit.cluster.drive import Driver, task_counts
from streamcvit.cluster.folder import RunFolder
from streamcvit.cluster.pools import LocalPool, Pool, RayPool
from streamcvit.cluster.session import metrics_token, session
from streamcvit.cluster.stream import prepare_stream, unreadable_rows
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.models.base import fetch, weight_files
from streamcvit.monitoring.report import write_report
from streamcvit.monitoring.terminal import LiveView

MAY_CHANGE = ("out", "cluster", "monitor")
"""Sections that a resumed run may change: they do not touch what is learned or scored."""


def execute(config: RunConfig, *, local: bool = False, resume: bool = False) -> Path:
    """Run every method of a config on its stream.

    Args:
        config: the run.
        local: in this process, without Ray.
        resume: continue the run that is in the folder.

    Returns:
        The report's path.

    Raises:
        UserError: a user's mistake, or a run that stopped and can be resumed (the message says which).
    """
    folder = config.folder()
    page = folder / "report.html"
    _check_folder(config, folder, resume)
    if resume and all(_finished(config.folder(name)) for name in config.methods):
        print(f"this run is already finished: {folder}")
        return page
    size = sum(file.stat().st_size for file in weight_files(fetch(config.model.name_or_path)))
    index = prepare_stream(config, folder / "stream")
    # Every process of the run sees the same folder, whatever its working directory.
    config = config.model_copy(update={"out": str(Path(config.out).absolute())})
    stream = str(config.folder() / "stream")
    counts = {name: task_counts(config, index, name) for name in config.methods}
    view = LiveView(list(counts), len(index), {name: max(1, len(rows)) for name, rows in counts.items()})
    view.message(
        f"stream: {len(index)} samples, {index.n_chunks} chunks, {len(index.tasks)} tasks in {folder / 'stream'}"
    )
    if (lost := unreadable_rows(folder / "stream")).exists():
        view.message(f"{len(lost.read_text(encoding='utf-8').splitlines())} rows could not be read: {lost}")
    with _pool(config, stream, size, local, view) as pool:
        (folder / "config.yaml").write_text(config.dump(), encoding="utf-8")
        folders = {name: RunFolder(config, name, index, rows, pool.base_digest) for name, rows in counts.items()}
        if pool.url:
            view.message(f"metrics: {pool.url}")
        with view:
            Driver(config, pool, folders, view).run()
    return write_report([config.folder(name) for name in config.methods], page, title=config.name)


def _finished(folder: Path) -> bool:
    record = folder / "run.json"
    return record.exists() and json.loads(record.read_text(encoding="utf-8"))["finished"] is not None


@contextlib.contextmanager
def _pool(config: RunConfig, stream: str, size: int, local: bool, view: LiveView) -> Iterator[Pool]:
    if local:
        yield LocalPool(config, stream, lambda p: view.progress(p.run, p.cursor, p.loss, p.samples_per_second))
        return
    with metrics_token(config.monitor) as (token, path), session(config, size) as ray:
        if path:
            view.message(f"the metrics want the token in {path}")
        yield RayPool(ray, config, stream, token)


def _check_folder(config: RunConfig, folder: Path, resume: bool) -> None:
    """A new run wants a new folder; a resumed one the config it was started with."""
    saved = folder / "config.yaml"
    if not resume:
        if saved.exists():
            raise UserError(
                "this run exists", where=str(folder), fix="Continue it with --resume, or choose another --name"
            )
        return
    if not saved.exists():
        raise UserError("there is no run to resume", where=str(folder), fix="Start it without --resume")
    before = yaml.safe_load(saved.read_text(encoding="utf-8"))
    after = config.model_dump(mode="json")
    changed = [key for key in after if key not in MAY_CHANGE and after[key] != before.get(key)]
    if changed:
        raise UserError(
            f"the config differs from the one the run was started with in: {', '.join(changed)}",
            where=str(folder),
            fix="Resume with the run's own config.yaml, or start another --name",
        )
