"""From a config to finished run folders: build the stream, start the pool, drive it, report."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from streamcvit.adapters import ADAPTERS, adapter_config
from streamcvit.adapters.instruction import encoder_identity
from streamcvit.cluster.head import Head
from streamcvit.cluster.pools import RayPool
from streamcvit.cluster.session import metrics_token, session
from streamcvit.config import RunConfig
from streamcvit.data.index import INDEX_NAME, StreamIndex
from streamcvit.errors import Stopped, UserError
from streamcvit.learning.durable import room, write_text
from streamcvit.learning.epochs import last_turn
from streamcvit.models.base import fetch, model_digest, weight_files
from streamcvit.monitoring.report.page import write_report
from streamcvit.monitoring.terminal import LiveView
from streamcvit.run.drive import Driver, task_counts
from streamcvit.run.folder import RunFolder, read_run
from streamcvit.run.guard import Stop, alone
from streamcvit.run.local import LocalPool, Pool
from streamcvit.run.resume import Changes, changes, check_folder, check_names, refuse, setting_changes
from streamcvit.run.stream import prepare_stream, unreadable_rows

ANY_SIZES = {"instruction_dim": 1, "visual_dim": 1}  # of a model that is not loaded yet


def execute(config: RunConfig, *, local: bool = False, resume: bool = False, allow: Sequence[str] = ()) -> Path:
    """Run every method of a config on its stream.

    Args:
        config: the run.
        local: in this process, without Ray.
        resume: continue the run that is in the folder.
        allow: keys that may differ from what the run was started with.

    Returns:
        The report's path.

    Raises:
        UserError: a user's mistake, or a run that stopped and can be resumed (the message says which).
        Stopped: by SIGINT or SIGTERM; the message says how to go on.
    """
    folder = config.folder()
    page = folder / "report.html"
    check_folder(folder, resume)
    if resume:
        check_names(config, allow)
    if resume and all(_finished(config.folder(name)) for name in config.methods):
        refuse(setting_changes(config), allow, folder)
        print(f"this run is already finished: {folder}")
        return page if page.exists() else _report(config)
    stop = Stop()
    try:
        with stop, room(folder):
            weights = fetch(config.model.name_or_path)
            with alone(folder):
                check_folder(folder, resume)  # again: another run may have come and gone
                return _execute(config, weights, stop, local, resume, allow)
    except KeyboardInterrupt:  # Stopped, or what Ray makes of it
        raise Stopped(stop.signal, _how_to_go_on(config, local)) from None
    except SystemExit as left:  # while Ray starts, SIGTERM is its own
        if left.code != signal.SIGTERM:
            raise
        raise Stopped(signal.SIGTERM, _how_to_go_on(config, local)) from None


def _execute(config: RunConfig, weights: str, stop: Stop, local: bool, resume: bool, allow: Sequence[str]) -> Path:
    folder = config.folder()
    check_options(config)
    size = sum(file.stat().st_size for file in weight_files(weights))
    encoder_identity(config.model.instruction_encoder)  # a missing one is said, or downloaded, before anything starts
    index = _stream(config, folder / "stream", resume)
    changed: Changes = {}
    if resume:
        changed = changes(config, model_digest(weights), index.digest)
        refuse(changed, allow, folder)
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
    for key, (before, after) in changed.items():
        view.message(f"changed: {key}: {before} -> {after}")
    with _pool(config, stream, size, local, view, stop) as pool:
        if not resume:
            write_text(folder / "config.yaml", config.dump())
        folders = {name: RunFolder(config, name, index, rows, pool.base_digest) for name, rows in counts.items()}
        for method in folders.values():
            method.adopt(changed, pool.base_digest)
        # Last, so that a change which is not noted in every folder yet is found, and asked for, again.
        write_text(folder / "config.yaml", config.dump())
        if pool.url:
            view.message(f"live page: {pool.url.removesuffix('metrics')}  metrics: {pool.url}")
        with view, stop.patience(True):
            Driver(config, pool, folders, view, stop).run()
    return _report(config)


def check_options(config: RunConfig) -> None:
    """Say before anything is written that an adapter cannot be made as its options ask.

    Raises:
        UserError: an unknown option, or a value that it cannot have.
    """
    for name, method in config.methods.items():
        if method.adapter in ADAPTERS:
            try:
                adapter_config(method.adapter, None, options=method.options, sizes=ANY_SIZES)
            except UserError as error:
                raise UserError(error.what, where=f"methods.{name}.options", fix=error.fix) from error


def _report(config: RunConfig) -> Path:
    folders = [config.folder(name) for name in config.methods]
    return write_report(folders, config.folder() / "report.html", title=config.name)


def _stream(config: RunConfig, folder: Path, resume: bool) -> StreamIndex:
    """The run's stream; a resumed run reads the one it began with."""
    if resume and not folder.is_symlink() and (folder / INDEX_NAME).exists():
        return StreamIndex.open(folder)
    return prepare_stream(config, folder)


def _how_to_go_on(config: RunConfig, local: bool) -> str:
    saved = config.folder() / "config.yaml"
    if not saved.exists():
        return "stopped before anything was learned; start it again with the same command"
    return f"stopped; continue with: streamcvit run {saved} --resume{' --local' if local else ''}"


def _finished(folder: Path) -> bool:
    return (folder / "run.json").exists() and read_run(folder)["finished"] is not None


@contextlib.contextmanager
def _pool(config: RunConfig, stream: str, size: int, local: bool, view: LiveView, stop: Stop) -> Iterator[Pool]:
    start = 1 + max(last_turn(config.folder(name))[0] for name in config.methods)
    if local:
        yield LocalPool(
            config,
            stream,
            start,
            stop,
            lambda p: view.progress(p.run, p.cursor, p.loss, p.samples_per_second, p.skipped),
        )
        return
    with (
        metrics_token(config.monitor) as (token, path),
        Head(config.cluster) as head,  # around the session: one that cannot end for want of its head is ended
        session(config, size) as ray,
    ):
        stop.arm()  # Ray's core took SIGTERM
        if path:
            view.message(f"the metrics want the token in {path}")
        yield RayPool(ray, config, stream, start, head, token)
