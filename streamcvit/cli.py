"""The `streamcvit` command: parses, calls, prints. Heavy packages are imported inside commands, so --help is quick."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from streamcvit import __version__, clicompare, cliguard, cliimport, clirun, cliscore, clishards, cliuse, cliwatch
from streamcvit.clilog import LogFormat, show_results
from streamcvit.clipush import push
from streamcvit.errors import Stopped, UserError
from streamcvit.screen import Screen, log_as_json, plain_streams

app = typer.Typer(
    help="Streaming online continual learning for multimodal language models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
scenario = typer.Typer(help="Look at the plan of a stream.", no_args_is_help=True)
app.add_typer(scenario, name="scenario")
adapters = typer.Typer(help="Adapters for others, and of others.", no_args_is_help=True)
app.add_typer(adapters, name="adapters")

out = Screen()
err = Screen(stderr=True)

Pipeline = Annotated[
    Path,
    typer.Argument(
        help="YAML file, or the name of one that comes with streamcvit: embedded, strcvit-25, cvit-single ..."
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. learner.lr=1e-3.")
]
Name = Annotated[str | None, typer.Option(help="Name of the run's folder.")]
Data = Annotated[str | None, typer.Option(help="Root folder of the data (stream.data).")]
Model = Annotated[str | None, typer.Option(help="Folder or name of the base model (model.name_or_path).")]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray; same results to the bit.")]
DEMO = ("zero-shot", "lora", "smolora")
# Part of the benchmark's samples and test questions: done in a minute and a half on two cores.
SHORT = ("stream.scenario.samples_per_chunk=180", "stream.test_samples=40")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of mistakes too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["STREAMCVIT_DEBUG"] = "1"


@app.command()
def demo(
    full: Annotated[
        bool,
        typer.Option("--full", help="The whole benchmark, and MoELoRA, LoRA with replay and joint training too."),
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the run's folder.")] = "demo",
    settings: Settings = None,
    local: Local = False,
    log_format: LogFormat = "text",
) -> None:
    """Run the embedded scenario: 15 chunks, eleven tasks, single pass, several methods on one stream.

    A part of the benchmark's samples and test questions, unless --full: `streamcvit run embedded` takes all of them.
    """
    if log_format == "json":
        log_as_json(_fresh(name))
    config = _config("embedded", [*(() if full else SHORT), *(settings or [])], name=_fresh(name))
    if not full:
        config = config.model_copy(update={"methods": {method: config.methods[method] for method in DEMO}})
    _run(config, local=local)
    out.print(
        "\nNext: open the report, or try\n"
        "  [bold]streamcvit scenario show embedded[/bold]\n"
        "  [bold]streamcvit run embedded --method smolora --name mine[/bold]"
        + ("" if full else "  (all of the samples)"),
        soft_wrap=True,  # a command that is broken in two cannot be copied
    )


@app.command()
def run(
    pipeline: Pipeline,
    method: Annotated[list[str] | None, typer.Option("--method", help="Only these methods of the file.")] = None,
    data: Data = None,
    model: Model = None,
    name: Name = None,
    settings: Settings = None,
    local: Local = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="A benchmark's recipe whole, on a tiny model over made-up files, in seconds."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that is in the folder.")] = False,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="0-9", help="A run of each seed, side by side, and what they show together."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep", metavar="KEY=V,V", help="A run of each value of a setting; several: of each combination."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow-change", metavar="KEY", help="With --resume: let this differ, e.g. learner.lr or code."),
    ] = None,
    log_format: LogFormat = "text",
) -> None:
    """Run a pipeline: shard its stream, learn it, score every chunk boundary, report."""
    if log_format == "json":
        log_as_json(name or "")
    config = _config(pipeline, settings, data=data, model=model, name=name, **_several(seeds, sweep))
    if log_format == "json":
        log_as_json(config.name)
    if method:
        unknown = [m for m in method if m not in config.methods]
        if unknown:
            raise UserError(
                f"unknown method {unknown[0]!r}", where=str(pipeline), fix=f"Choose from {', '.join(config.methods)}"
            )
        config = config.model_copy(update={"methods": {m: config.methods[m] for m in method}})
    if dry_run:
        _rehearse(config)
        return
    _check_paths(config, pipeline)
    how: dict[str, Any] = {"local": local, "resume": resume, "allow": allow or []}
    if not config.seeds and not config.sweep:
        _run(config, **how)
        return
    from streamcvit.climany import run_many
    from streamcvit.variants import variants

    def read(more: list[str]) -> Any:
        return _config(pipeline, [*(settings or []), *more], data=data, model=model, name=name)

    run_many(config, variants(config, read), **how)


@app.command()
def check(
    pipeline: Pipeline, data: Data = None, model: Model = None, settings: Settings = None, local: Local = False
) -> None:
    """Do all of a run's pre-flight without learning: rows, tokens, scorers, adapters, memory, time; nothing is kept."""
    from streamcvit.inspection import inspect

    config = _config(pipeline, settings, data=data, model=model)
    _check_paths(config, pipeline)
    for line in inspect(config, local):
        out.print(line, markup=False, soft_wrap=True)
    out.print("nothing stands in the way of this run")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of your data.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="The pipeline to write [default: pipeline.yaml in the folder].")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0.001, max=0.9, help="Share that becomes the test set of a task that has none.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of that draw, and of the run.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over an earlier pipeline of that name.")] = False,
) -> None:
    """Look at a folder of your data, say what is in it and what is odd, and write a pipeline that runs."""
    from streamcvit.start import begin
    from streamcvit.start.words import said

    for line in said(begin(folder, to, test_share=test_share, seed=seed, force=force)):
        out.print(line, markup=False, soft_wrap=True)


