"""The command `import`: a published benchmark, or files in any format that is read, made a stream."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from streamcvit.screen import Screen

out = Screen()
err = Screen(stderr=True)

_SAY_EVERY = 10.0  # seconds, where there is no bar
_DRAW_EVERY = 0.1
_WORDS = {"reading": "rows read", "writing": "samples written"}


def import_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARK|files|hf|csv",
            help="strcvit, cvit, cvit-five, coin, ucit, mllmcl-dcl, mllmcl-acl, he ..., in its repository's layout "
            "(docs/data.md); or what lies in SOURCE.",
        ),
    ],
    source: Annotated[Path, typer.Argument(help="The benchmark's data folder; a file of rows, or a folder of files.")],
    to: Annotated[Path, typer.Option("--to", help="Stream folder to make.")],
    test_share: Annotated[
        float,
        typer.Option(
            min=0.001, max=0.9, help="Share that becomes the test set of a task that has none (files, hf, csv)."
        ),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A pipeline's setting, e.g. stream.scenario.preset=strcvit-15-first."
        ),
    ] = None,
) -> None:
    """Make a stream of a published benchmark or of files; killed or stopped, the same command goes on where it was."""
    from streamcvit.importing import begun, import_stream
    from streamcvit.run.losses import stream_lines

    def say(line: str) -> None:
        out.print(line, markup=False, soft_wrap=True)

    if begun(to):
        say("going on with an import that was ended early")
    try:
        with _watching(say) as watch:
            index = import_stream(
                kind, source, to, settings=settings, seed=seed, test_share=test_share, say=say, watch=watch
            )
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on where it was", markup=False)
        raise typer.Exit(130) from None
    for line in stream_lines(to, index):
        say(line)
    tests = index.eval_index()
    say(
        f"{len(index)} samples in {index.n_chunks} chunks, {len(index.shards)} shards, {len(tests)} test samples of "
        f"{len(index.tasks)} tasks\nindex {index.digest}\n{to}"
    )


@contextlib.contextmanager
def _watching(say: Callable[[str], None]) -> Iterator[Callable[[str, int, int], None]]:
    """What shows how far the work is: a bar in a terminal, else a line now and then."""
    if not out.is_terminal:
        yield _Lines(say)
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=out, transient=True) as bar:
        tasks: dict[str, TaskID] = {}
        last = 0.0

        def watch(stage: str, done: int, total: int) -> None:
            nonlocal last
            if stage not in tasks:
                tasks[stage] = bar.add_task(_WORDS[stage], total=total or None, told="")
            elif done != total and time.monotonic() - last < _DRAW_EVERY:
                return
            last = time.monotonic()
            bar.update(tasks[stage], completed=done, told=f"{done:,}" + (f" of {total:,}" if total else ""))

        yield watch


class _Lines:
    """Says now and then how many rows were read, and how many samples written."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._stage, self._began, self._last = say, "", 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._last = stage, now, now
        elif now - self._last >= _SAY_EVERY:
            self._last = now
            left = f" of {total}, about {(now - self._began) / done * (total - done):.0f} s left" if total else ""
            self._say(f"{_WORDS[stage]}: {done}{left}")
