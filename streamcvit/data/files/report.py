"""What an import found: how many rows, what of them cannot be used and why, what was named and guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from streamcvit.data.formats import BAD_SHARE
from streamcvit.data.instructions import Naming
from streamcvit.data.sample import Quarantined, Sample
from streamcvit.errors import UserError

SHOWN = 3
"""Bad rows and guesses that are shown."""

_MENDS = {
    "address": "Download the pictures, and name their files beneath the image root",
    "missing": "Check the image folder (`images`, which picture paths start from)",
    "path": "Check the image folder (`images`, which picture paths start from), and name paths beneath it",
    "image": "Check the pictures",
    "media": "Leave these rows out",
    "duplicate": "Leave rows out that come twice",
}


@dataclass
class FileReport:
    """What one file of rows (or folder of them) held.

    Attributes:
        file: its path.
        rows: all that were read.
        samples: good ones; more than good rows where turns are split.
        bad: how many cannot be used, by reason.
        first: the first of them in words.
        no_picture, pictures, turns, systems: samples without a picture, with several, with turns before the last, with
            a system prompt.
        unnamed: samples that hold no instruction, though the task names some.
        appended: whether one stands behind their prompts now.
        guesses: the first guessed instructions, as [end of the question, instruction].
    """

    file: str = ""
    rows: int = 0
    samples: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    no_picture: int = 0
    pictures: int = 0
    turns: int = 0
    systems: int = 0
    unnamed: int = 0
    appended: bool = False
    guesses: list[list[str]] = field(default_factory=list)

    def add_bad(self, row: Quarantined) -> None:
        """Count a row that cannot be used."""
        self.bad[row.reason] = self.bad.get(row.reason, 0) + 1
        if len(self.first) < SHOWN:
            self.first.append(row.detail.removeprefix(f"{self.file}: "))

    def add(self, sample: Sample, pictures: int, found: bool, naming: Naming) -> None:
        """Count a sample; `found` says whether its row held an instruction."""
        self.samples += 1
        self.no_picture += not pictures
        self.pictures += pictures > 1
        self.turns += bool(sample.turns)
        self.systems += bool(sample.system)
        self.unnamed += not found and bool(naming.wordings or naming.field or naming.guess)
        self.appended = naming.wording != "given"
        if naming.guess and found and sample.instruction not in naming.wordings and len(self.guesses) < SHOWN:
            self.guesses.append([sample.question[-60:], sample.instruction])

    @property
    def share(self) -> float:
        """Of bad rows among all."""
        return sum(self.bad.values()) / max(1, self.rows)

    def check(self, bad_share: float = BAD_SHARE, hint: str = "") -> None:
        """Raise UserError where more than `bad_share` of the rows are bad; it shows the first three and the kinds.

        Args:
            bad_share: the share that is borne.
            hint: what else may mend it.
        """
        lost = sum(self.bad.values())
        if not lost or self.share <= bad_share:
            return
        what = f"{lost} of {self.rows} rows cannot be read ({_kinds(self.bad)})"
        mend = hint or _MENDS.get(max(self.bad, key=self.bad.__getitem__), "Check `format`")
        raise UserError(
            f"{what}; the first: {'; '.join(self.first)}",
            where=self.file,
            fix=f"{mend}; at most {bad_share:.0%} may be bad (stream.bad_share)",
        )


@dataclass
class TaskReport:
    """What one task's files held, and what of it is used.

    Attributes:
        train, test: its files; `train` is None where the task is only tested.
        used: test samples that are used.
        lost: how many samples of the stream, and test samples, have pictures that cannot be used.
    """

    train: FileReport | None
    test: FileReport
    used: int = 0
    lost: list[int] = field(default_factory=lambda: [0, 0])


@dataclass
class ImportReport:
    """What an import found.

    Attributes:
        tasks: by name.
        mixed: of files with training rows of all tasks, those that cannot be used included; None: each has its own.
        notes: what else a person should know.
    """

    tasks: dict[str, TaskReport] = field(default_factory=dict)
    mixed: FileReport | None = None
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for a person: a line a task, and one for everything that is odd."""
        lines = []
        for name, task in self.tasks.items():
            parts = [_summary(task.train, "training")] if task.train else []
            lines.append(f"{name}: {'; '.join([*parts, _summary(task.test, 'test')])}")
            for file in filter(None, (task.train, task.test)):
                lines += [f"{name}: {line}" for line in _oddities(file)]
            if task.used < task.test.samples:
                lines.append(
                    f"{name}: {task.used} of {task.test.samples} test samples are used, a draw (stream.test_samples)"
                )
        if self.mixed and self.mixed.bad:
            lines.append(_lost(self.mixed))
        return lines + self.notes

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return {name: value for name, value in asdict(self).items() if value or name == "tasks"}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImportReport:
        """Inverse of `to_json`; any of KeyError, TypeError and AttributeError where it is none."""
        tasks = {}
        for name, task in record["tasks"].items():
            train = FileReport(**task["train"]) if task["train"] else None
            tasks[name] = TaskReport(train, FileReport(**task["test"]), task["used"], task["lost"])
        mixed = FileReport(**record["mixed"]) if record.get("mixed") else None
        return cls(tasks, mixed, record.get("notes", []))


def _kinds(bad: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(bad).most_common())


def _summary(file: FileReport, kind: str) -> str:
    odd = [(file.no_picture, "without a picture"), (file.pictures, "with several"), (file.turns, "of several turns")]
    found = ", ".join(f"{count} {what}" for count, what in [*odd, (file.systems, "with a system prompt")] if count)
    return f"{file.samples} {kind} samples" + (f" ({found})" if found else "")


def _lost(file: FileReport) -> str:
    lost = sum(file.bad.values())
    return (
        f"{lost} {'row' if lost == 1 else 'rows'} of {file.file} cannot be used ({_kinds(file.bad)}); "
        f"the first: {'; '.join(file.first)}"
    )


def _oddities(file: FileReport) -> Sequence[str]:
    lines = [_lost(file)] if file.bad else []
    if file.unnamed:
        now = "one stands behind their prompts now" if file.appended else "their whole prompt is the question"
        lines.append(f"{file.unnamed} of {file.samples} samples of {file.file} hold none of the instructions; {now}")
    for question, instruction in file.guesses:
        lines.append(f"guessed instruction: {instruction!r:.100} after {question!r}")
    return lines
