"""From a config to finished run folders: build the stream, start the pool, drive it, report."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from streamcvit.cluster.head import Head
from streamcvit.cluster.pools import RayPool
from streamcvit.cluster.session import metrics_token, session
from streamcvit.comparison import verdict_of
from streamcvit.config import OWN_CODE, RunConfig
from streamcvit.data.shards.index import INDEX_NAME, StreamIndex
from streamcvit.errors import Stopped
from streamcvit.learning.durable import room, write_text
from streamcvit.learning.epochs import last_turn
from streamcvit.models.base import fetch, model_digest
from streamcvit.monitoring.notify import told_of_its_end
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.page import write_report
from streamcvit.monitoring.runlog import LOG, RunLog, noted
from streamcvit.monitoring.terminal import LiveView
from streamcvit.monitoring.verdict import Verdict
from streamcvit.monitoring.watch.word import Word
from streamcvit.preflight import check_settings
from streamcvit.run import own
from streamcvit.run.drive import Driver, task_counts
from streamcvit.run.folder import RunFolder, read_run
from streamcvit.run.following import Following
from streamcvit.run.guard import Stop, alone
from streamcvit.run.journal import JOURNAL
from streamcvit.run.loading import base_bytes
from streamcvit.run.local import LocalPool, Pool, Watcher
from streamcvit.run.losses import lost_list, stream_lines
from streamcvit.run.messages import Progress
from streamcvit.run.origin import other_bases
from streamcvit.run.origincheck import settled
from streamcvit.run.resume import Changes, changes, check_folder, check_names, check_strategies, refuse, setting_changes
from streamcvit.run.stream import prepare_stream
from streamcvit.screen import Screen


def execute(
    config: RunConfig,
    *,
    local: bool = False,
    resume: bool = False,
    allow: Sequence[str] = (),
    show: Callable[[Sequence[RunRecord], Verdict], None] = lambda records, verdict: None,
    watcher: Watcher | None = None,
) -> Path:
    """Run every method of a config on its stream.

    Args:
        config: the run.
        local: in this process, without Ray.
        resume: continue the run that is in the folder.
        allow: keys that may differ from what the run was started with.
        show: given the finished runs, and what was found when they were held against each other.
        watcher: who looks on, and may stop it, where it is `local`.

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
    config = settled(config)
    if resume and all(_finished(config.folder(name)) for name in config.methods):
        refuse(setting_changes(config), allow, folder)
        Screen().print(f"this run is already finished: {folder}", markup=False, soft_wrap=True)
        return _report(config, show, page.exists())
    stop = watcher.stop if watcher else Stop(pauses=config.guard.action == "pause")
    try:
        with stop, room(folder):
            weights = fetch(config.model.name_or_path, config.model.revision)
            with alone(folder) as tell:
                check_folder(folder, resume)  # again: another run may have come and gone
                config = _execute(config, weights, stop, tell, local, resume, allow, watcher)
                return _report(config, show)
    except KeyboardInterrupt:  # Stopped, or what Ray makes of it
        raise Stopped(stop.signal, _how_to_go_on(config, local)) from None
    except SystemExit as left:  # while Ray starts, SIGTERM is its own
        if left.code != signal.SIGTERM:
            raise
        raise Stopped(signal.SIGTERM, _how_to_go_on(config, local)) from None


def _execute(
    config: RunConfig,
    weights: str,
    stop: Stop,
    tell: Callable[..., None],
    local: bool,
    resume: bool,
    allow: Sequence[str],
    watcher: Watcher | None = None,
) -> RunConfig:
    folder = config.folder()
    known = check_settings(config, local)
    console = Screen()
    changed: Changes = {}
    index = following = None
    if resume:  # its stream is there, and what changed is said before anything starts
        index, following = _stream(config, folder / "stream", resume, console)
        changed = changes(config, model_digest(weights), index.identity)
        refuse(changed, allow, folder)
        check_strategies(config, changed)
    # Every process of the run sees the same folder, whatever its working directory.
    config = config.model_copy(update={"out": str(Path(config.out).absolute())})
    with _unless_begun(folder), _own_code(config), _starting(config, weights, local, stop, console, watcher) as start:
        if index is None:
            index, following = _stream(config, folder / "stream", resume, console)
        counts = {name: task_counts(config, index, name) for name in config.methods}
        chunks = {name: max(1, len(rows)) for name, rows in counts.items()}
        view = LiveView(list(counts), len(index), chunks, console, RunLog(folder / LOG), Word(folder))
        view.message(
            f"stream: {len(index)} samples, {index.n_chunks} chunks, {len(index.tasks)} tasks in {folder / 'stream'}"
        )
        if following is not None:
            view.message(f"the stream goes on: {config.stream.data} is followed")
        found = stream_lines(folder / "stream", index)
        for line in (*found, *known):
            view.message(line)
        for key, (before, after) in changed.items():
            view.message(f"changed: {key}: {before} -> {after}")
        view.message("loading the model")
        pool = start(view)
        for line in other_bases(config, pool.base_digest):
            view.message(line)
        if not resume:
            write_text(folder / "config.yaml", config.dump())
        folders = {name: RunFolder(config, name, index, rows, pool.base_digest) for name, rows in counts.items()}
        for method in folders.values():
            method.adopt(changed, pool.base_digest)
            for line in found:
                method.event("stream", what=line)
        # Last, so that a change which is not noted in every folder yet is found, and asked for, again.
        write_text(folder / "config.yaml", config.dump())
        if pool.url:
            tell(page=pool.url.removesuffix("metrics"))
            view.message(f"live page: {pool.url.removesuffix('metrics')}  metrics: {pool.url}")
        stop.tell = view.notice
        told = told_of_its_end(config.monitor.notify, config.name, folder)
        with view, stop.patience(True), noted(view.log), told:
            driver = Driver(config, pool, folders, view, stop, following)
            driver.run()
        pool.farewell()
        driver.note_faults()
    return config


