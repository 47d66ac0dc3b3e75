"""The commands that use what a run learned, `predict` and `adapters export`; heavy packages are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamcvit.errors import UserError
from streamcvit.screen import Screen

out = Screen()
err = Screen(stderr=True)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or one method's; the run may go on.")]
Chunk = Annotated[int | None, typer.Option(min=1, help="The end of that chunk, from 1 (default: the newest).")]
Commit = Annotated[str | None, typer.Option(metavar="STEP", help="The commit of that step, also inside a chunk.")]
Model = Annotated[str | None, typer.Option(help="Where the base lies, if elsewhere than the run's config says.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0 ... (default: the run's).")]


def predict(
    run_folder: RunFolder,
    question: Annotated[
        str | None, typer.Option(help="What is asked; <image> marks may say where the pictures stand.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="File of a picture; none, one or several of them.")
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    instruction: Annotated[
        str, typer.Option(help="How to answer; stands behind the question, and routed adapters route by it.")
    ] = "",
    task: Annotated[
        str, typer.Option(help="Task of the run: its instructions are found in the text, its length of answers holds.")
    ] = "",
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Only these; zero-shot is the bare base (default: all).")
    ] = None,
    chunk: Chunk = None,
    commit: Commit = None,
    file: Annotated[
        Path | None, typer.Option(help="A file of questions in place of one: JSON lines, JSON, CSV, Parquet.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="With --file: the JSON lines of answers to write.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="With --file: folder that its picture paths start from (default: the file's).")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="Of its rows: streamcvit, llava, swift, qa (default: by their keys).")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="An answer's most tokens (default: its task's; 64 without a task).")
    ] = None,
    show_routes: Annotated[
        bool, typer.Option("--show-routes", help="Also which expert each bank of prototypes chose (SMoLoRA).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers to one question as JSON.")] = False,
    model: Model = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16 (default: the run's).")] = None,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="Take a base with another digest than the run's.")
    ] = False,
) -> None:
    """Answer with the adapters of a run: one question about pictures, or a file of them; nothing of the run changes."""
    if (question is None) == (file is None):
        both = "a question and a file are given" if file is not None else "there is no question"
        raise UserError(both, fix="Give --question TEXT, or --file QUESTIONS.jsonl --out ANSWERS.jsonl")
    if file is not None and (to is None or image or system or instruction or as_json or show_routes):
        raise UserError(
            "--file takes --out, and what is asked from its rows",
            fix="Give --out ANSWERS.jsonl, and leave --image, --system, --instruction, --json and --show-routes out",
        )
    from streamcvit import predict as asking
    from streamcvit.questions import question as question_of

    if to is not None and file is not None:
        asking.check_target(to)

    def say(line: str) -> None:
        err.print(line, markup=False, soft_wrap=True)

    predictor = asking.predictor_of(
        run_folder, method or [], chunk, commit, max_new_tokens, say, model=model, device=device, dtype=dtype,
        other_base=other_base,
    )  # fmt: skip
    if file is not None and to is not None:
        found = asking.predict_file(predictor, file, to, images=images, form=form, task=task, say=say)
        out.print(f"{found.answered} of {found.rows} rows answered: {to}", markup=False, soft_wrap=True)
        if found.bad:
            out.print(f"{found.bad} cannot be asked, the first: {found.first}", markup=False, soft_wrap=True)
        return
    naming = predictor.naming(task)
    sample = question_of(question or "", image or [], system=system, instruction=instruction, task=task, naming=naming)
    if unrouted := predictor.unrouted(sample):
        said = f"{', '.join(unrouted)} routes by instruction, and there is none: give --instruction, or --task"
        say(f"note: {said}")
    answers = predictor.ask(sample, show_routes)
    if as_json:
        import json

        print(json.dumps({"question": sample.prompt, "answers": [one.record() for one in answers]}, ensure_ascii=False))
        return
    for one in answers:
        place = f", chunk {one.trained.chunk}, step {one.trained.step}" if one.trained.commit else ""
        chosen = "".join(f", {bank} expert {expert}" for bank, expert in one.routes.items())
        out.print(
            f"{one.trained.method}{place}{chosen}: {one.text or '(an empty answer)'}", markup=False, soft_wrap=True
        )


def adapters_export(
    run_folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="Folder to make; may be there, but empty.")],
    method: Annotated[str | None, typer.Option(help="Which (default: the only one that learned).")] = None,
    chunk: Chunk = None,
    commit: Commit = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model with the adapter merged into it; LoRA only.")
    ] = False,
    model: Model = None,
    device: Device = None,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="With --merged: take a base with another digest than the run's.")
    ] = False,
) -> None:
    """Write a run's adapter as a plain PEFT folder with a model card, or merged into its base."""
    from streamcvit.export import export

    for line in export(run_folder, to, method, chunk, commit, merged=merged, model=model, device=device,
                       other_base=other_base):  # fmt: skip
        out.print(line, markup=False, soft_wrap=True)
