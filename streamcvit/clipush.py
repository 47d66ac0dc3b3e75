"""The command `push`: samples appended to a stream that goes on; heavy packages are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamcvit.screen import Screen

out = Screen()


def push(
    to: Annotated[Path, typer.Option("--to", help="Folder that is, or will be, followed (docs/streams.md).")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of rows: JSON lines, JSON, CSV, Parquet; pictures beside them.")
    ] = None,
    task: Annotated[str, typer.Option(help="The task of all rows (default: each row's own).")] = "",
    form: Annotated[
        str | None, typer.Option("--format", help="Of the rows: llava, swift, qa, streamcvit (default: by their keys).")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that picture paths start from (default: each file's own).")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="The test set of --task: with it a task begins that the stream does not have.")
    ] = None,
    scorer: Annotated[str | None, typer.Option(help="How that task is scored (default: exact).")] = None,
    follow: Annotated[str | None, typer.Option(help="Its instruction-following rule (default: single_word).")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="More of it, e.g. max_new_tokens=64.")
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="A new shard begins after so many.")] = 2000,
    create: Annotated[bool, typer.Option("--create", help="Make the folder where there is none.")] = False,
    end: Annotated[bool, typer.Option("--end", help="Say that nothing follows: the run that follows it ends.")] = False,
) -> None:
    """Append samples to a stream that goes on: a complete shard with its index, or nothing."""
    from streamcvit.pipeline import parse_setting
    from streamcvit.pushing import push as append

    rules: dict[str, Any] = {".".join(key): value for key, value in map(parse_setting, settings or [])}
    rules |= {key: value for key, value in {"scorer": scorer, "follow": follow}.items() if value is not None}
    found = append(
        files or [], to, task=task, form=form, images=images, test=test, rules=rules,
        samples_per_shard=samples_per_shard, create=create, end=end,
    )  # fmt: skip
    if found.tests:
        out.print(f"task {task}: {found.tests} test samples", markup=False, soft_wrap=True)
    if found.shards:
        told = ", ".join(f"{count} {name}" for name, count in found.samples.items())
        out.print(
            f"{sum(found.samples.values())} samples ({told}): {', '.join(found.shards)}", markup=False, soft_wrap=True
        )
    if found.ended:
        out.print("the stream ends here", markup=False)
