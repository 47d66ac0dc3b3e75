"""From what lies there to tasks: their rows looked at, brought into a format that is read, and parted into training and
test rows where they are not. New files of rows go into a folder of their own; the person's stay as they are."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.data.files.origins import REFUSED, Noting, beside, origins_of
from streamcvit.data.files.rows import rows_of
from streamcvit.data.files.spool import Nothing
from streamcvit.data.files.tasks import Reading
from streamcvit.data.formats import BAD_SHARE, FORMATS
from streamcvit.data.sample import Quarantined
from streamcvit.errors import UserError
from streamcvit.start.look import Looked, image_root, look
from streamcvit.start.shapes import as_line, class_rows, format_of, peek, renamed, rows_in
from streamcvit.start.survey import Source, Survey, named

SHOWN = 3
_GOOD, _BAD, _TWICE = 0, 1, 2


@dataclass
class Task:
    """One task of the pipeline; `train` is None where it is only tested."""

    name: str
    train: Looked | None
    test: Looked
    classes: list[str] = field(default_factory=list)
    drawn: bool = False


@dataclass
class Gathered:
    """What came of a folder.

    Attributes:
        tasks: in the order of their names.
        odd: what a person should look at.
        unused: names of what was passed over, and why.
    """

    tasks: list[Task] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)


class Gathering:
    """Works through a folder.

    Args:
        root: the folder.
        found: what lies in it.
        made: folder for new files of rows.
        share: of a task's rows that become its test set.
        seed: of the draw.
    """

    def __init__(self, root: Path, found: Survey, made: Path, share: float, seed: int) -> None:
        self._root, self._found, self._made, self._share, self._seed = root, found, made, share, seed
        self._out = Gathered()

    def gather(self) -> Gathered:
        """The tasks.

        Raises:
            UserError: nothing that lies there can be used.
        """
        parts: dict[str, dict[str, list[Looked]]] = {}
        for source in self._found.sources:
            if (looked := self._looked(source)) is not None:
                parts.setdefault(source.task, {}).setdefault(source.part, []).append(looked)
        classes = self._classes(parts)
        alone = not any(by.keys() & {"train", ""} for by in parts.values())
        taken: list[tuple[str, np.ndarray]] = []
        # Of several that hold the same samples the one of the shortest name stays.
        for name, by in sorted(parts.items(), key=lambda item: (_shortest(item[1]), item[0])):
            train, test = self._parted(name, by, alone)
            first = train or test
            if first is None:
                continue
            names = np.unique(np.frombuffer(first.seen.names, np.uint64))
            if twin := next((other for other, known in taken if np.isin(names, known).mean() > 0.5), None):
                for one in filter(None, (train, test)):
                    self._pass(one, f"holds the samples of task {twin} again")
                continue
            if task := self._task(name, train, test):
                task.classes = classes.get(name, [])
                self._out.tasks.append(task)
                taken.append((name, names))
        if not self._out.tasks:
            faults = "; ".join(": ".join(one) for one in self._out.unused[:SHOWN])
            why = f": {faults}" if faults else ""
            raise UserError(f"holds nothing that can be learned from{why}", where=str(self._root), fix=LOOKED_FOR)
        self._out.tasks.sort(key=lambda task: task.name)
        self._say_unused()
        return self._out

    def _pass(self, what: Looked | Source, why: str) -> None:
        self._out.unused.append((what.name if isinstance(what, Looked) else what.path, why))

    def _looked(self, source: Source) -> Looked | None:
        """A source, read once; None where it is none of rows that can be used."""
        faults: list[str] = []
        try:
            first = peek(rows_in(source, self._root, faults.append))
            format, records, fault = format_of(first)
            notes = []
            columns = renamed(first, format, records)
            if columns is not None:
                format, records, fault = format_of([columns.row(row) for row in first])
                notes.append(str(columns))
            if not format:
                self._pass(source, "; ".join([fault or "no rows in it", *faults[:SHOWN]]))
                return None
            faults.clear()  # they come again
            path, made = source.path, source.tar or columns is not None
            if made:
                rows = rows_in(source, self._root, faults.append)
                found = ((*where, columns.row(row) if columns else row) for *where, row in rows)
                path = self._write(f"{source.task}-{source.part or 'all'}", found)
                notes += ["rows and pictures copied out of the tars"] if source.tar else []
            images = image_root(records, source.files[0].parent, self._root, self._found.folders)
            report, seen = look(self._root / path, format, self._root / images, source.task)
        except UserError as wrong:
            self._pass(source, wrong.what)
            return None
        except OSError as wrong:
            self._pass(source, wrong.strerror or str(wrong))
            return None
        if faults:
            self._out.odd.append(f"{source.path}: {len(faults)} faults: {'; '.join(faults[:SHOWN])}")
        if not len(seen):
            self._pass(source, f"no row can be read; the first: {report.first[0] if report.first else fault}")
            return None
        return Looked(path, source.path, format, images, report, seen, notes, made)

    def _write(self, name: str, rows: Iterable[tuple[str, int, Any]]) -> str:
        """A new file of rows, and beside it which row of which file each was; of rows that are none, why."""
        self._made.mkdir(parents=True, exist_ok=True)
        path, number = self._made / f"{name}.jsonl", 1
        while path.exists():
            number += 1
            path = self._made / f"{name}-{number}.jsonl"
        origins = Noting()
        with path.open("w", encoding="utf-8") as out:
            for file, place, row in rows:
                origins.add(file, place)
                refused = isinstance(row, ValueError)
                out.write(f"{REFUSED}{json.dumps(str(row))}\n" if refused else as_line(row))
        origins.save(path)
        return str(path)

    def _classes(self, parts: dict[str, dict[str, list[Looked]]]) -> dict[str, list[str]]:
        """Folders of pictures that no rows name, by class: tasks of their own. Returns the classes of each."""
        used = {folder for by in parts.values() for all in by.values() for one in all for folder in one.seen.folders}
        groups: dict[Path, dict[str, tuple[Path, Sequence[str]]]] = {}
        for folder, names in self._found.pictures.items():
            if folder not in used and folder != self._root:
                groups.setdefault(folder.parent, {})[folder.name] = (folder, names)
        classes: dict[str, list[str]] = {}
        for above, labels in groups.items():
            if len(labels) < 2:
                continue
            task, part = named(self._root, above.relative_to(self._root).parts)
            if task in parts and task not in classes:
                task += "_classes"
            rows = ((str(above), place, row) for place, row in enumerate(class_rows(self._root, labels)))
            path = self._write(f"{task}-{part or 'all'}", rows)
            report, seen = look(Path(path), "qa", self._root, task)
            name = above.relative_to(self._root).as_posix()
            looked = Looked(path, f"{name}/CLASS/", "qa", "", report, seen, ["a row a picture, named by folder"], True)
            if len(seen):
                parts.setdefault(task, {}).setdefault(part, []).append(looked)
                classes[task] = sorted({*classes.get(task, []), *labels})
        return classes

    def _parted(self, name: str, by: dict[str, list[Looked]], alone: bool) -> tuple[Looked | None, Looked | None]:
        """A task's training and test rows; the other files of each part are passed over."""
        chosen: dict[str, Looked] = {}
        for part, all in by.items():
            first = max(all, key=lambda one: len(one.seen))
            chosen[part] = first
            for other in all:
                if other is not first:
                    kind = {"train": "training ", "": ""}.get(part, "test ")
                    self._pass(other, f"{first.name} is the {kind}file of task {name}")
        plain, train = chosen.pop("", None), chosen.pop("train", None)
        if train is None:
            train, plain = plain, None
        if plain is not None:
            self._pass(plain, f"{train.name if train else ''} is the training file of task {name}")
        test = None
        for part in ("test", "val", "hint"):
            one = chosen.get(part)
            if one is not None and part == "hint" and train is None:
                train = one  # questions and answers, and nothing to learn from beside
            elif one is not None and test is None:
                test = one
            elif one is not None and test is not None:
                self._pass(one, f"{test.name} is the test set of task {name}")
        if train is None and test is not None and alone:
            self._out.odd.append(
                f"{name}: {test.name} is called a test set, but nothing to learn from lies there: parted"
            )
            train, test = test, None
        return train, test

    def _task(self, name: str, train: Looked | None, test: Looked | None) -> Task | None:
        drawn = False
        if test is None and train is not None:
            if len(train.seen) < 2:
                self._pass(train, f"{len(train.seen)} row is too few for a training and a test set")
                return None
            sides = self._split(name, train)
            if sides is None:
                return None
            (train, test), drawn = sides, True
        assert test is not None
        for one in filter(None, (train, test)):
            self._say_odd(name, one)
        if train is None:
            self._out.odd.append(f"{name}: nothing to learn from lies beside {test.name}: it is only tested")
        elif both := _shared(train, test):
            self._out.odd.append(f"{name}: {both} of {len(test.seen)} test samples are in the training set too")
        return Task(name, train, test, drawn=drawn)

    def _split(self, name: str, whole: Looked) -> tuple[Looked, Looked] | None:
        """A seeded part of the rows as test set, all rows on one picture on the same side, if that can be.

        Rows that cannot be read go to the training set, where a run counts them; those that come twice are left out.
        """
        path, keys = self._root / whole.path, (array("Q"), array("Q"))
        sorts = bytearray()  # of each row: good, bad, or there already
        reading = Reading(name, whole.format, self._root / whole.images, spool=Nothing())
        for (_, _, raw), row in zip(rows_of(path), reading.rows(path), strict=True):
            bad = isinstance(row, Quarantined)
            sorts.append((_TWICE if row.reason == "duplicate" else _BAD) if isinstance(row, Quarantined) else _GOOD)
            for known, key in zip(keys, (0, 0) if bad else self._keys(whole.format, raw), strict=True):
                known.append(key)
        good = np.frombuffer(sorts, np.uint8) == _GOOD
        drawn_by = [np.frombuffer(one, np.uint64) for one in keys]
        wanted = min(max(1, round(self._share * int(good.sum()))), int(good.sum()) - 1)
        tested = good & np.isin(drawn_by[0], self._drawn(drawn_by[0][good], wanted))
        if 2 * tested.sum() < wanted:
            tested = good & np.isin(drawn_by[1], self._drawn(drawn_by[1][good], wanted, least=True))
            self._out.odd.append(f"{name}: so few pictures that training and test set share them: parted by row")
        if not tested.any():
            self._pass(whole, "all its rows say the same: no test set can be parted off")
            return None
        kept = {"train": ~tested & (np.frombuffer(sorts, np.uint8) != _TWICE), "test": tested}
        files = {
            part: self._write(
                f"{name}-{part}", (row for one, row in zip(these, _with_origins(path), strict=True) if one)
            )
            for part, these in kept.items()
        }
        if whole.made:
            path.unlink()
            beside(path).unlink()
        sides = []
        for part, file in files.items():
            report, seen = look(Path(file), whole.format, self._root / whole.images, name)
            label = f"{whole.name} ({part})"
            sides.append(Looked(file, label, whole.format, whole.images, report, seen, whole.notes, True))
            whole.notes = []
        return sides[0], sides[1]

    def _keys(self, format: str, raw: Any) -> tuple[int, int]:
        """What draws a row: its first picture (or its prompt); and all that it says but its id."""
        record = FORMATS[format](raw)
        prompt = record.prompt or record.whole or f"{record.question}\n{record.instruction}"
        said = repr((record.pictures, prompt, record.answers, record.turns))
        return self._hash(record.pictures[0] if record.pictures else prompt), self._hash(said)

    def _hash(self, key: str | bytes) -> int:
        data = key if isinstance(key, bytes) else key.encode(errors="surrogatepass")
        digest = hashlib.blake2b(data, digest_size=16, key=str(self._seed).encode()).digest()
        return int.from_bytes(digest[:8])

    @staticmethod
    def _drawn(keys: np.ndarray, wanted: int, least: bool = False) -> np.ndarray:
        """Of the keys, in their order, as many as have no more than so many rows together.

        Args:
            keys: integers [n].
            wanted: rows.
            least: one at least, if others are left.
        """
        values, sizes = np.unique(keys, return_counts=True)
        drawn, total = np.zeros(len(values), dtype=bool), 0
        for place, size in enumerate(sizes):
            if total == wanted:
                break
            if total + size <= wanted:
                drawn[place] = True
                total += int(size)
        if not drawn.any() and least and len(values) > 1:
            drawn[np.argmin(sizes)] = True
        return values[drawn]

    def _say_odd(self, name: str, one: Looked) -> None:
        report, seen = one.report, one.seen
        odd = []
        if lost := sum(report.bad.values()):
            kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(report.bad.items()))
            stops = f" (a run stops at more than {BAD_SHARE:.0%}, stream.bad_share)" if report.share > BAD_SHARE else ""
            odd.append(f"{lost} of {report.rows} rows cannot be read: {kinds}{stops}; {'; '.join(report.first)}")
        if seen.repeated:
            odd.append(f"rows with the id of an earlier one, which get `#2` ... behind it: {seen.repeated}")
        if report.no_picture and report.no_picture < report.samples:
            odd.append(f"{report.no_picture} of {report.samples} samples have no picture")
        if seen.broken:
            odd.append(f"{seen.broken} of the first {seen.tried} pictures cannot be decoded")
        if report.turns:
            odd.append(
                f"{report.turns} conversations of several turns: all answers are learned, the last is tested; "
                "`split_turns: true` makes a sample of each"
            )
        self._out.odd += [f"{name}: {one.name}: {each}" for each in (*one.notes, *odd)]

    def _say_unused(self) -> None:
        self._out.unused += [(name, "a name with signs that cannot be written") for name in self._found.odd_names]
        used = {
            folder for task in self._out.tasks for one in (task.train, task.test) if one for folder in one.seen.folders
        }
        for folder, names in self._found.pictures.items():
            if folder not in used:
                name = folder.relative_to(self._root).as_posix()
                self._out.unused.append((f"{name}/", f"pictures that no rows name: {len(names)}"))


def _with_origins(path: Path) -> Iterator[tuple[str, int, Any]]:
    """(file, number in it, row) of the rows of a file; of one that was made, as they were before."""
    current, origins = None, None
    for file, number, row in rows_of(path):
        if file != current:
            current, origins = file, origins_of(file)
        yield *(origins.of(number) if origins else (str(file), number)), row


def _shared(one: Looked, other: Looked) -> int:
    """How many rows say the same in both."""
    return len(np.intersect1d(np.frombuffer(one.seen.texts, np.uint64), np.frombuffer(other.seen.texts, np.uint64)))


def _shortest(by: dict[str, list[Looked]]) -> int:
    return min(len(one.name) for all in by.values() for one in all)


LOOKED_FOR = (
    "Looked for: files of rows (.json, .jsonl, .csv, .parquet, folders of `datasets`) with questions and answers, "
    "a table with pictures and labels, WebDataset tars, folders of pictures by class (CLASS/*.jpg)"
)
