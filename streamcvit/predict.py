"""Answers from the adapters of a run, any commit of any method: to one question, or to a file of them."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from streamcvit.adapters.calls import cluster_assignments
from streamcvit.data.files.rows import rows_of
from streamcvit.data.files.tasks import TaskFiles
from streamcvit.data.formats import FORMATS
from streamcvit.data.instructions import UNNAMED, Naming
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Picture, Sample
from streamcvit.errors import UserError
from streamcvit.evaluation.generate import Generator, Request
from streamcvit.learning.durable import replacing
from streamcvit.models.collate import UnusableSamples
from streamcvit.questions import picture_of, record_of, sample_of
from streamcvit.run.loading import routes
from streamcvit.trained import Bench, Trained, find, tasks_of

MAX_NEW_TOKENS = 64
"""Where an answer ends at the latest, if neither the caller nor a task of the run says so."""
CACHE_BYTES = 1 << 30
"""Image features kept for the next method."""
WINDOW = 4
"""Batches of rows that are read at a time; their pictures are in memory."""
_SAY_EVERY = 10.0


@dataclass(frozen=True)
class Answer:
    """What one commit answers to one question.

    Attributes:
        trained: the commit.
        text: the answer, as the run's evaluation would have it.
        routes: bank -> expert that the adapter's prototypes choose; empty for other adapters, and where not asked for.
    """

    trained: Trained
    text: str
    routes: dict[str, int]

    def record(self) -> dict[str, Any]:
        """As a JSON value."""
        one = self.trained
        said = {"method": one.method, "chunk": one.chunk, "step": one.step, "digest": one.digest, "answer": self.text}
        return said | ({"routes": self.routes} if self.routes else {})


class Predictor:
    """Answers from commits of one run, prepared, decoded and freed of thoughts as the run's evaluation does.

    Attributes:
        told: of methods that must be told the task of a question, the tasks that they know.

    Args:
        trained: the commits (`streamcvit.trained.find`).
        max_new_tokens: where an answer ends at the latest; None: as the run's task of that name says, `MAX_NEW_TOKENS`
            where a question belongs to none.
        place: `model`, `device`, `dtype` and `other_base`, as `streamcvit.trained.Bench` takes them.

    Raises:
        UserError: as `Bench`.
    """

    def __init__(self, trained: Sequence[Trained], max_new_tokens: int | None = None, **place: Any) -> None:
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}", fix="Give 1 or more")
        self.trained, self.max_new_tokens = list(trained), max_new_tokens
        self.tasks = tasks_of(trained[0])
        self.told = {one.method: tasks for one in trained if (tasks := one.told) is not None}
        self.bench = Bench(trained, **place)
        self._made: Generator | None = None

    @property
    def generator(self) -> Generator:
        """The run's own way from samples to answers; a new one where the base was loaded again."""
        if self._made is None or self._made.base is not self.bench.base:
            how = self.bench.config.evaluation
            encoder = self.bench.encoder
            self._made = Generator(self.bench.base, encoder, how.batch_size, CACHE_BYTES, how.thoughts)
        return self._made

    def naming(self, task: str) -> Naming:
        """How the run names the instruction of a task's prompts.

        Raises:
            UserError: the run has no such task.
        """
        files = self.bench.config.stream.tasks
        if task in files:
            return TaskFiles(**files[task].model_dump()).naming()
        if task and task not in self.tasks:
            known = ", ".join(dict.fromkeys([*files, *self.tasks])) or "none that is known here"
            raise UserError(f"the run has no task {task!r}", fix=f"Its tasks: {known}")
        return UNNAMED

    def unrouted(self, sample: Sample) -> list[str]:
        """Methods that route by instruction, where a sample has none."""
        banks = ("smolora", "strlora", "eproj")
        methods = self.bench.config.methods
        if sample.routing_text:
            return []
        return [one.method for one in self.trained if one.commit and methods[one.method].adapter in banks]

    def untold(self, task: str) -> str:
        """What is wrong with the task of a question, where a method must be told it; empty where nothing is."""
        for method, tasks in self.told.items():
            if task not in tasks:
                given = f"{task!r} is none that it knows" if task else "none is given"
                return f"{method} must be told the task, and {given}: {', '.join(tasks)}"
        return ""

    def ask(self, sample: Sample, show_routes: bool = False) -> list[Answer]:
        """Every commit's answer to one sample, in the commits' order.

        Raises:
            UserError: the sample cannot be asked: a picture that cannot be decoded, a prompt that is too long, a method
                that must be told its task and is not ...
        """
        if untold := self.untold(sample.task):
            raise UserError(untold, fix="Name it with --task, or choose other methods with --method")
        found = []
        for one in self.trained:
            model = self.bench.hold(one)
            try:
                requests = self.generator.prepare([sample])
            except UnusableSamples as fault:
                kind, detail = next(iter(fault.reasons.values()))
                raise UserError(f"the question cannot be asked: {kind}: {detail}", fix=_MENDS.get(kind, "")) from None
            (text,) = self._answer(model, requests)
            chosen: dict[str, int] = {}
            if show_routes and routes(model):
                banks = cluster_assignments(model, self.generator.routing(requests))
                chosen = {bank: int(expert) for bank, expert in banks.items()}
            found.append(Answer(one, text, chosen))
        return found

    def answers(self, model: Any, samples: Sequence[Sample]) -> list[str | BadRow]:
        """The answer to each of some samples of distinct ids, or why there is none."""
        reasons: Mapping[str, tuple[str, str]] = {}
        usable, requests = list(samples), list[Request]()
        try:
            requests = self.generator.prepare(usable) if usable else []
        except UnusableSamples as fault:
            reasons = fault.reasons
            usable = [sample for sample in usable if sample.sample_id not in reasons]
            requests = self.generator.prepare(usable) if usable else []
        texts = dict(zip((one.sample_id for one in usable), self._answer(model, requests), strict=True))
        return [texts[name] if (name := sample.sample_id) in texts else BadRow(*reasons[name]) for sample in samples]

    def _answer(self, model: Any, requests: Sequence[Request]) -> list[str]:
        texts = [""] * len(requests)
        limits = [self._limit(request.sample.task) for request in requests]
        for limit in sorted(set(limits)):
            rows = [row for row, own in enumerate(limits) if own == limit]
            found = self.generator.answer(model, [requests[row] for row in rows], limit)
            for row, text in zip(rows, found, strict=True):
                texts[row] = text
        return texts

    def _limit(self, task: str) -> int:
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return self.tasks[task].max_new_tokens if task in self.tasks else MAX_NEW_TOKENS


