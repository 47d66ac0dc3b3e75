"""The commands on shards, `index` and `verify`; heavy packages are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamcvit.errors import UserError
from streamcvit.screen import Screen

out = Screen()


def index(
    to: Annotated[Path, typer.Option("--to", help="Folder for the index; may be the shards' own.")],
    shards: Annotated[
        list[str] | None,
        typer.Argument(help="WebDataset tars in stream order: paths, URLs, patterns such as 'train-{000..012}.tar'."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="Of the records: streamcvit, llava, swift, qa; or labels alone: txt, cls.")
    ] = "streamcvit",
    task: Annotated[str, typer.Option(help="The task of samples whose record names none.")] = "",
    scorer: Annotated[str | None, typer.Option(help="How --task is scored (default: exact).")] = None,
    follow: Annotated[str | None, typer.Option(help="Its instruction-following rule (default: single_word).")] = None,
    question: Annotated[str | None, typer.Option(help="What is asked of every picture (formats txt, cls).")] = None,
    instruction: Annotated[str | None, typer.Option(help="How to answer it.")] = None,
    classes: Annotated[Path | None, typer.Option(help="File of class names, one a line, from class 0.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting of --task, e.g. max_new_tokens=64."),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="YAML of several tasks, NAME: {scorer: ..., shards: [...], ...}.")
    ] = None,
    test_shards: Annotated[
        list[str] | None, typer.Option("--test-shards", help="Tars of the test sets (a path or pattern each).")
    ] = None,
    test_samples: Annotated[int, typer.Option(min=0, help="Draw so many test samples a task from the stream.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of that draw.")] = 0,
    samples_per_chunk: Annotated[
        int | None, typer.Option(min=1, help="Length of a chunk (default: each shard is one).")
    ] = None,
    pictures: Annotated[
        list[str] | None,
        typer.Option("--picture", help="Which members are pictures, in this order: jpg, input.png, 'view_*.png'."),
    ] = None,
    keep_whole: Annotated[
        bool, typer.Option("--keep-whole", help="Of a damaged shard take the samples before the damage.")
    ] = False,
    bad_share: Annotated[float, typer.Option(min=0, max=1, help="So large a share of lost samples is borne.")] = 0.05,
) -> None:
    """Make a stream of WebDataset shards that others wrote, where they lie: an index, and links to them."""
    from streamcvit.indexing import index as make
    from streamcvit.indexing import read_tasks
    from streamcvit.pipeline import parse_setting

    given: dict[str, Any] = {".".join(key): value for key, value in map(parse_setting, settings or [])}
    flags = {"scorer": scorer, "follow": follow, "question": question, "instruction": instruction}
    given |= {key: value for key, value in flags.items() if value is not None}
    if classes is not None:
        given["classes"] = str(classes.absolute())
    if given and not task:
        raise UserError(f"{next(iter(given))} is set, but of no task", fix="Name the task with --task")
    known = read_tasks(tasks, {task: given} if task else {})
    made, lines = make(
        shards or [], to, known, tasks.parent if tasks else Path(), test_shards=test_shards or [], task=task,
        format=form, pictures=pictures or [], test_samples=test_samples, seed=seed, samples_per_chunk=samples_per_chunk,
        keep_whole=keep_whole, bad_share=bad_share, replace=False,
    )  # fmt: skip
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    tests = len(made.eval_index()) if made.meta["eval"] is not None else 0
    say_stream(made, tests, to)


def verify(folder: Annotated[str, typer.Argument(help="Stream folder, or its URL.")]) -> None:
    """Check a stream folder: checksums, shards, every sample; exit code 1 where something is wrong."""
    from streamcvit.data.verify import verify as check

    report = check(folder)
    for line in report.lines():
        out.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


def say_stream(index: Any, tests: int, folder: Path) -> None:
    """Print what a stream folder holds."""
    out.print(
        f"{len(index)} samples in {index.n_chunks} chunks, {len(index.shards)} shards, "
        f"{tests} test samples of {len(index.tasks)} tasks\nindex {index.digest}\n{folder}",
        markup=False,
        soft_wrap=True,
    )
