"""Several seeds, or values of settings, in one go: a run each, side by side, then held against each other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from streamcvit.config import RunConfig
from streamcvit.errors import Stopped, UserError
from streamcvit.launch import execute
from streamcvit.learning.durable import write_text
from streamcvit.models.base import fetch
from streamcvit.preflight import check_settings
from streamcvit.run.guard import Stop, alone
from streamcvit.run.loading import base_bytes
from streamcvit.run.local import Watcher
from streamcvit.run.messages import Outcome
from streamcvit.run.messages import Progress as Word
from streamcvit.run.resume import check_folder
from streamcvit.screen import Screen
from streamcvit.variants import Variant


def execute_many(
    config: RunConfig,
    found: Sequence[Variant],
    *,
    local: bool = False,
    resume: bool = False,
    allow: Sequence[str] = (),
) -> list[Path]:
    """Do every run that a pipeline with `seeds` or `sweep` asks for.

    With Ray they go side by side, each whole in one actor; `local`, one after another in this process. What a run comes
    to is the same either way, and the same as of that run alone.

    Args:
        config: of all.
        found: the runs (`streamcvit.variants.variants`).
        local: without Ray.
        resume: go on with those that are not finished, and begin those that are not begun.
        allow: as of `streamcvit.launch.execute`.

    Returns:
        The runs' folders.

    Raises:
        UserError: a user's mistake, or runs that failed; the others are finished.
        Stopped: by SIGINT or SIGTERM; the message says how to go on.
    """
    folder, screen = config.folder(), Screen()
    check_folder(folder, resume)
    for variant in {tuple(v.values.items()): v for v in found}.values():  # seeds do not differ in what may be wrong
        check_settings(variant.config, True)
    stop = Stop()
    how = f"stopped; continue with: streamcvit run {folder / 'config.yaml'} --resume{' --local' if local else ''}"
    try:
        with stop, alone(folder):
            check_folder(folder, resume)
            write_text(folder / "config.yaml", config.dump())
            stop.patient = True
            failed = _all(config, found, stop, local, allow, screen)
    except KeyboardInterrupt:
        raise Stopped(stop.signal, how) from None
    if stop.requested:
        raise Stopped(stop.signal, how)
    if failed:
        name, what = next(iter(failed.items()))
        fix = f"Mend that, then: streamcvit run {folder / 'config.yaml'} --resume"
        raise UserError(f"{len(failed)} of {len(found)} runs failed, the first: {what}", where=name, fix=fix)
    return [variant.config.folder() for variant in found]


def _all(
    config: RunConfig, found: Sequence[Variant], stop: Stop, local: bool, allow: Sequence[str], screen: Screen
) -> dict[str, str]:
    """Do the runs; returns name -> what is wrong of those that failed."""
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as open_:
        view = _View(found, screen)
        ends = (
            _one_by_one(found, stop, allow, view) if local else _side_by_side(open_, config, found, stop, allow, view)
        )
        open_.enter_context(view.bars)
        for variant, outcome in ends:
            view.ended(variant, outcome)
            if outcome.state == "failed":
                failed[variant.name] = outcome.what
    return failed


def _one_by_one(
    found: Sequence[Variant], stop: Stop, allow: Sequence[str], view: _View
) -> Iterator[tuple[Variant, Outcome]]:
    for variant in found:
        if stop.requested:
            return
        view.began(variant)
        watcher = Watcher(stop, partial(view.progress, variant), lambda _: None)
        outcome = do_run(variant.config, watcher, tuple(allow), quiet=True)
        stop.arm()  # the run has put the handlers back that were there before
        yield variant, outcome


def _side_by_side(
    open_: contextlib.ExitStack,
    config: RunConfig,
    found: Sequence[Variant],
    stop: Stop,
    allow: Sequence[str],
    view: _View,
) -> Iterator[tuple[Variant, Outcome]]:
    from streamcvit.cluster.head import Head
    from streamcvit.cluster.session import session

    head = open_.enter_context(Head(config.cluster))
    weights = fetch(config.model.name_or_path, config.model.revision)
    ray = open_.enter_context(session(config))
    stop.arm()  # Ray's core took SIGTERM
    from streamcvit.cluster.lanes import lanes_for, run_side_by_side

    lanes, gpus = lanes_for(ray, config, len(found), base_bytes(config, weights))
    view.say(f"{len(found)} runs, {lanes} at a time, in {config.folder()}")
    of = {variant.config.name: variant for variant in found}
    ends = run_side_by_side(
        ray,
        config,
        [variant.config for variant in found],
        lanes,
        gpus,
        partial(do_run, allow=tuple(allow)),
        stop,
        head,
        lambda run: view.began(of[run.name]),
        lambda run, word: view.progress(of[run.name], word),
    )
    for run, outcome in ends:
        yield of[run.name], outcome


def do_run(config: RunConfig, watcher: Watcher, allow: tuple[str, ...] = (), quiet: bool = False) -> Outcome:
    """A whole run in this process, from where its folder stands; never raises what a user can mend."""
    began = time.monotonic()
    try:
        resume = (config.folder() / "config.yaml").exists()
        with contextlib.redirect_stdout(None) if quiet else contextlib.nullcontext():
            execute(config, local=True, resume=resume, allow=allow if resume else (), watcher=watcher)
    except Stopped:
        return Outcome("stopped", seconds=time.monotonic() - began)
    except UserError as error:
        return Outcome("failed", str(error), time.monotonic() - began)
    return Outcome("finished", seconds=time.monotonic() - began)


class _View:
    """What a person sees of several runs: a bar each of those under way, a line of each that has ended."""

    def __init__(self, found: Sequence[Variant], screen: Screen) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
        self.screen, self.count, self.over = screen, len(found), 0
        self.whole = self.bars.add_task("all runs", total=len(found))
        self.tasks: dict[str, TaskID] = {}

    def say(self, line: str) -> None:
        self.screen.print(line, markup=False, soft_wrap=True)

    def began(self, variant: Variant) -> None:
        self.tasks[variant.name] = self.bars.add_task(variant.name, total=None)

    def progress(self, variant: Variant, word: Word) -> None:
        """Every method reads the stream once."""
        methods = [name for name, method in variant.config.methods.items() if method.adapter != "none"]
        done, task = methods.index(word.run), self.tasks[variant.name]
        self.bars.update(task, total=len(methods) * word.total, completed=done * word.total + word.cursor)
        self.bars.update(task, description=f"{variant.name}: {word.run}")

    def ended(self, variant: Variant, outcome: Outcome) -> None:
        self.over += outcome.state == "finished"
        self.bars.remove_task(self.tasks.pop(variant.name))
        self.bars.update(self.whole, completed=self.over)
        more = (
            f": {outcome.what}" if outcome.what else f" ({self.over} of {self.count})" * (outcome.state == "finished")
        )
        self.say(f"{variant.name} {outcome.state} after {outcome.seconds:.0f} s{more}")
