"""One row of a task file as a sample whose pictures still lie on disk, and many of them, kept small."""

from __future__ import annotations

import errno
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np

from streamcvit.data.files.spool import Spool
from streamcvit.data.files.taken import checksum
from streamcvit.data.images import no_picture, sniff
from streamcvit.data.locations import NotRegular, open_regular
from streamcvit.data.references import BadRow, Reference
from streamcvit.data.sample import Picture, Sample, canonical
from streamcvit.data.shards.tar import MAX_MEMBER
from streamcvit.errors import UserError


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file of its own; it was there, and of a kind that is read, when it was looked at."""

    path: str
    ext: str

    def load(self, spool: Spool) -> Picture:
        """The picture with its bytes as they are.

        Raises:
            UserError: it is gone.
        """
        try:
            with os.fdopen(open_regular(self.path), "rb") as stream:
                return Picture(stream.read(MAX_MEMBER + 1), self.ext)
        except OSError as fault:
            raise UserError(f"the picture cannot be read: {fault.strerror}", where=self.path) from None


@dataclass(frozen=True)
class SpooledPicture:
    """A picture that the row itself held, set aside."""

    start: int
    size: int
    ext: str

    def load(self, spool: Spool) -> Picture:
        """The picture."""
        return Picture(spool.get(self.start, self.size), self.ext)


@dataclass(frozen=True)
class Row:
    """A sample whose pictures are not read yet.

    Attributes:
        sample: without its pictures.
        pictures: where they lie.
        text: the sample's, with as many pictures.
        spool: where those lie that the row itself held.
    """

    sample: Sample
    pictures: tuple[PictureFile | SpooledPicture, ...]
    text: bytes = field(repr=False, compare=False)
    spool: Spool = field(repr=False, compare=False)

    @property
    def sample_id(self) -> str:
        """Of the sample."""
        return self.sample.sample_id

    @property
    def stored(self) -> Stored:
        """The same as it is written."""
        return Stored(self.sample_id, self.sample.task, self.text, self.pictures, self.spool)

    def load(self) -> Sample:
        """The sample with its pictures' bytes as they are.

        Raises:
            UserError: a picture is gone.
        """
        return replace(self.sample, pictures=tuple(one.load(self.spool) for one in self.pictures))


@dataclass(frozen=True)
class Stored:
    """A row as it is written into a shard: its text, whose id and task these are, and where its pictures lie."""

    sample_id: str
    task: str
    text: bytes = field(repr=False)
    places: tuple[PictureFile | SpooledPicture, ...]
    spool: Spool = field(repr=False, compare=False)

    def load(self) -> tuple[Picture, ...]:
        """Its pictures.

        Raises:
            UserError: one is gone.
        """
        return tuple(one.load(self.spool) for one in self.places)

    def stamp(self) -> bytes:
        """Tells whether it would be written in the same way again: its text, and size and time of its picture files."""
        parts = [self.text]
        for one in self.places:
            if isinstance(one, PictureFile):
                try:
                    there = os.stat(one.path)
                    parts.append(f"{one.path}\0{there.st_size}\0{there.st_mtime_ns}".encode(errors="surrogateescape"))
                except OSError:
                    parts.append(b"gone")
            else:
                parts.append(self.spool.get(one.start, one.size))
        return b"\0".join(parts)


class Rows(Sequence[Sample]):
    """Rows as a sequence of samples, each read when it is asked for and not kept: in memory are two numbers and a
    checksum of each, 20 bytes.

    Attributes:
        spool: where they are.
        checksums: of their ids.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.checksums = array("Q")
        self._starts, self._sizes = array("q"), array("I")
        self._front, self._fronted = "", bytearray()
        self._named: dict[int, str] = {}

    def append(self, row: Row) -> None:
        """Add a row of this spool."""
        head = [row.sample.sample_id, row.sample.task, [list(vars(one).values()) for one in row.pictures]]
        text = json.dumps(head).encode() + b"\n" + row.text
        self._starts.append(self.spool.put(text))
        self._sizes.append(len(text))
        self.checksums.append(checksum(row.sample_id.encode()))

    @property
    def ids(self) -> list[str]:
        """Of the samples."""
        return [self.stored(place).sample_id for place in range(len(self))]

    def put_in_front(self, front: str, these: np.ndarray) -> None:
        """Begin the ids of some (booleans [n]) with `front`."""
        self._front, self._fronted = front, bytearray(these.astype(np.uint8))
        for place in np.flatnonzero(these).tolist():
            self.checksums[place] = checksum((front + self._head(place)[0][0]).encode())

    def rename(self, place: int, name: str) -> None:
        """Give one another id."""
        self._named[place] = name
        self.checksums[place] = checksum(name.encode())

    def _head(self, place: int) -> tuple[list[Any], bytes]:
        head, _, text = self.spool.get(self._starts[place], self._sizes[place]).partition(b"\n")
        return json.loads(head), text

    def stored(self, place: int) -> Stored:
        """One of them as it is written."""
        (name, task, where), text = self._head(place)
        known = self._named.get(place, self._front + name if self._fronted and self._fronted[place] else name)
        if known != name:
            text = canonical({**json.loads(text), "id": known})
        places = tuple(PictureFile(*one) if len(one) == 2 else SpooledPicture(*one) for one in where)
        return Stored(known, task, text, places, self.spool)

    def row(self, place: int) -> Row:
        """One of them, its pictures not read."""
        one = self.stored(place)
        sample = Sample.from_bytes(one.text, [Picture(b"")] * len(one.places))
        return Row(replace(sample, pictures=()), one.places, one.text, self.spool)

    @property
    def rows(self) -> Iterator[Row]:
        """Each of them in turn, its pictures not read."""
        return map(self.row, range(len(self)))

    def pick(self, places: Iterable[int]) -> Rows:
        """Those at the places."""
        picked = Rows(self.spool)
        picked._front = self._front
        for number, place in enumerate(places):
            picked._starts.append(self._starts[place])
            picked._sizes.append(self._sizes[place])
            picked.checksums.append(self.checksums[place])
            picked._fronted.append(self._fronted[place] if self._fronted else 0)
            if place in self._named:
                picked._named[number] = self._named[place]
        return picked

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> Rows: ...

    def __getitem__(self, place: int | slice) -> Sample | Rows:
        if isinstance(place, slice):
            return self.pick(range(*place.indices(len(self))))
        return self.row(place).load()