@scenario.command("show")
def scenario_show(
    pipeline: Pipeline,
    data: Data = None,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the plan into this SVG file.")] = None,
) -> None:
    """Print, and draw, how many samples each task gives to each chunk."""
    from streamcvit.monitoring.report.plandrawing import plan_svg
    from streamcvit.monitoring.terminal import plan_table
    from streamcvit.run.stream import plan_of

    config = _config(pipeline, settings, data=data)
    _check_paths(config, pipeline, model=False)
    plan = plan_of(config)
    out.print(plan_table(plan.tasks, plan.counts))
    if plot is not None:
        _write(plot, plan_svg(plan.tasks, plan.counts))
        out.print(f"drawn into {plot}")


@adapters.command("import")
def adapters_import(
    folder: Annotated[Path, typer.Argument(help="Folder that the SMoLoRA or StrCVIT code saved.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to make, for PeftModel.from_pretrained.")],
    model: Annotated[
        str | None, typer.Option(help="Base model whose parts are nested otherwise; only its configuration is read.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Adapter setting, e.g. top_k=2.")
    ] = None,
    skip: Annotated[
        str | None, typer.Option(help="Leave modules out whose path this regular expression finds.")
    ] = None,
    projector: Annotated[
        bool, typer.Option("--projector", help="Carry the trained projector over too; needs --model.")
    ] = False,
) -> None:
    """Convert a published adapter (SMoLoRA, StrLoRA, MoELoRA) into one that stock PEFT loads."""
    from streamcvit.adapters.published import import_adapter
    from streamcvit.models.base import skeleton
    from streamcvit.monitoring.terminal import import_report
    from streamcvit.pipeline import parse_setting

    given = {".".join(key): value for key, value in map(parse_setting, settings or [])}
    base = None if model is None else skeleton(model)
    found = import_adapter(folder, to, base, base=model, skip=skip, carry_projector=projector, options=given)
    out.print(import_report(found))
    out.print(f"adapter: {to}", markup=False)


adapters.command("export")(cliuse.adapters_export)


@app.command()
def shard(
    pipeline: Pipeline,
    folder: Annotated[Path, typer.Argument(help="Stream folder to make.")],
    data: Data = None,
    settings: Settings = None,
) -> None:
    """Write a pipeline's stream into WebDataset shards with an index."""
    from streamcvit.run.losses import stream_lines
    from streamcvit.run.ownkinds import check_portable
    from streamcvit.run.stream import prepare_stream

    config = _config(pipeline, settings, data=data)
    _check_paths(config, pipeline, model=False)
    check_portable(config)
    index = prepare_stream(config, folder, out.print)
    for line in stream_lines(folder, index):
        out.print(line, markup=False, soft_wrap=True)
    clishards.say_stream(index, len(index.eval_index()), folder)


app.command()(clishards.index)
app.command()(clishards.verify)
app.command()(push)
for _command in (
    *(clirun.status, clirun.ls, clirun.logs, clirun.stop),
    *(cliguard.resume, cliwatch.watch, clicompare.report),
):
    app.command()(_command)
app.command("compare")(clicompare.compare)
app.command("export")(clicompare.export)
app.command("import")(cliimport.import_)
app.command()(cliuse.predict)
app.command()(cliscore.score)