def _report(config: RunConfig, show: Callable[[Sequence[RunRecord], Verdict], None], there: bool = False) -> Path:
    """Hold the methods against each other, show that, and write the report unless it is there."""
    records = [RunRecord.load(config.folder(name)) for name in config.methods]
    verdict = verdict_of(records)
    show(records, verdict)
    page = config.folder() / "report.html"
    return page if there else write_report(records, page, config.name, verdict)


def _stream(config: RunConfig, folder: Path, resume: bool, console: Screen) -> tuple[StreamIndex, Following | None]:
    """The run's stream; a resumed run reads the one it began with, any other one that lies there was never learned."""

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if resume and not folder.is_symlink() and (folder / INDEX_NAME).exists():
        return StreamIndex.open(folder), None
    if not resume:
        _remove_stream(folder)
    if config.stream.source == "follow":
        following = Following(config, folder)
        return following.first(say=say), following
    return prepare_stream(config, folder, say), None


@contextlib.contextmanager
def _unless_begun(folder: Path) -> Iterator[None]:
    """Take the stream away again where a run ends, whatever the reason, before it has begun to learn."""
    try:
        yield
    finally:
        if not (folder / "config.yaml").exists():
            _remove_stream(folder / "stream")


@contextlib.contextmanager
def _own_code(config: RunConfig) -> Iterator[None]:
    """Have the run's folder hold the files of one's own, for as long as it begins and from then on."""
    folder = config.folder()
    own.keep(config)
    try:
        yield
    finally:
        if config.own_code and not (folder / "config.yaml").exists():
            shutil.rmtree(folder / OWN_CODE, ignore_errors=True)


def _remove_stream(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif (folder / INDEX_NAME).exists() or (folder / JOURNAL).exists():  # nothing that is not ours
        shutil.rmtree(folder)
    lost_list(folder).unlink(missing_ok=True)


def _how_to_go_on(config: RunConfig, local: bool) -> str:
    saved = config.folder() / "config.yaml"
    if not saved.exists():
        return "stopped before anything was learned; start it again with the same command"
    return f"stopped; continue with: streamcvit run {saved} --resume{' --local' if local else ''}"


def _finished(folder: Path) -> bool:
    return (folder / "run.json").exists() and read_run(folder)["finished"] is not None


def _told(view: LiveView, watcher: Watcher | None) -> Callable[[Progress], None]:
    """Who hears the learner's newest word: the view, and who looks on."""

    def tell(word: Progress) -> None:
        view.progress(word.run, word.cursor, word.loss, word.samples_per_second, word.skipped, word.step)
        if watcher is not None:
            watcher.progress(word)

    return tell


@contextlib.contextmanager
def _starting(
    config: RunConfig, weights: str, local: bool, stop: Stop, console: Screen, watcher: Watcher | None
) -> Iterator[Callable[[LiveView], Pool]]:
    """Who works, coming up while the stream is made ready; what is given waits for them, once the stream is there."""
    stream = str(config.folder() / "stream")
    turn = 1 + max(last_turn(config.folder(name))[0] for name in config.methods)
    if local:
        with contextlib.ExitStack() as held:

            def begin(view: LiveView) -> Pool:
                loaded = watcher.loaded if watcher else lambda _: None
                pool = LocalPool(config, stream, turn, stop, _told(view, watcher), loaded)
                return held.enter_context(contextlib.closing(pool))

            yield begin
        return
    size = base_bytes(config, weights)
    console.print("starting Ray" if config.cluster.address == "local" else "joining the cluster", soft_wrap=True)
    with (
        metrics_token(config.monitor) as (token, path),
        Head(config.cluster) as head,  # around the session: one that cannot end for want of its head is ended
        session(config, size) as ray,
    ):
        stop.arm()  # Ray's core took SIGTERM
        if path:
            console.print(f"the metrics want the token in {path}", markup=False, soft_wrap=True)
        pool = RayPool(ray, config, stream, turn, head, token)
        yield lambda _: pool.ready()