def look_at(reference: Reference, images: str, spool: Spool) -> PictureFile | SpooledPicture:
    """Where a picture lies; its first bytes and its size are looked at.

    Args:
        reference: as a row names it.
        images: folder that paths start from.
        spool: where a picture goes that lies in the row.

    Raises:
        BadRow: it is not there, of no kind that is read, or too large.
        UserError: this machine cannot read it.
    """
    if isinstance(reference, bytes):
        ext = _kind(reference[:12], len(reference), "in the row")
        return SpooledPicture(spool.put(reference), len(reference), ext)
    picture = os.path.join(images, reference)
    if "\\" in reference and not os.path.exists(picture):  # written on Windows
        picture = os.path.join(images, reference.replace("\\", "/"))
    try:
        with os.fdopen(open_regular(picture), "rb") as stream:
            size, head = os.fstat(stream.fileno()).st_size, stream.read(12)
    except (FileNotFoundError, NotADirectoryError, NotRegular) as fault:
        raise BadRow("missing", f"the picture {reference!r:.200} cannot be opened: {fault.strerror}") from None
    except OSError as fault:
        if fault.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise BadRow("missing", f"the picture {reference!r:.200} cannot be opened: {fault.strerror}") from None
        # Anything else says something of this machine, not of the row.
        raise UserError(f"the picture cannot be read: {fault.strerror}", where=picture) from None
    return PictureFile(picture, _kind(head, size, f"{reference!r:.200}"))


def _kind(head: bytes, size: int, name: str) -> str:
    ext = sniff(head)
    if not ext:
        raise BadRow("image", f"the picture {name} {no_picture(head)}")
    if size > MAX_MEMBER:
        raise BadRow("image", f"the picture {name} has {size} bytes; at most {MAX_MEMBER} are allowed")
    return ext
