"""Shards of others made a stream from the command line: which tasks they hold, which files they are, what is said."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from streamcvit.config import Section
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.records import Reading
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, SCORERS, STRCVIT_SCORERS
from streamcvit.explain import allowed, explain
from streamcvit.pipeline import read_tree
from streamcvit.run.losses import unusable

_SHOWN = 3
_BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


class ShardTask(Section):
    """A task of shards: how it is judged, and what it adds to their records."""

    shards: list[str] = Field(
        default_factory=list, description="shards (patterns) whose records name no task: this one"
    )
    test_shards: list[str] = Field(default_factory=list, description="the same of its test set")
    scorer: str = Field("exact", description="strict scorer, a name in streamcvit.evaluation.SCORERS")
    strcvit: str = Field("", description="published scorer beside it, a name in STRCVIT_SCORERS; empty: none")
    follow: str = Field("single_word", description="instruction-following rule, a name in FOLLOW_RULES")
    max_new_tokens: int = Field(16, ge=1, le=4096, description="tokens at which an answer ends at the latest")
    in_average: bool = Field(True, description="whether AP and its kin hold this task")
    question: str = Field("", description="what is asked of every picture (formats txt and cls)")
    instruction: str = Field("", description="how to answer it")
    classes: list[str] | str = Field(
        default_factory=list, description="names of classes by number, or a file with one a line (formats cls and txt)"
    )
    instructions: list[str] = Field(default_factory=list, description="wordings of the instruction in the prompts")
    wording: Literal["given", "single", "drawn"] = Field(
        "given", description="each record's own; the first of `instructions`; or one drawn by the sample's id"
    )
    instruction_field: str = Field("", description="key of the records whose text is the instruction")
    guess_instruction: bool = Field(False, description="take the last line of a prompt of several lines for it")

    def spec(self, name: str) -> TaskSpec:
        """How the task is answered and judged."""
        return TaskSpec(name, self.scorer, self.follow, self.strcvit, self.max_new_tokens, self.in_average)

    def reading(self, folder: Path) -> Reading:
        """What it adds to the records; a file of classes lies in the folder.

        Raises:
            UserError: there is no such file.
        """
        classes = _lines(folder / self.classes) if isinstance(self.classes, str) else self.classes
        return Reading(
            self.question, self.instruction, tuple(classes), tuple(self.instructions), self.wording,
            self.instruction_field, self.guess_instruction,
        )  # fmt: skip


class ShardTasks(Section):
    """Tasks by name."""

    tasks: dict[str, ShardTask] = Field(min_length=1)


def read_tasks(path: Path | None, given: Mapping[str, Mapping[str, Any]]) -> dict[str, ShardTask]:
    """The tasks of a YAML file, and those given besides.

    Args:
        path: names, each with the fields of `ShardTask`; None: there is no file.
        given: the same; a task of the file takes what is given of it.

    Raises:
        UserError: no such file, an unknown key or scorer.
    """
    if path is not None and not path.is_file():
        raise UserError("there is no such file", where=str(path), fix="Give a YAML file of tasks, each with its scorer")
    tree: dict[str, Any] = read_tree(path) if path else {}
    for name, fields in given.items():
        tree[name] = {**(tree.get(name) or {}), **fields}
    if not tree:
        raise UserError("no task is named", fix="Name it with --task, or several in a file with --tasks")
    where = str(path) if path else "tasks"
    try:
        tasks = ShardTasks(tasks={name: fields or {} for name, fields in tree.items()}).tasks
    except ValidationError as error:
        raise UserError(explain(error), where=where, fix=allowed(error, ShardTasks)) from None
    for name, task in tasks.items():
        for key, value, known in (
            ("scorer", task.scorer, SCORERS),
            ("strcvit", task.strcvit, {"", *STRCVIT_SCORERS}),
            ("follow", task.follow, FOLLOW_RULES),
        ):
            if value not in known:
                names = ", ".join(sorted(filter(None, known)))
                raise UserError(
                    f"task {name!r}: unknown {key} {value!r:.80}", where=where, fix=f"Choose one of {names}"
                )
    return tasks


def index(
    shards: Sequence[str],
    folder: Path,
    tasks: Mapping[str, ShardTask],
    beside: Path = Path(),
    *,
    test_shards: Sequence[str] = (),
    task: str = "",
    **how: Any,
) -> tuple[StreamIndex, list[str]]:
    """Index the shards of others, and what is to be said of it.

    Args:
        shards, test_shards: paths, URLs or patterns (`*`, `{000..012}`), in stream order; those that tasks name follow.
        folder: where the index goes.
        tasks: every task of the samples.
        beside: the folder that paths in tasks start from.
        task: the task of samples whose record names none.
        how: further arguments of `index_shards`.

    Raises:
        UserError: as `index_shards`, or a pattern that no file fits.
    """
    named = [(path, task) for path in expand(shards)]
    tested = [(path, task) for path in expand(test_shards)]
    for name, one in tasks.items():
        named += [(path, name) for path in expand(one.shards, beside)]
        tested += [(path, name) for path in expand(one.test_shards, beside)]
    readings = {name: reading for name, one in tasks.items() if (reading := one.reading(beside)) != Reading()}
    made = index_shards(
        [path for path, _ in named],
        folder,
        {name: one.spec(name) for name, one in tasks.items()},
        test_shards=[path for path, _ in tested],
        task=[name for _, name in named],
        test_task=[name for _, name in tested],
        readings=readings,
        **how,
    )
    return made, [*_lost(made), *_guessed(made, readings)]


def expand(patterns: Sequence[str], folder: Path = Path()) -> list[str]:
    """The files and URLs that patterns mean, each pattern's in order of their names.

    Args:
        patterns: paths or URLs; `{000..012}` counts, in paths also `*`, `?` and `[...]` match.
        folder: where relative paths start.

    Raises:
        UserError: no file fits.
    """
    found: list[str] = []
    for one in [each for pattern in patterns for each in _counted(pattern)]:
        away = ":" in one.partition("/")[0]  # a URL, or what is refused as none
        path = one if away else os.path.join(folder, one)
        if away or os.path.lexists(path) or not glob.has_magic(path):
            found.append(path)
        elif matches := sorted(glob.glob(path, recursive=True)):
            found += matches
        else:
            raise UserError("no file fits", where=one, fix="Check the pattern, and the folder it starts from")
    return found


def _counted(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if not match:
        yield pattern
        return
    first, last = match[1], match[2]
    if int(last) - int(first) >= 1_000_000:
        raise UserError(f"{match[0]} counts {int(last) - int(first)} files", where=pattern, fix="Name fewer")
    for number in range(int(first), int(last) + 1):
        yield from _counted(f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}")


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as fault:
        what = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
        raise UserError(
            f"the class names cannot be read: {what}", where=str(path), fix="Give one name a line"
        ) from None


def _lost(made: StreamIndex) -> list[str]:
    tests = [made.eval_index()] if made.meta["eval"] is not None else []
    lines = []
    for part in (made, *tests):
        kind = "samples" if part is made else "test samples"
        lines += part.fault_lines()
        if broken := unusable(part):
            lines.append(f"{len(broken)} {kind} have pictures that cannot be used; the first:")
            lines += [f"  {one.sample_id}: {one.detail}" for one in broken[:_SHOWN]]
    if not tests:
        lines.append("no test sets, which a run needs: --test-shards names them, --test-samples draws them")
    return lines


def _guessed(made: StreamIndex, readings: Mapping[str, Reading]) -> list[str]:
    lines = []
    with ShardReader(made) as reader:
        for task, reading in readings.items():
            if reading.guess_instruction:
                places = (made.task_of == task).nonzero()[0][:100].tolist()
                found = [one for one in reader.read(places) if isinstance(one, Sample) and one.instruction]
                lines.append(f"the last line is taken for the instruction of {task}, as in:")
                lines += [f"  {one.question[-60:]!r} | {one.instruction!r:.100}" for one in found[:_SHOWN]]
    return lines
