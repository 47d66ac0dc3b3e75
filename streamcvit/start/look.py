"""Everything that the rows of one file say: how many can be read, their answers, their prompts' last words."""

from __future__ import annotations

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamcvit.data.files.report import FileReport
from streamcvit.data.files.spool import Nothing
from streamcvit.data.files.taskrows import PictureFile, look_at
from streamcvit.data.files.tasks import Reading
from streamcvit.data.formats import Record
from streamcvit.data.images import image_fault
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Quarantined, Sample
from streamcvit.evaluation.answers import parse_number
from streamcvit.evaluation.boxes import read_boxes

KEPT = 500
"""Samples of a file that rules are tried on."""
DECODED = 100
"""Pictures of a file that are decoded."""
FOLDERS = 300
"""Folders that are tried as image root."""
_DISTINCT = 5000  # answers and endings that are counted; with more, neither labels nor instructions are likely
_LETTER = re.compile(r"\(?[A-Za-z]\)?[.:]?")
_SENTENCES = re.compile(r"(?<=[.?!])\s+")
_REPEATED = re.compile(r"#\d+$")


@dataclass
class Seen:
    """What was seen in the good rows.

    Attributes:
        kinds: how many first answers are a `box`, `letter`, `number`, `whole` number, `yes_no`, `short` (three words or
            fewer), end with a full stop (`stop`); and how many rows have three references or more (`people`).
        labels: the first answers in small letters, and how often they come.
        endings: the prompts' last lines (of prompts of one line: their last sentences), and how often they come.
        lengths: characters of the first answers.
        texts: a checksum of each row's pictures, prompt and answers.
        names: a checksum of each row's pictures, id and answers.
        own: rows that say their instruction themselves.
        repeated: ids that came again.
        samples: the first of them.
        folders: of their pictures.
        counts: samples by their number of pictures.
        tried, broken: pictures in files that were decoded, and that could not be.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    texts: array[int] = field(default_factory=lambda: array("Q"))
    names: array[int] = field(default_factory=lambda: array("Q"))
    own: int = 0
    repeated: int = 0
    samples: list[Sample] = field(default_factory=list)
    folders: set[Path] = field(default_factory=set)
    counts: Counter[int] = field(default_factory=Counter)
    tried: int = 0
    broken: int = 0

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.kinds + other.kinds, self.labels + other.labels, self.endings + other.endings,
            self.lengths + other.lengths, self.texts + other.texts, self.names + other.names, self.own + other.own,
            self.repeated + other.repeated, self.samples + other.samples, self.folders | other.folders,
            self.counts + other.counts, self.tried + other.tried, self.broken + other.broken,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass
class Looked:
    """A file of rows that was read once.

    Attributes:
        path: of the rows, whole or relative to the data folder.
        name: what a person calls it.
        format, images: as a pipeline names them.
        report: the rows, and what of them cannot be used.
        notes: what was done to the rows before.
        made: whether the rows were written by us, out of something else.
    """

    path: str
    name: str
    format: str
    images: str
    report: FileReport
    seen: Seen
    notes: list[str] = field(default_factory=list)
    made: bool = False


def image_root(records: Sequence[Record], beside: Path, root: Path, folders: Iterable[Path]) -> str:
    """The folder, relative to `root`, beneath which most of the rows' pictures lie."""
    named = [one for record in records for one in record.pictures if isinstance(one, str)][:KEPT]
    best, most = root, -1
    for folder in dict.fromkeys([root, beside, *list(folders)[:FOLDERS], root.parent]):
        there = sum(_is_there(one, folder) for one in named)
        if there > most:
            best, most = folder, there
        if there == len(named):
            break
    if best == root:
        return ""
    return ".." if best == root.parent else best.relative_to(root).as_posix()


def _is_there(reference: str, folder: Path) -> bool:
    try:
        look_at(reference, str(folder), Nothing())
    except BadRow as wrong:
        return wrong.reason != "missing"
    return True


def look(path: Path, format: str, images: Path, task: str) -> tuple[FileReport, Seen]:
    """Read a file once.

    Raises:
        UserError: it cannot be read to its end.
    """
    seen = Seen()
    reading = Reading(task, format, images, spool=_Checksums())
    for row in reading.rows(path):
        if isinstance(row, Quarantined):
            continue
        sample = row.sample
        _add_answer(seen, sample.answer)
        seen.kinds["people"] += len(sample.answers) > 2
        seen.own += bool(sample.instruction)
        seen.repeated += bool(_REPEATED.search(sample.sample_id))
        seen.counts[len(row.pictures)] += 1
        if sample.instruction or len(seen.endings) < _DISTINCT:
            seen.endings[sample.instruction or ending(sample.prompt)] += 1
        seen.folders |= {Path(one.path).parent for one in row.pictures if isinstance(one, PictureFile)}
        for one in row.pictures:
            if isinstance(one, PictureFile) and seen.tried < DECODED:
                seen.tried += 1
                seen.broken += bool(image_fault(one.load(reading.spool).data))
        pictures = [one.path if isinstance(one, PictureFile) else (one.start, one.size) for one in row.pictures]
        seen.texts.append(_checksum(pictures, sample.prompt, sample.answers, sample.turns))
        seen.names.append(_checksum(pictures, sample.sample_id, sample.answers))
        if len(seen.samples) < KEPT:
            seen.samples.append(sample)
    return reading.report, seen


class _Checksums(Nothing):
    """Keeps nothing but tells pictures apart: where one lies is its checksum."""

    def put(self, data: bytes) -> int:
        """Its checksum."""
        return zlib.crc32(data)


def _checksum(*values: object) -> int:
    text = repr(values).encode(errors="surrogatepass")
    return zlib.crc32(text) << 32 | zlib.adler32(text)


def ending(prompt: str) -> str:
    """The last line of a prompt; of one of a single line its last sentence."""
    lines = prompt.strip().splitlines()
    return lines[-1].strip() if len(lines) > 1 else _SENTENCES.split(prompt.strip())[-1]


def _add_answer(seen: Seen, answer: str) -> None:
    text = answer.strip()
    number = parse_number(text) if len(text) < 40 else None
    seen.lengths.append(len(text))
    seen.kinds["box"] += len(text) < 200 and any(True for _ in read_boxes(text))
    seen.kinds["letter"] += _LETTER.fullmatch(text) is not None
    seen.kinds["number"] += number is not None
    seen.kinds["whole"] += text.isascii() and text.isdigit()
    seen.kinds["yes_no"] += text.casefold().removesuffix(".") in ("yes", "no")
    seen.kinds["short"] += len(text.split(None, 4)) < 4
    seen.kinds["stop"] += text.endswith(".")
    if len(text) <= 100 and (text.lower() in seen.labels or len(seen.labels) < _DISTINCT):
        seen.labels[text.lower()] += 1