@app.command()
def doctor(
    pipeline: Annotated[
        str | None, typer.Argument(help="Also estimate the memory that this pipeline needs, and whether it is here.")
    ] = None,
    settings: Settings = None,
    local: Local = False,
) -> None:
    """Say what this machine has, what is missing, and how to get it; exit code 2 where something is wanting."""
    from streamcvit.doctor import findings

    config = None if pipeline is None else _config(Path(pipeline), settings)
    healthy = True
    for finding in findings():
        mark = (
            "[green]ok[/green]  " if finding.ok else ("[red]no[/red]  " if finding.needed else "[yellow]--[/yellow]  ")
        )
        out.print(f"{mark}{finding.what}" + (f"\n      {finding.fix}" if not finding.ok else ""), soft_wrap=True)
        healthy &= finding.ok or not finding.needed
    if config is not None:
        from streamcvit.fitting import fit

        found = fit(config, local)
        for line in found.lines():
            out.print(line, markup=False, soft_wrap=True)
        healthy &= found.ok
    raise typer.Exit(0 if healthy else 2)


def _config(
    pipeline: Path | str, settings: list[str] | None, *, data: str | None = None, model: str | None = None, **top: Any
) -> Any:
    from streamcvit.pipeline import builtin, load_config

    path = builtin(pipeline) if isinstance(pipeline, str) else pipeline
    given = {"stream.data": data, "model.name_or_path": model}
    settings = [*(settings or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    return load_config(path, settings, **top)


def _several(seeds: str | None, sweep: list[str] | None) -> dict[str, Any]:
    """`--seeds` and `--sweep` as the file's keys of that name."""
    from streamcvit.variants import parse_seeds, parse_sweep

    return {"seeds": parse_seeds(seeds) if seeds else None, "sweep": parse_sweep(sweep) if sweep else None}


def _check_paths(config: Any, pipeline: Path, **wanted: bool) -> None:
    from streamcvit.pipeline import check_paths

    check_paths(config, pipeline, **wanted)


def _rehearse(config: Any) -> None:
    """Run a recipe whole on a tiny model over made-up files, in this process, into a folder of its own."""
    from streamcvit.rehearsal import rehearsal

    with rehearsal(config) as (small, lines):
        for line in lines:
            out.print(line, markup=False, soft_wrap=True)
        _run(small.model_copy(update={"name": _fresh(small.name, small.out)}), local=True)


def _fresh(name: str, runs: str = "runs") -> str:
    """`name`, or `name-2`, `name-3` ...: a demo never touches an older run."""
    number, candidate = 1, name
    while (Path(runs) / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _run(config: Any, **how: Any) -> None:
    from streamcvit.launch import execute

    try:
        page = execute(config, show=lambda records, verdict: show_results(out, records, verdict), **how)
    except Stopped as stopped:
        err.print(stopped.how, soft_wrap=True, markup=False)
        raise typer.Exit(128 + stopped.number) from None
    out.print(f"report: {page}", markup=False, soft_wrap=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(path), fix="Choose another path") from None


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, without a traceback unless --debug."""
    plain_streams()
    if _windows():
        fix = "Run streamcvit in WSL 2, where it works as on Linux"
        err.print(f"[red]error:[/red] {_plain(UserError('Windows is not supported', fix=fix))}", soft_wrap=True)
        sys.exit(2)
    # The libraries' advice to programmers (missing optional packages and the like) is no news to who runs a command.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Arrow's own allocators keep what they were given once; the system's gives it back (`RunFolder.write_scores`).
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app(standalone_mode=True)
    except (UserError, MemoryError, OSError, ModuleNotFoundError) as error:
        said = _mistake(error)
        if said is None or os.environ.get("STREAMCVIT_DEBUG"):
            raise
        err.print(f"[red]error:[/red] {_plain(said)}", soft_wrap=True)
        sys.exit(2)


def _windows() -> bool:
    """Whether this is where locks of files and signals work otherwise, and nothing was ever tried."""
    return os.name == "nt"


def _mistake(error: BaseException) -> UserError | None:
    """An error as something that the user can mend; None: it is none."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError):
        return UserError(": ".join(filter(None, ("out of memory", str(error)))), fix="Free some, then --resume a run")
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"the package {error.name} is missing", fix="Run `make setup`, or pip install it")
    if isinstance(error, OSError) and error.strerror and error.filename:
        # A path that cannot be made, read or written; what has a better word for it said so before.
        fix = "Check the path, its permissions and the room on its disk"
        return UserError(error.strerror, where=str(error.filename), fix=fix)
    return None


def _plain(error: UserError) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