_MENDS = {
    "length": "Shorten it, or give fewer or smaller pictures",
    "image": "Save the picture anew, as PNG or JPEG",
}


@dataclass(frozen=True)
class FileReport:
    """What became of a file of questions.

    Attributes:
        rows: rows of the file.
        answered: those that every method answered.
        bad: those that cannot be asked.
        first: what is wrong with the first of these; empty: there is none.
    """

    rows: int
    answered: int
    bad: int
    first: str


def predict_file(
    predictor: Predictor,
    file: Path,
    to: Path,
    *,
    images: Path | None = None,
    form: str | None = None,
    task: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> FileReport:
    """Answer a file of questions with every commit of a predictor, in bounded memory.

    Args:
        predictor: the commits.
        file: rows as `streamcvit.data.files.rows` reads them; references are not needed.
        to: JSON lines to write, one a row in the file's order: `row` (from 0), `id`, `answers` {method: text} or
            `error`. It shows whole or not at all.
        images: folder that the rows' picture paths start from; None: the file's own.
        form: a name in `FORMATS`; None: told by each row's keys.
        task: of the run, for rows that name none.
        say: told how far it is, every ten seconds.

    Raises:
        UserError: `to` exists or cannot be written; the file cannot be read, or not one of its rows can be asked.
    """
    check_target(to)
    asking = _Asking(predictor, file, images or file.parent, form, task)
    parts: list[IO[str]] = []
    report = FileReport(0, 0, 0, "")
    try:
        for one in predictor.trained:
            model = predictor.bench.hold(one)
            parts.append(tempfile.TemporaryFile("w+", encoding="utf-8"))  # noqa: SIM115
            done, told = 0, time.monotonic()
            for lines in asking.lines(model):
                parts[-1].writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                done += len(lines)
                if time.monotonic() - told > _SAY_EVERY:
                    told = time.monotonic()
                    say(f"{one.method}: {done} rows")
        for part in parts:
            part.seek(0)
        with replacing(to) as stream:
            for line in _joined([one.method for one in predictor.trained], parts, file):
                wrong = line.get("error", "")
                report = FileReport(
                    report.rows + 1,
                    report.answered + (not wrong),
                    report.bad + bool(wrong),
                    report.first or (f"row {line['row']} ({line['id']}): {wrong}" if wrong else ""),
                )
                stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            if not report.answered:
                told_of = f"not one of {report.rows} rows can be asked; the first: {report.first}"
                fix = "Name the rows' format with --format, and the pictures' folder with --images"
                raise UserError(told_of if report.rows else "holds no rows", where=str(file), fix=fix)
    except BaseException:
        to.with_name(f".{to.name}").unlink(missing_ok=True)
        raise
    finally:
        for part in parts:
            part.close()
    return report


def check_target(to: Path) -> None:
    """UserError where a file is there already, or its folder is not."""
    if to.exists() or to.is_symlink():
        raise UserError("exists already", where=str(to), fix="Name another file with --out")
    if not to.parent.is_dir():
        raise UserError("there is no such folder", where=str(to.parent), fix="Make it, or name another file with --out")


def _joined(methods: Sequence[str], parts: Sequence[Iterable[str]], file: Path) -> Iterator[dict[str, Any]]:
    """One line a row, from one line a row and method."""
    try:
        for texts in zip(*parts, strict=True):
            lines = [json.loads(text) for text in texts]
            wrong = next((line["error"] for line in lines if "error" in line), None)
            row = {"row": lines[0]["row"], "id": lines[0]["id"]}
            said = {method: line.get("answer") for method, line in zip(methods, lines, strict=True)}
            yield row | ({"answers": said} if wrong is None else {"error": wrong})
    except ValueError:
        raise UserError("changed while it was read", where=str(file), fix="Let it be until all is answered") from None


class _Asking:
    """The rows of a file as samples, and their answers."""

    def __init__(self, predictor: Predictor, file: Path, images: Path, form: str | None, task: str) -> None:
        if form is not None and form not in FORMATS:
            raise UserError(f"unknown format {form!r}", fix=f"Choose from {', '.join(FORMATS)}")
        self.predictor, self.file, self.images, self.form, self.task = predictor, file, str(images), form, task
        self.namings = {task: predictor.naming(task)}

    def lines(self, model: Any) -> Iterator[list[dict[str, Any]]]:
        """A window's lines: `row`, `id`, and `answer` or `error`."""
        size = WINDOW * self.predictor.generator.batch_size
        window: list[tuple[str, Sample | BadRow]] = []
        number = 0
        for _, _, row in rows_of(self.file):
            window.append(self._read(number + len(window), row))
            if len(window) == size:
                yield self._answered(model, window, number)
                number += len(window)
                window = []
        if window:
            yield self._answered(model, window, number)

    def _answered(self, model: Any, window: list[tuple[str, Sample | BadRow]], first: int) -> list[dict[str, Any]]:
        samples = [one for _, one in window if isinstance(one, Sample)]
        found = iter(self.predictor.answers(model, samples))
        lines = []
        for number, (name, one) in enumerate(window, start=first):
            said = next(found) if isinstance(one, Sample) else one
            told = {"error": f"{said.reason}: {said}"} if isinstance(said, BadRow) else {"answer": said}
            lines.append({"row": number, "id": name, **told})
        return lines

    def _read(self, number: int, row: Any) -> tuple[str, Sample | BadRow]:
        name = ""
        try:
            if isinstance(row, ValueError):
                raise BadRow("json", str(row))
            if not isinstance(row, dict):
                raise BadRow("shape", f"expected an object, found {type(row).__name__}")
            name = str(next((row[key] for key in ("id", "question_id") if row.get(key) is not None), number))
            record = record_of(row, self.form)
            if len(record.pictures) != (record.count or 0):
                named = len(record.pictures) or "none"
                raise BadRow("pictures", f"the texts ask for {record.count} pictures, the row names {named}")
            pictures = [picture_of(one, self.images) for one in record.pictures]
            for one in pictures:
                if isinstance(one, BadRow):
                    raise one
            task = record.task or (row["task"] if isinstance(row.get("task"), str) else self.task)
            if untold := self.predictor.untold(task):
                raise BadRow("task", untold)
            loaded = [one for one in pictures if isinstance(one, Picture)]
            return name, sample_of(record, str(number), task, loaded, self._naming(task))
        except BadRow as fault:
            return name or str(number), fault
        except ValueError as fault:
            return name or str(number), BadRow("shape", str(fault))

    def _naming(self, task: str) -> Naming:
        if task not in self.namings:
            try:
                self.namings[task] = self.predictor.naming(task)
            except UserError:  # a row may belong to a task that the run never had
                self.namings[task] = UNNAMED
        return self.namings[task]


def predictor_of(
    run: Path | str,
    methods: Sequence[str] = (),
    chunk: int | None = None,
    commit: str | None = None,
    max_new_tokens: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    **place: Any,
) -> Predictor:
    """A predictor of a run's commits; arguments and errors as of `streamcvit.trained.find` and `Predictor`."""
    return Predictor(find(run, methods, chunk, commit, say), max_new_tokens, **place)
